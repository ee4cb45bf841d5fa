"""The two clocks of hubqueue, which are never mixed.

`wall()` is the time of people and servers; it may jump. `elapsed()` is the number of seconds since the machine was
booted; it never jumps, and all processes of one boot read the same value. Intervals (paces, leases, backoffs) are
always measured on `elapsed()`; the outbox converts it into moments that survive a reboot (`Database.now`).
"""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """A source of time: `SystemClock`, or `hubqueue.testing.FakeClock` in tests."""

    @property
    def boot_id(self) -> str:
        """Names the boot whose start `elapsed()` counts from."""
        ...

    def wall(self) -> datetime:
        """The current date and time: aware, UTC. It may jump in either direction."""
        ...

    def elapsed(self) -> float:
        """Seconds since boot, the same for all processes of this boot. It never jumps."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        # CLOCK_BOOTTIME also counts suspended time, so closing a laptop does not lengthen a pace.
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
            # Without a kernel boot id: the host name and the minute of the boot. A jump of the wall clock looks like
            # another boot, which the outbox handles (its time never decreases).
            booted = int((time.time() - self.elapsed()) // 60)
            return f"{socket.gethostname()}-{booted}"
