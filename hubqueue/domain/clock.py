"""Time, as hubqueue sees it.

Two readings, never mixed. `wall()` is what people and servers call the time; it may jump. `elapsed()` is
the number of seconds since the machine was booted; it never jumps, and every process of one boot reads the
same line. Intervals (paces, leases, backoffs) are always measured on `elapsed()`; the outbox turns it into
moments that survive a reboot (`Database.now`).
"""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """Where the time comes from. `hubqueue.testing.FakeClock` is the other implementation."""

    @property
    def boot_id(self) -> str:
        """Names the boot whose start `elapsed()` counts from."""
        ...

    def wall(self) -> datetime:
        """The time as people tell it: aware, UTC. It may jump either way."""
        ...

    def elapsed(self) -> float:
        """Seconds since boot, the same line for every process of this boot. It never jumps."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        # CLOCK_BOOTTIME goes on through a suspend, so a laptop's lid does not stretch a pace.
        self._source = getattr(time, "CLOCK_BOOTTIME", None)
        self._boot_id = self._read_boot_id()

    @property
    def boot_id(self) -> str:
        return self._boot_id

    def wall(self) -> datetime:
        return datetime.now(UTC)

    def elapsed(self) -> float:
        return time.monotonic() if self._source is None else time.clock_gettime(self._source)

    def _read_boot_id(self) -> str:
        try:
            return _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError:
            # Without a kernel boot id: the host and the boot moment to the minute. A wall clock that jumps
            # makes this look like another boot, which the outbox survives (it never lets time go back).
            booted = int((time.time() - self.elapsed()) // 60)
            return f"{socket.gethostname()}-{booted}"
