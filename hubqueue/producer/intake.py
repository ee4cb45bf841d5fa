"""How runs and checkpoints come into an outbox: the steps that `Run` and `hubqueue enqueue` share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from hubqueue.config.reader import DestinationSettings
from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import ckpt_draft
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.errors import HubqueueError, OutboxError
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.outbox import Outbox


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
) -> tuple[str, bool]:
    """Start a run, with its registration when its model is new to the hub; its id, and whether it continues.

    It belongs to the address of `target` and to the account of the key that this environment has for it. A run of a
    model that the hub knows already is continued, lanes and all, and so is the run `resume`, known to the hub or not,
    if it belongs there too. Durable when this returns.

    `new_id` is the id of a new run. A call that repeats one whose confirmation was lost gives the same, and in
    `unsure_after` the id of the newest entry before it: what is there already is not written again.
    """
    type, key = declaration(target.type), named.api_key or outbox.key(target)
    # Who has no key now may continue what was started with one; its account stays.
    theirs = [] if key else [each.name for each in outbox.addresses.all() if each.fits(target)]
    run_id, goes_on = outbox.registry.start_run(
        destination=outbox.addresses.note(target, key),
        among=theirs,
        model=named.filename or named.model_id or "",
        kinds=[kind for kind in type.lanes if heartbeat or kind is not Kind.HEARTBEAT],
        remote_id=named.model_id,
        url=f"{target.web_url}/models/{named.model_id}" if named.model_id else None,
        resume=resume,
        new_id=new_id,
    )
    draft = type.registration(named, args, continues=goes_on)
    if (
        draft is not None
        and unsure_after is not None
        and outbox.stats.saved(run_id, draft, after=unsure_after)
    ):
        draft = None
    if draft is not None:
        try:
            outbox.discard(outbox.entries.enqueue(run_id, draft)[1])
        except BaseException:
            if not goes_on:
                # Nobody will ever log to this run: it must not stand there as one that goes on.
                with contextlib.suppress(HubqueueError):
                    outbox.registry.end_run(run_id, RunState.FAILED)
            raise
    return run_id, goes_on


def save_snapshot(
    outbox: Outbox,
    run_id: str,
    path: str | os.PathLike[str],
    epoch: int,
    *,
    is_best: bool,
    map: float,
    final: bool,
) -> int:
    """Copy a checkpoint into the spool and owe it to the hub; the entry's id. Durable when this returns.

    Raises `CheckpointUnreadable`, `SpoolFull` and the `OutboxError`s; nothing is left behind then, unless nobody can
    tell whether the row was written: then the copy stays, and the janitor's sweep decides.
    """
    while True:
        draft = copy_checkpoint(outbox, run_id, path, epoch, is_best=is_best, map=map, final=final)
        assert draft.snapshot is not None
        try:
            entry_id = owe(outbox, run_id, draft)
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
            entry_id = found
        if not was_swept(outbox, entry_id, draft):
            return entry_id


def copy_checkpoint(
    outbox: Outbox,
    run_id: str,
    path: str | os.PathLike[str],
    epoch: int,
    *,
    is_best: bool,
    map: float,
    final: bool,
) -> Draft:
    """Copy a checkpoint into the spool; the draft that owes it. Raises as the spool's `take` does."""
    snapshot = outbox.spool.take(path, label=f"{run_id}-{epoch}")
    return ckpt_draft(snapshot, epoch, is_best=is_best, map=map, final=final, now=outbox.database.now())


def owe(outbox: Outbox, run_id: str, draft: Draft) -> int:
    """Enqueue a draft and remove what it supersedes; the entry's id. Durable when this returns."""
    entry_id, superseded = outbox.entries.enqueue(run_id, draft)
    outbox.spool.remove_behind(superseded.snapshots)
    return entry_id


def was_swept(outbox: Outbox, entry_id: int, draft: Draft) -> bool:
    """Whether the copy of a checkpoint is gone before its row stood; then the entry is cancelled.

    The janitor sweeps old snapshots that no row knows. Should this process have slept for that long between the copy
    and the row (a suspended machine, SIGSTOP), the copy has to be made again.
    """
    assert draft.snapshot is not None
    if outbox.spool.exists(draft.snapshot):
        return False
    outbox.entries.cancel(ids=[entry_id])
    return True


def is_unsure(error: BaseException) -> bool:
    """Whether an enqueue that raised this may have been done all the same."""
    # What is not hubqueue's own (a KeyboardInterrupt) may come at any moment.
    return error.unsure if isinstance(error, OutboxError) else not isinstance(error, HubqueueError)
