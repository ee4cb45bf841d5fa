"""How much a hub lets one key ask in a minute, shared by all runs and processes of an outbox. Pure rules.

A leaky bucket that only remembers from when on it has room (`free_at`): in no span of 60 seconds more than
`per_minute` are taken, a tenth of them at once (the generic cell rate algorithm of ITU-T I.371).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from hubqueue.domain.entry import Kind

_MINUTE = timedelta(seconds=60)
# What one claim of a kind takes of each limit. A heartbeat is two events; a checkpoint asks for an upload target, sends its
# bytes elsewhere and announces them.
COSTS: Mapping[str, Mapping[Kind, int]] = {
    "requests": {kind: 2 if kind in (Kind.HEARTBEAT, Kind.CKPT) else 1 for kind in Kind},
    "uploads": {Kind.CKPT: 1},
}
# One claim takes up to so many at once (see `Budget.costs`), which may exceed the bucket by the rest.
_ROOM = 2


@dataclass(frozen=True, slots=True)
class Allowance:
    """So many a minute: each takes an `interval`, and what was not used is saved up for a `burst`."""

    per_minute: int

    @property
    def burst(self) -> int:
        """How many may go at once."""
        return max(1, self.per_minute // 10)

    @property
    def interval(self) -> timedelta:
        """The time between two in the long run."""
        return _MINUTE / max(1, self.per_minute - self.burst - _ROOM)

    @property
    def saved(self) -> timedelta:
        """How far `free_at` may lie in the past at most: time that was not used before is lost."""
        return (self.burst - 1) * self.interval


@dataclass(frozen=True, slots=True)
class Budget:
    """What a destination allows in a minute: requests of all kinds, and among them uploads. 0 is no limit."""

    requests: int = 0
    uploads: int = 0

    def costs(self, kind: Kind) -> Mapping[str, tuple[Allowance, int]]:
        """What one claim of a kind takes: by the name of the limit, its allowance and how many."""
        allowed = {"requests": self.requests, "uploads": self.uploads}
        return {
            name: (Allowance(allowed[name]), counts[kind])
            for name, counts in COSTS.items()
            if allowed[name] and kind in counts
        }
