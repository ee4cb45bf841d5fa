"""The requests that one key may send per minute: one token bucket for requests, one for uploads.

Pure except for the fill of its buckets: time is an argument.
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
    """A bucket for `per_minute` requests that refills within a minute; None means unlimited."""

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, key: str, *, now: float) -> int:
        """Take one token for `key` at `now` (s, monotonic). Returns 0, or the whole seconds until there is one."""
        if self.per_minute is None:
            return 0
        rate = self.per_minute / 60
        with self._lock:
            bucket = self._buckets.setdefault(key, _Bucket(left=self.per_minute, at=now))
            bucket.left = min(float(self.per_minute), bucket.left + (now - bucket.at) * rate)
            bucket.at = now
            # Tolerate rounding errors: after the announced wait the token must be there.
            if bucket.left < 1 - 1e-9:
                return max(1, math.ceil((1 - bucket.left) / rate))
            bucket.left -= 1
            return 0
