"""The steps of `hubqueue enqueue` for a training with one or several destinations.

Promises: what a call saves for one destination it saves for all of them, or it raises and says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from hubqueue.config.declaration import Destination
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.drafts import Checkpoint
from hubqueue.domain.entry import Draft
from hubqueue.domain.errors import HubqueueError
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.moves.registry import new_run_id
from hubqueue.outbox.outbox import Outbox
from hubqueue.producer.intake import copy_checkpoint, describing, enqueue_copy, open_run, was_swept


def open_runs(
    outbox: Outbox,
    targets: Sequence[tuple[DestinationSettings, Identifier]],
    args: Mapping[str, object],
    *,
    name: str = "",
) -> list[str]:
    """Start or continue the run of a training at each destination; return their ids.

    Raises as `open_run`: then none has started.
    """
    intended, started, new = new_run_id(), list[str](), list[str]()
    several = len(targets) > 1
    resume = None
    try:
        for target, named in targets:
            run_id, continues = open_run(
                outbox,
                named,
                args,
                target,
                heartbeat=False,
                resume=resume,
                new_id=None if started else intended,
                described=describing(target, args),
                name=name,
                together=(started[0] if started else intended) if several else None,
            )
            started.append(run_id)
            if continues:
                resume = resume or run_id
            else:
                new.append(run_id)
    except BaseException:
        for each in new:
            # Nothing will ever be logged to this run, so it must not stay in state "running".
            with suppress(HubqueueError):
                outbox.registry.end_run(each, RunState.FAILED)
        raise
    return started


def save_snapshots(outbox: Outbox, runs: Mapping[str, Destination], checkpoint: Checkpoint) -> list[int]:
    """Copy a checkpoint once and enqueue it for each run; return the entries' ids. Durable on return.

    Raises `CheckpointUnreadable`, `SpoolFull` and the `OutboxError`s. What has no entry then has no copy (see
    `enqueue_copy`).
    """
    while True:
        drafts = _copied(outbox, runs, checkpoint)
        waiting, entry_ids = list(drafts), list[int]()
        try:
            while waiting:
                entry_ids.append(enqueue_copy(outbox, waiting[0], drafts[waiting.pop(0)]))
        except BaseException:
            _discard(outbox, [drafts[each] for each in waiting])
            raise
        # All get another copy: that of one alone could be of another content.
        swept = [was_swept(outbox, *each) for each in zip(entry_ids, drafts.values(), strict=True)]
        if not any(swept):
            return entry_ids


def _copied(outbox: Outbox, runs: Mapping[str, Destination], checkpoint: Checkpoint) -> dict[str, Draft]:
    drafts: dict[str, Draft] = {}
    same = None
    try:
        for run_id, declared in runs.items():
            takes = {"folders": declared.takes_folders, "steps": declared.takes_steps}
            draft = copy_checkpoint(outbox, run_id, checkpoint, **takes, same=same)
            drafts[run_id], same = draft, same or draft.snapshot
    except BaseException:
        _discard(outbox, list(drafts.values()))
        raise
    return drafts


def _discard(outbox: Outbox, drafts: Sequence[Draft]) -> None:
    for each in drafts:
        if each.snapshot is not None:
            outbox.spool.remove(each.snapshot.name)
