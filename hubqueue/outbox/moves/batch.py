"""Which entries go into one request, and when a batch is taken apart. Pure rules."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence

from hubqueue.domain.entry import Entry, Kind

# Only metrics are merged: the hub takes many epochs in one request.
COALESCED = frozenset({Kind.METRICS})
# After so many failures in a row the rest of the lane goes ahead of the batch that fails: one batch that
# upsets the hub must not dam up its lane. Fewer would spread one outage over many small batches.
STUCK_AFTER = 3
# After so many answers that look like a crash over this very content, the batch is taken apart.
SUSPECT_AFTER = 6


def coalesce(waiting: Sequence[Entry], *, kind: Kind, max_entries: int, max_bytes: int) -> int:
    """How many of `waiting`, from the front, share one request: at least one of a non-empty line.

    A key that comes twice ends the batch: two values of one epoch cannot stand in the same request, and the
    newer one has to follow.
    """
    if kind not in COALESCED:
        return min(1, len(waiting))
    seen: set[str] = set()
    total = 0
    for count, candidate in enumerate(waiting):
        total += candidate.size
        if count and (count >= max_entries or total > max_bytes or candidate.key in seen):
            return count
        seen.add(candidate.key)
    return len(waiting)


def halves(count: int) -> tuple[int, int]:
    """How a refused batch of `count` entries is split, until the rejected one stands alone."""
    return count // 2, count - count // 2


def idempotency_key(outbox_id: str, contents: Iterable[tuple[object, ...]]) -> str:
    """The same for every attempt at the same entries of an outbox, different for any others (a UUID).

    `contents` is what tells each entry apart. Its id alone does not: an outbox that is restored from a copy gives
    the same ids again, to other entries, and the hub would take those for replays. Damage is no reason to fail here.
    """
    digest = hashlib.sha256(json.dumps(list(contents), default=repr).encode()).hexdigest()
    return str(uuid.uuid5(uuid.UUID(outbox_id), digest))
