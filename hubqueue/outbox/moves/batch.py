"""Which entries go into one request, and when a batch is split. Pure rules."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence

from hubqueue.domain.entry import Entry, Kind

# Only metrics are merged: the hub accepts many epochs or steps in one request.
COALESCED = frozenset({Kind.METRICS})
# After this many failures in a row the rest of the lane is sent before the failing batch: one bad batch must not
# block its lane. A smaller number would spread one outage over many small batches.
STUCK_AFTER = 3
# After this many responses that look like a crash on this content, the batch is split.
SUSPECT_AFTER = 6


def coalesce(waiting: Sequence[Entry], *, kind: Kind, max_entries: int, max_bytes: int) -> int:
    """How many of `waiting`, from the front, share one request: at least one, unless it is empty.

    A repeated key ends the batch: one request cannot carry two values of a key, and the newer one has to be
    sent later.
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
    """How a refused batch of `count` entries is split, until the rejected entry is the only one."""
    return count // 2, count - count // 2


def idempotency_key(outbox_id: str, contents: Iterable[tuple[object, ...]]) -> str:
    """A UUID: the same for every attempt at the same entries of an outbox, another one for other entries.

    `contents` identifies each entry. Its id alone does not: an outbox that is restored from a copy gives the same
    ids to other entries, and the hub would treat those as replays. Damaged values are accepted.
    """
    digest = hashlib.sha256(json.dumps(list(contents), default=repr).encode()).hexdigest()
    return str(uuid.uuid5(uuid.UUID(outbox_id), digest))
