"""Builds drafts from a producer's calls, with their key and rank in the lane. Pure rules."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hubqueue.domain.entry import Draft, Entry, Kind, Snapshot

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Below every other rank of a checkpoint lane: a final checkpoint goes first.
FINAL_RANK = -(2**62)
_LAST, _BEST = "last", "best"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint, as a producer describes it: a file, or a folder. `epoch` is 0-based, `map` is the mAP50-95.

    With `archive` a folder becomes one file, a tar.
    """

    path: str | os.PathLike[str]
    epoch: int
    is_best: bool = False
    map: float = 0.0
    final: bool = False
    archive: bool = False


def metrics_draft(text: str, epoch: int) -> Draft:
    """The metrics of one epoch. The lane is ordered by epoch."""
    return Draft(Kind.METRICS, str(epoch), epoch, text)


def ckpt_draft(checkpoint: Checkpoint, snapshot: Snapshot, *, now: datetime) -> Draft:
    """A checkpoint with its snapshot. Ranks rise with time, below them a final one, which goes first.

    At most one `last` and one `best` checkpoint wait; a final one replaces both (in what order two of them are sent:
    `is_before`).
    A periodic checkpoint sent after the final one would turn a finished model at the hub back into an unfinished
    one, so the final one supersedes those that wait.
    """
    payload = {
        "epoch": checkpoint.epoch,
        "is_best": checkpoint.is_best,
        "map": checkpoint.map,
        "final": checkpoint.final,
    }
    if checkpoint.final:
        return Draft(
            Kind.CKPT,
            "final",
            FINAL_RANK,
            json.dumps(payload),
            snapshot,
            final=True,
            replaces=(_LAST, _BEST),
        )
    saved_at = (now - _EPOCH) // _MICROSECOND
    return Draft(Kind.CKPT, _BEST if checkpoint.is_best else _LAST, saved_at, json.dumps(payload), snapshot)


def is_before(entry: Entry, other: Entry) -> bool:
    """Whether a checkpoint is sent before another one of its run: what a hub resumes from is the one that arrives last.

    That is the one with the higher epoch, if it was also saved later. If not, the training went back to an earlier epoch,
    or a script saves its best checkpoint after the last one: then it is `last`, from which a training resumes.
    """
    if entry.final != other.final:
        return entry.final
    if {entry.key, other.key} != {_BEST, _LAST}:
        return entry.id < other.id
    best, last = (entry, other) if entry.key == _BEST else (other, entry)
    best_is_newer = best.id > last.id and _epoch(best) > _epoch(last)
    return (entry is best) != best_is_newer


def _epoch(entry: Entry) -> int:
    try:
        found = json.loads(entry.payload)["epoch"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return -1  # damaged
    return found if isinstance(found, int) else -1
