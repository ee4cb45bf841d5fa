"""Facts: what has happened, emitted after the commit that made it true. `log.py` words them.

Progress bars, logs and tests receive the same facts. Nothing in the package depends on the receivers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from hubqueue.domain.entry import Kind


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    worker: str
    pid: int
    home: str


@dataclass(frozen=True, slots=True)
class WorkerStopped:
    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """The first byte of a request is about to be sent. `size` is in bytes."""

    run_id: str
    kind: Kind
    entries: int
    size: int
    attempt: int


@dataclass(frozen=True, slots=True)
class UploadProgressed:
    """`sent` of `size` bytes were sent, never more. Emitted often; not logged."""

    run_id: str
    attempt_id: int
    sent: int
    size: int


@dataclass(frozen=True, slots=True)
class BatchDelivered:
    run_id: str
    kind: Kind
    entries: int
    size: int
    took: timedelta


@dataclass(frozen=True, slots=True)
class RunRegistered:
    run_id: str
    remote_id: str
    url: str | None


@dataclass(frozen=True, slots=True)
class HeartbeatDelivered:
    run_id: str


@dataclass(frozen=True, slots=True)
class RunCancelled:
    """The hub asked the training to stop."""

    run_id: str


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    run_id: str
    kind: Kind
    entries: int
    reason: str
    failures: int
    again_at: datetime


@dataclass(frozen=True, slots=True)
class DestinationPaused:
    """The hub asked for a pause: every lane of the destination waits."""

    destination: str
    until: datetime


@dataclass(frozen=True, slots=True)
class BatchSplit:
    run_id: str
    kind: Kind
    entries: int
    reason: str


@dataclass(frozen=True, slots=True)
class EntryBuried:
    run_id: str
    kind: Kind
    entry_id: int
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """A run or a destination is on hold until a person acts or a probe gets through. `what` reads like "destination hub"."""

    what: str
    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class HoldProbed:
    """An attempt has found what is held still unusable; the next probe is planned. `what` as in `Held`."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class HoldLifted:
    """A probe has got through: what was held sends again. `what` as in `Held`."""

    what: str


@dataclass(frozen=True, slots=True)
class AttemptReleased:
    run_id: str
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class SettleLost:
    """The lease expired and another worker holds the lane: this attempt's outcome was not written."""

    run_id: str
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class StorageTroubled:
    """The outbox could not be read or written; tried again automatically."""

    reason: str


@dataclass(frozen=True, slots=True)
class RunInterrupted:
    """The training process died without finishing its run."""

    run_id: str


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The training process did not finish its run, and its exit code was not 0."""

    run_id: str
    code: int | None


@dataclass(frozen=True, slots=True)
class LeasesReclaimed:
    workers: int
    lanes: int


@dataclass(frozen=True, slots=True)
class Tidied:
    pruned: int
    swept: int


@dataclass(frozen=True, slots=True)
class Salvaged:
    """A damaged outbox was read; `report` states how much of it was copied."""

    path: str
    report: str


Fact = (
    WorkerStarted
    | WorkerStopped
    | AttemptStarted
    | UploadProgressed
    | BatchDelivered
    | RunRegistered
    | HeartbeatDelivered
    | RunCancelled
    | AttemptFailed
    | DestinationPaused
    | BatchSplit
    | EntryBuried
    | Held
    | HoldProbed
    | HoldLifted
    | AttemptReleased
    | SettleLost
    | StorageTroubled
    | RunInterrupted
    | RunFailed
    | LeasesReclaimed
    | Tidied
    | Salvaged
)
Emit = Callable[[Fact], None]
