"""How runs and checkpoints come into an outbox: the steps that `Run` and `hubqueue enqueue` share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from hubqueue import identifier
from hubqueue.config import DestinationSettings
from hubqueue.drafts import ckpt_draft, registration_draft, start_draft
from hubqueue.entry import Draft, Kind
from hubqueue.errors import HubqueueError
from hubqueue.lifecycle import RunState
from hubqueue.outbox import Outbox
from hubqueue.transports import DESTINATION_KINDS


def open_run(
    outbox: Outbox,
    named: identifier.Identifier,
    args: Mapping[str, object],
    target: DestinationSettings,
    *,
    heartbeat: bool = True,
    resume: str | None = None,
) -> tuple[str, bool]:
    """Start a run, with its registration when its model is new to the hub; its id, and whether it continues.

    It belongs to the address of `target` and to the account of the key that this environment has for it. A run of a
    model that the hub knows already is continued, lanes and all, and so is the run `resume`, known to the hub or not,
    if it belongs there too. Durable when this returns.
    """
    key = named.api_key or outbox.key(target)
    # Who has no key now may continue what was started with one; its account stays.
    theirs = [] if key else [each.name for each in outbox.addresses.all() if each.fits(target)]
    run_id, goes_on = outbox.registry.start_run(
        destination=outbox.addresses.note(target, key),
        among=theirs,
        model=named.filename or named.model_id or "",
        kinds=[kind for kind in DESTINATION_KINDS[target.type] if heartbeat or kind is not Kind.HEARTBEAT],
        remote_id=named.model_id,
        url=f"{target.web_url}/models/{named.model_id}" if named.model_id else None,
        resume=resume,
    )
    name = named.filename or named.model_id or ""
    draft: Draft | None = None
    if target.type == "platform":
        draft = start_draft(name, args)  # each start of a training has a number there
    elif named.model_id is None and not goes_on:
        draft = registration_draft(name, args)
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

    Raises `CheckpointUnreadable`, `SpoolFull` and the `OutboxError`s; nothing is left behind then.
    """
    while True:
        snapshot = outbox.spool.take(path, label=f"{run_id}-{epoch}")
        draft = ckpt_draft(snapshot, epoch, is_best=is_best, map=map, final=final, now=outbox.database.now())
        try:
            entry_id, superseded = outbox.entries.enqueue(run_id, draft)
        except BaseException:
            outbox.spool.remove(snapshot.name)
            raise
        outbox.spool.remove_behind(superseded.snapshots)
        # The janitor sweeps old snapshots that no row knows. Should this process have slept for that long between
        # the copy and the row (a suspended machine, SIGSTOP), the copy is gone and has to be made again.
        if outbox.spool.exists(snapshot):
            return entry_id
        outbox.entries.cancel(ids=[entry_id])
