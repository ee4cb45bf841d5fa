"""How often a training pays for a snapshot: copies take a small share of its time, whatever the size of the file.

A rule and a stopwatch; a final checkpoint is never asked about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

_T = TypeVar("_T")
# A copy that took a second is not made again for twenty: at most 5 % of the training's time.
SHARE = 0.05


class Cadence:
    """The stopwatch of one kind of snapshot. `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now = monotonic
        self._next = float("-inf")

    @property
    def is_due(self) -> bool:
        """Whether another copy keeps the share."""
        return self._now() >= self._next

    def timed(self, copy: Callable[[], _T]) -> _T:
        """Make a copy, and remember how long it took, failed ones included."""
        began = self._now()
        try:
            return copy()
        finally:
            ended = self._now()
            self._next = ended + (ended - began) * (1 / SHARE - 1)


class Timers(dict[str, float]):
    """Moments of `time.time()` by kind, as the callbacks keep them, that never hold anything back.

    The callbacks ask `time() - timers[kind] > rate_limits[kind]` and drop what comes too early. Here an early
    checkpoint waits in the outbox, so the answer is yes as long as copying costs the training little.
    """

    def __init__(self, cadence: Cadence, given: Mapping[str, float] | None = None) -> None:
        super().__init__(given or {})
        self._cadence = cadence

    def __getitem__(self, kind: str) -> float:
        super().__getitem__(kind)
        if kind == "ckpt" and not self._cadence.is_due:
            return time.time()
        return 0.0
