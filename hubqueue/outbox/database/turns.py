"""Whose turn it is to write: a process that has waited long asks the others to wait.

SQLite gives its lock to the process that asks at the right instant. On a busy machine that is nearly always a process
that is already running. One that sleeps between its tries wakes up during another's transaction again and again, and
waited for seconds. So the process that waits longest writes a request into a small file beside the database. The request
expires: it need not be withdrawn, and that of a dead process delays the others for an instant only.

This is advisory: a process that cannot read the file loses its fair share and nothing else. Never raises.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from pathlib import Path

from hubqueue.config.home import open_private

# Since when a process waits, and until when the others let it go first: nanoseconds of the monotonic clock.
_REQUEST = struct.Struct("=QQ")
_NO_REQUEST = _REQUEST.pack(0, 0)
# Long enough for the waiting process to be scheduled on a busy machine and to try.
_HOLDS = 100_000_000
# A shorter wait makes no request: most waits end sooner without one.
_LONG = 5_000_000


class Turns:
    """The turns of one database, for one process."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        if hasattr(os, "pread"):
            with suppress(OSError):
                self._file = open_private(path, os.O_RDWR | os.O_CREAT)

    def is_mine(self, since: int) -> bool:
        """Whether no process that has waited longer, from before `since`, asks to go first."""
        earlier, until = self._read()
        now = time.monotonic_ns()
        # A request from before a reboot, or by another clock, does not count.
        return not (now < until <= now + _HOLDS and earlier < since)

    def ask(self, since: int) -> None:
        """Ask those who started to wait later to let this process go first, after a long wait only."""
        now = time.monotonic_ns()
        if now - since > _LONG and self.is_mine(since):
            self._write(_REQUEST.pack(since, now + _HOLDS))

    def take(self, since: int) -> None:
        """Withdraw the own request: this process has the lock."""
        if time.monotonic_ns() - since > _LONG and self._read()[0] == since:
            self._write(_NO_REQUEST)

    def close(self) -> None:
        """Close the file: from now on no request is read or written."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self.close()

    def _read(self) -> tuple[int, int]:
        if self._file is None:
            return 0, 0
        try:
            earlier, until = _REQUEST.unpack(os.pread(self._file, _REQUEST.size, 0))
        except (OSError, struct.error):
            return 0, 0
        return earlier, until

    def _write(self, request: bytes) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.pwrite(self._file, request, 0)
