"""Whose turn it is to write: who has waited long for the database asks the others to stand back.

SQLite hands its lock to whoever asks at the right instant. On a busy machine that is nearly always a process which is
running already: one that sleeps between its tries wakes in the middle of another's transaction, again and again, and
waited for seconds. So the request of the one that waits longest stands in a small file beside the database, with the
moment until which it holds: nobody has to take it back, and one that dies is obeyed for an instant only.

Promises no more than manners: whoever does not look, or cannot, loses nothing but its fair share. Refuses to fail.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from pathlib import Path

from hubqueue.config.home import open_private

# Since when somebody waits, and until when the others stand back: nanoseconds of the monotonic clock.
_REQUEST = struct.Struct("=QQ")
_NOBODY = _REQUEST.pack(0, 0)
# Long enough for the one who asks to get a processor of a busy machine and try.
_HOLDS = 100_000_000
# Who waits shorter than that does not ask: most waits end by themselves, and sooner.
_LONG = 5_000_000


class Turns:
    """The turns of one database, for one process."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        if hasattr(os, "pread"):
            with suppress(OSError):
                self._file = open_private(path, os.O_RDWR | os.O_CREAT)

    def is_mine(self, since: int) -> bool:
        """Whether nobody who has waited longer than `since` asks to go first."""
        earlier, until = self._read()
        now = time.monotonic_ns()
        # A request from before a reboot, or of another clock, is none.
        return not (now < until <= now + _HOLDS and earlier < since)

    def ask(self, since: int) -> None:
        """Ask those who came later to stand back, once that is worth it."""
        now = time.monotonic_ns()
        if now - since > _LONG and self.is_mine(since):
            self._write(_REQUEST.pack(since, now + _HOLDS))

    def take(self, since: int) -> None:
        """The one who asked has what it waited for."""
        if time.monotonic_ns() - since > _LONG and self._read()[0] == since:
            self._write(_NOBODY)

    def close(self) -> None:
        """Look and ask no more."""
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
