"""What is owed: the kinds, the draft that a producer creates, the entry that the outbox keeps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What an entry uploads. The lane `heartbeat` is used only for its pace: it never holds an entry."""

    REGISTRATION = "registration"
    METRICS = "metrics"
    CKPT = "ckpt"
    EVENT = "event"
    COMPLETION = "completion"
    HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The private copy of a checkpoint, taken at enqueue.

    `name` is a file of the spool, `size` is in bytes, `mtime_ns` is the copy's own. `sha256` is hex, or None
    where the copy is a reflink (made without reading the bytes).
    """

    name: str
    size: int
    mtime_ns: int
    sha256: str | None = None


_ANYWHERE = (-(2**63), 2**63 - 1)


class Draft(NamedTuple):
    """An upload before it is in the outbox.

    `key` identifies it in the lane (metrics: the epoch). A later draft with the same key, or with that key in
    `replaces`, supersedes an earlier entry that still waits. `rank` orders the lane, lowest first. `payload` is JSON
    text and never changes after the enqueue. A `final` draft ignores the lane's pace.
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
