"""Builds drafts from a producer's calls, with their key and rank in the lane. Pure rules."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hubqueue.domain.entry import Draft, Kind, Snapshot

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Below every other rank of a checkpoint lane: a final checkpoint goes first.
FINAL_RANK = -(2**62)


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
    """A checkpoint with its snapshot. The newest goes first.

    At most one `last` and one `best` checkpoint wait; a final one replaces both.
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
            replaces=("last", "best"),
        )
    newest_first = -((now - _EPOCH) // _MICROSECOND)
    return Draft(
        Kind.CKPT, "best" if checkpoint.is_best else "last", newest_first, json.dumps(payload), snapshot
    )
