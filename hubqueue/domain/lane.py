"""A lane, (run, kind): one ordered line with its own pace, backoff, hold and lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType

from hubqueue.domain.entry import Entry, Kind
from hubqueue.domain.identifier import default_name
from hubqueue.domain.outcome import Scope


@dataclass(frozen=True, slots=True)
class RunRef:
    """What a transport may know of a run. `remote_id` is None until the hub has confirmed its registration.

    `destination` is the row of the run (see addresses.py), `label` its name in the configuration.
    `remembered` is read-only: what the destination's earlier outcomes had in `Remote.remember`, under its own names.
    `damaged` means that it cannot be read; nothing is sent for such a run until a person resumes it.
    `name` is the name that the training gave the run, empty without one; `shown_name` is for a destination that has names.
    """

    id: str
    destination: str
    model: str
    remote_id: str | None
    remembered: Mapping[str, str | int] = field(default_factory=dict, hash=False)
    label: str = ""
    damaged: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "remembered", MappingProxyType(dict(self.remembered)))

    @property
    def shown_name(self) -> str:
        """The name that the training gave the run, or the default: the model's stem and the run's id. Never changes.

        1 to 128 characters without control characters, slashes (`/`, `\\`) and a leading dot.
        """
        return self.name or default_name(self.model, self.id)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one request carries: entries of one lane, in order (none for a heartbeat).

    `idempotency_key` depends only on the entries, so that every attempt at a batch carries the same key. `size` is the
    total of its bodies in bytes.
    """

    run: RunRef
    kind: Kind
    entries: tuple[Entry, ...]
    idempotency_key: str
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum(entry.size for entry in self.entries))


@dataclass(frozen=True, slots=True)
class Probe:
    """The hold that an attempt probes: what is held, and the reason. The next probe of a destination is `again`."""

    scope: Scope
    reason: str
    again: datetime


@dataclass(frozen=True, slots=True)
class Lease:
    """The time-limited right to send for a lane.

    `token` is raised by each claim and checked at settle. `failures` counts the attempts that failed in a row
    before this one, `attempts` those of the batch, this one included. `attempt_id` is its row in the history.
    `pace` is the pace of the lane at the claim. `paced_until` is the value before it, for an attempt that never starts.
    `probe` is set when its run or destination is on hold, and this attempt finds out whether it still has to be.
    """

    lane_id: int
    token: int
    until: datetime
    batch: Batch
    failures: int
    attempts: int
    attempt_id: int
    claimed_at: datetime
    pace: timedelta
    paced_until: datetime
    probe: Probe | None = None
