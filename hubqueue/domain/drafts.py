"""What a producer's call becomes: drafts, with their place and rank in the lane. Pure rules."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from hubqueue.domain.entry import Draft, Kind, Snapshot

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Below every other rank of a checkpoint lane: a final checkpoint goes first.
FINAL_RANK = -(2**62)


def metrics_draft(text: str, epoch: int) -> Draft:
    """The metrics of one epoch. The lane goes by epoch."""
    return Draft(Kind.METRICS, str(epoch), epoch, text)


def ckpt_draft(
    snapshot: Snapshot, epoch: int, *, is_best: bool, map: float, final: bool, now: datetime
) -> Draft:
    """A checkpoint. Newest first; `last` and `best` have one waiting place each, and a final one replaces both.

    A periodic checkpoint after the final one would turn a finished model back into an unfinished one at the
    hub, so the final one takes the places of those that wait.
    """
    payload = {"epoch": epoch, "is_best": is_best, "map": map, "final": final}
    if final:
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
    return Draft(Kind.CKPT, "best" if is_best else "last", newest_first, json.dumps(payload), snapshot)
