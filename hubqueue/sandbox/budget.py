"""How much one key may ask in a minute: a token bucket each for requests and for uploads.

Pure but for what was taken: the time comes in as an argument.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class Budget:
    """`per_minute` requests at once, and as many again in each minute; None means any number."""

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, key: str, *, now: float) -> int:
        """Take one for `key` at `now` (s, steady). 0, or in how many whole seconds there will be one."""
        if self.per_minute is None:
            return 0
        rate = self.per_minute / 60
        with self._lock:
            bucket = self._buckets.setdefault(key, _Bucket(left=self.per_minute, at=now))
            bucket.left = min(float(self.per_minute), bucket.left + (now - bucket.at) * rate)
            bucket.at = now
            # A hair less than one is one: the wait that was asked for must be enough.
            if bucket.left < 1 - 1e-9:
                return max(1, math.ceil((1 - bucket.left) / rate))
            bucket.left -= 1
            return 0
