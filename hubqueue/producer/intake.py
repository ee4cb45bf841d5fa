"""How runs and checkpoints enter an outbox: the steps that `Run` and `hubqueue enqueue` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hubqueue.config.reader import DestinationSettings
from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, ckpt_draft
from hubqueue.domain.entry import Draft, Kind, Snapshot
from hubqueue.domain.errors import HubqueueError, OutboxError
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.redact import hide_key
from hubqueue.outbox.moves.counting import Moved
from hubqueue.outbox.outbox import Outbox
from hubqueue.producer.survival import logger

_LOG = logger()


def open_run(
    outbox: Outbox,
    named: Identifier,
    args: Mapping[str, object],
    target: DestinationSettings,
    *,
    heartbeat: bool = True,
    resume: str | None = None,
    new_id: str | None = None,
    unsure_after: int | None = None,
    described: Callable[[Draft], Draft] = lambda draft: draft,
    name: str = "",
    together: str | None = None,
) -> tuple[str, bool]:
    """Start or continue a run; return its id and whether it continues. Durable on return.

    The run belongs to the address of `target` and to the account of the key that this environment has for it. A run of
    a model that the hub already has is continued with its lanes. So is the run `resume`, if it belongs to that address
    and account, even when the hub does not have its model yet. A model that is new to the hub gets a registration.

    `new_id` is the id for a new run. To repeat a call whose confirmation was lost, pass the same `new_id`, and in
    `unsure_after` the id of the newest entry before that call: rows that exist already are not written again.
    `described` completes the registration (`describing`). `name` is that of a new run; keys in it are masked. `together` is
    the id of the first of the training's runs if it has several; for the first itself that is `new_id`.
    """
    type, key = declaration(target.type), named.api_key or outbox.key(target)
    # Without a key, a run that was started with one can be continued; it keeps its account.
    same_address = [] if key else [each.name for each in outbox.addresses.all() if each.fits(target)]
    # Before the transaction: code of a plugin may take long.
    may_continue = resume is not None or named.model_id is not None
    cases = (False, True) if may_continue else (False,)
    drafts = {each: type.registration(named, args, continues=each) for each in cases}
    return outbox.registry.start_run(
        destination=outbox.addresses.note(target, key),
        among=same_address,
        model=named.filename or named.model_id or "",
        kinds=[kind for kind in type.lanes if heartbeat or kind is not Kind.HEARTBEAT],
        remote_id=named.model_id,
        url=f"{target.web_url}/models/{named.model_id}" if named.model_id else None,
        resume=resume,
        new_id=new_id,
        name=hide_key(name) or None,
        together=together,
        registration={each: described(draft) for each, draft in drafts.items() if draft is not None},
        unsure_after=unsure_after,
    )


def describing(target: DestinationSettings, args: Mapping[str, object]) -> Callable[[Draft], Draft]:
    """What adds facts about the machine to the drafts of a training that starts now in this process.

    Neither it nor its result raises: without the facts a draft is what the producer made.
    """
    describe = declaration(target.type).describe
    if describe is None:
        return lambda draft: draft
    try:
        complete = describe(target, args)
    except Exception as error:
        _LOG.warning("the facts about this machine are not sent: %s", type(error).__name__)
        return lambda draft: draft

    def completed(draft: Draft) -> Draft:
        try:
            return complete(draft)
        except Exception as error:
            _LOG.debug("the facts about this machine are not sent: %s", type(error).__name__)
            return draft

    return completed


def enqueue_copy(outbox: Outbox, run_id: str, draft: Draft) -> int:
    """Enqueue the draft of a copied checkpoint; return the entry's id. Raises the `OutboxError`s.

    The copy is removed then, unless it is unknown whether the row was written: in that case the copy stays, and the janitor
    removes it if it has no row.
    """
    assert draft.snapshot is not None
    try:
        entry_id, _ = owe(outbox, run_id, draft)
    except BaseException as error:
        found = None
        if is_unsure(error):
            try:
                found = outbox.stats.saved(run_id, draft, after=0)
            except HubqueueError:
                raise error from None
        if found is None:
            outbox.spool.remove(draft.snapshot.name)
        if found is None or not isinstance(error, HubqueueError):
            raise
        return found
    return entry_id


def copy_checkpoint(
    outbox: Outbox,
    run_id: str,
    checkpoint: Checkpoint,
    *,
    folders: bool = False,
    steps: bool = False,
    same: Snapshot | None = None,
) -> Draft:
    """Copy a checkpoint into the spool; return its draft. Raises the errors of the spool's `take`.

    `same` is the copy for another destination: then this run gets a further name for it. Raises those of `share` then.
    """
    label = f"{run_id}-{checkpoint.epoch if checkpoint.step is None else f'step-{checkpoint.step}'}"
    if same is None:
        snapshot = outbox.spool.take(
            checkpoint.path, label=label, folders=folders, archive=checkpoint.archive
        )
    else:
        snapshot = outbox.spool.share(same, label=label)
    return ckpt_draft(checkpoint, snapshot, now=outbox.database.now(), takes_steps=steps)


def owe(outbox: Outbox, run_id: str, draft: Draft, *, alive: bool = False) -> tuple[int, Moved]:
    """`Entries.enqueue`; the snapshots that the draft supersedes are removed as well."""
    entry_id, moved = outbox.entries.enqueue(run_id, draft, alive=alive)
    outbox.spool.remove_behind(moved.snapshots)
    return entry_id, moved


def was_swept(outbox: Outbox, entry_id: int, draft: Draft) -> bool:
    """Whether the janitor removed the copy of a checkpoint before its row was written; the entry is then cancelled.

    The janitor removes old snapshots without a row. If this process was suspended for that long between the copy and
    the row (machine suspend, SIGSTOP), the copy must be made again. The copy of an entry that does not wait any more is
    gone because it was sent, or because a newer one has replaced it.
    """
    assert draft.snapshot is not None
    if outbox.spool.exists(draft.snapshot):
        return False
    return outbox.entries.cancel(ids=[entry_id]).count > 0


def is_unsure(error: BaseException) -> bool:
    """Whether an enqueue that raised this error may have been committed."""
    # Errors that are not hubqueue's (a KeyboardInterrupt) can be raised at any moment.
    return error.unsure if isinstance(error, OutboxError) else not isinstance(error, HubqueueError)
