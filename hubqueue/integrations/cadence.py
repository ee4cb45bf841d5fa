"""How often a training copies a checkpoint: copies take a small share of its time, whatever the size of the file.

Final checkpoints are always copied, so this rule does not apply to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

_T = TypeVar("_T")
# After a copy that took 1 s, the next is due 20 s after that copy began: at most 5 % of the training's time.
SHARE = 0.05


class Cadence:
    """Measures the copies of one kind of snapshot. `monotonic` returns seconds."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._now = monotonic
        self._next = float("-inf")

    @property
    def is_due(self) -> bool:
        """Whether another copy stays within the share."""
        return self._now() >= self._next

    def timed(self, copy: Callable[[], _T]) -> _T:
        """Make a copy and measure how long it took, even if it fails."""
        began = self._now()
        try:
            return copy()
        finally:
            ended = self._now()
            self._next = ended + (ended - began) * (1 / SHARE - 1)


class Timers(dict[str, float]):
    """Moments of `time.time()` by kind, as the callbacks keep them, but without the callbacks' rate limits.

    The callbacks check `time() - timers[kind] > rate_limits[kind]` and drop whatever comes too early. In hubqueue an
    early checkpoint waits in the outbox, so the check succeeds as long as copies take a small share of the time.
    """

    def __init__(self, cadence: Cadence, given: Mapping[str, float] | None = None) -> None:
        super().__init__(given or {})
        self._cadence = cadence

    def __getitem__(self, kind: str) -> float:
        super().__getitem__(kind)
        if kind == "ckpt" and not self._cadence.is_due:
            return time.time()
        return 0.0
