"""What is owed: the kinds, the draft that a producer creates, the entry that the outbox keeps."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from hubqueue.domain.plain import has_all, union
from hubqueue.domain.snapshots.snapshot import Snapshot

__all__ = ["Draft", "Entry", "Kind", "Snapshot"]


class Kind(StrEnum):
    """What an entry uploads. The lane `heartbeat` is used only for its pace: it never holds an entry."""

    REGISTRATION = "registration"
    METRICS = "metrics"
    CKPT = "ckpt"
    EVENT = "event"
    COMPLETION = "completion"
    HEARTBEAT = "heartbeat"


_ANYWHERE = (-(2**63), 2**63 - 1)
# Kinds whose payload maps names to values, and whose key may be logged again: a hub stores what arrives last, so that is
# the union of all values that were logged under the key.
MERGED = frozenset({Kind.METRICS})


class Draft(NamedTuple):
    """An upload before it is in the outbox.

    `key` identifies it in the lane (metrics: the epoch, or `step:120`). A later draft with the same key, or with that key in
    `replaces`, supersedes an earlier entry that still waits. `rank` orders the lane, lowest first. `payload` is JSON
    text; it never changes after the enqueue, which adds what a draft that `merges` lacks. A `final` draft ignores the
    lane's pace.
    """

    kind: Kind
    key: str
    rank: int
    payload: str
    snapshot: Snapshot | None = None
    final: bool = False
    replaces: tuple[str, ...] = ()
    # What its transport finds as `Entry.progress` at the first attempt; it does not belong to the value.
    progress: str | None = None

    @property
    def merges(self) -> bool:
        """Whether its entry also has the values of earlier entries with its key."""
        return self.kind in MERGED

    def following(self, older: str) -> Draft:
        """This draft, with the values of an older payload that it lacks, if it merges."""
        return self._replace(payload=union(older, self.payload)) if self.merges else self

    def is_in(self, payload: str) -> bool:
        """Whether an entry with its key and this payload has all of its values."""
        return has_all(payload, self.payload) if self.merges else payload == self.payload

    @property
    def ranks(self) -> tuple[int, int]:
        """The lowest and highest rank at which its key may be found: its own; any rank for a checkpoint, as each has another."""
        return _ANYWHERE if self.kind is Kind.CKPT else (self.rank, self.rank)

    @property
    def size(self) -> int:
        """Bytes that the entry occupies and that its upload moves (the body, without HTTP around it)."""
        text = len(self.payload.encode()) + len((self.progress or "").encode())
        return text + (self.snapshot.size if self.snapshot else 0)


class Entry(NamedTuple):
    """One owed upload in the batch of a claim, as the outbox stores it. `size` is in bytes, `enqueued_at` as stored.

    `attempts` counts those before this claim. `progress` is how far an earlier attempt came, or what the draft had, in
    the format of its transport. `checksum` covers key and payload (None: written by an older hubqueue). `rank` is its
    position in the lane. `batch` is the batch in which it was first sent (None: not sent yet).
    """

    id: int
    key: str
    payload: str
    size: int
    enqueued_at: int
    snapshot: Snapshot | None = None
    final: bool = False
    attempts: int = 0
    progress: str | None = None
    checksum: int | None = None
    rank: int = 0
    batch: int | None = None
