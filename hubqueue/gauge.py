"""How far the running uploads are, for the processes that wait for them: one small file a run, in the locks' folder.

Best effort: never synced, never in the way of an upload, and gone when the upload has ended. After a kill the next
attempt of the run writes over it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from hubqueue import events
from hubqueue.entry import Kind
from hubqueue.events import Fact
from hubqueue.home import Home, open_private
from hubqueue.ownership import read_small

# Smaller uploads are over before anybody looks, and a file system is not asked more often than this.
_LEAST = 1 << 20
_EVERY = 0.25


class Gauge:
    """Hears the worker's facts and writes the sent bytes of checkpoints down."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()  # facts come from the sending threads
        self._written: dict[str, float] = {}

    def hear(self, fact: Fact) -> None:
        """Note how far an upload is, or that it has ended."""
        match fact:
            case events.UploadProgressed(run_id, _, sent, size) if size >= _LEAST:
                self._write(run_id, sent, size)
            case (
                events.BatchDelivered(run_id=run_id, kind=Kind.CKPT)
                | events.AttemptFailed(run_id=run_id, kind=Kind.CKPT)
                | events.AttemptReleased(run_id=run_id, kind=Kind.CKPT)
                | events.EntryBuried(run_id=run_id, kind=Kind.CKPT)
            ):
                self._clear(run_id)
            case _:
                pass

    def _write(self, run_id: str, sent: int, size: int) -> None:
        now = time.monotonic()
        with self._lock:
            if sent < size and now - self._written.get(run_id, -_EVERY) < _EVERY:
                return
            self._written[run_id] = now
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with (
            contextlib.suppress(OSError),
            os.fdopen(open_private(_file(self._home, run_id), flags), "wb") as file,
        ):
            file.write(b"%d %d" % (sent, size))

    def _clear(self, run_id: str) -> None:
        with self._lock:
            known = self._written.pop(run_id, None)
        if known is not None:
            with contextlib.suppress(OSError):
                _file(self._home, run_id).unlink(missing_ok=True)


def sent_bytes(home: Home, run_id: str) -> tuple[int, int] | None:
    """How many bytes of a run's running upload have left, and its size; None when nobody tells."""
    try:
        sent, size = map(int, read_small(_file(home, run_id)).split())
    except (OSError, ValueError):
        return None
    return (sent, size) if 0 <= sent <= size else None


def _file(home: Home, run_id: str) -> Path:
    return home.locks / f"upload-{run_id}"
