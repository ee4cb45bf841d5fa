"""How many requests a hub accepts from one key in a minute, shared by all runs and processes of an outbox. Pure rules.

A leaky bucket whose only state is the moment from which it has room (`free_at`): at most `per_minute` in any 60 seconds,
a tenth of them at once (the generic cell rate algorithm of ITU-T I.371).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from hubqueue.domain.entry import Kind

_MINUTE = timedelta(seconds=60)
COSTS: Mapping[str, Mapping[Kind, int]] = {
    "requests": dict.fromkeys(Kind, 1),
    "uploads": {Kind.CKPT: 1},
}
"""The limits, and the default cost of one claim of a kind in each."""
PerClaim = Mapping[Kind, Mapping[str, int]]
"""What a destination declares: by kind, the cost of one claim in each limit."""
_LEAST_ROOM = 2


@dataclass(frozen=True, slots=True)
class Allowance:
    """A limit of `per_minute`: each use takes an `interval`, and unused time is saved for a `burst`.

    One claim takes up to `room` at once, which may exceed the bucket.
    """

    per_minute: int
    room: int = _LEAST_ROOM

    @property
    def burst(self) -> int:
        """How many may be used at once."""
        return max(1, self.per_minute // 10)

    @property
    def interval(self) -> timedelta:
        """The average time between two uses."""
        return _MINUTE / max(1, self.per_minute - self.burst - self.room)

    @property
    def saved(self) -> timedelta:
        """The furthest that `free_at` may be in the past: older unused time is lost."""
        return (self.burst - 1) * self.interval


@dataclass(frozen=True, slots=True)
class Budget:
    """What a destination allows in a minute: requests of all kinds, and among them uploads. 0 means no limit.

    `per_claim` are the costs that it declares; see `check_costs`.
    """

    requests: int = 0
    uploads: int = 0
    per_claim: PerClaim = field(default_factory=dict, hash=False)

    def costs(self, kind: Kind) -> Mapping[str, tuple[Allowance, int]]:
        """The cost of one claim of a kind: by the name of the limit, its allowance and how many."""
        allowed = {"requests": self.requests, "uploads": self.uploads}
        return {
            name: (Allowance(allowed[name], self._room(name)), self._count(kind, name))
            for name, counts in COSTS.items()
            if allowed[name] and kind in counts
        }

    def _count(self, kind: Kind, name: str) -> int:
        return self.per_claim.get(kind, {}).get(name, COSTS[name][kind])

    def _room(self, name: str) -> int:
        return max(_LEAST_ROOM, *(self._count(kind, name) for kind in COSTS[name]))


def check_costs(costs: PerClaim) -> None:
    """Raise `ValueError` for costs of an unknown limit, of a kind that the limit does not count, or below 0."""
    for kind, counts in costs.items():
        for name, count in counts.items():
            if kind not in COSTS.get(name, {}) or count < 0:
                raise ValueError(f"a claim of {kind} cannot take {count} {name}")
