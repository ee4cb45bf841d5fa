"""The progress of uploads, written to a small file a run for other processes (see `outbox/uploads.py`)."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from dataclasses import dataclass, field

from hubqueue.config.home import Home, open_private
from hubqueue.domain.clock import SystemClock
from hubqueue.domain.entry import Kind
from hubqueue.outbox.uploads import upload_file
from hubqueue.worker import events
from hubqueue.worker.events import Fact

# In bytes and seconds. A smaller upload ends before a person reads its progress; files are not written more often.
_LEAST = 1 << 20
_EVERY = 0.25
# In seconds. The rate covers only the last ones: the current speed of the network, not that of an hour ago.
_WINDOW = 10.0


@dataclass(slots=True)
class _Track:
    written_at: float
    samples: deque[tuple[float, int]] = field(default_factory=deque)


class UploadProgress:
    """Receives the worker's events and writes the progress of checkpoint uploads."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._clock = SystemClock()
        self._worker: str | None = None
        self._lock = threading.Lock()  # facts come from the sending threads
        self._tracks: dict[str, _Track] = {}

    def note(self, fact: Fact) -> None:
        """Record the progress of an upload, or its end."""
        match fact:
            case events.WorkerStarted(worker=worker):
                self._worker = worker
            case events.UploadProgressed(run_id, _, sent, size) if size >= _LEAST:
                self._sent(run_id, sent, size)
            case (
                events.BatchDelivered(run_id=run_id, kind=Kind.CKPT)
                | events.AttemptFailed(run_id=run_id, kind=Kind.CKPT)
                | events.AttemptReleased(run_id=run_id, kind=Kind.CKPT)
                | events.SettleLost(run_id=run_id, kind=Kind.CKPT)
                | events.EntryBuried(run_id=run_id, kind=Kind.CKPT)
            ):
                self._clear(run_id)
            case _:
                pass

    def _sent(self, run_id: str, sent: int, size: int) -> None:
        now = self._clock.elapsed()
        with self._lock:
            track = self._tracks.setdefault(run_id, _Track(now - _EVERY))
            if track.samples and sent < track.samples[-1][1]:
                track.samples.clear()  # it restarted
            if track.samples and sent < size and now - track.written_at < _EVERY:
                return
            track.written_at = now
            track.samples.append((now, sent))
            while len(track.samples) > 2 and now - track.samples[0][0] > _WINDOW:
                track.samples.popleft()
            since, sent_then = track.samples[0]
            gap = (now - since) / max(1, len(track.samples) - 1)
        self._write(run_id, sent=sent, size=size, at=now, gap=gap, since=since, sent_then=sent_then)

    def _write(self, run_id: str, **values: float) -> None:
        kept = {"worker": self._worker, "boot": self._clock.boot_id, **values}
        file = upload_file(self._home, run_id)
        draft = file.with_name(f".{file.name}")
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(open_private(draft, flags), "w", encoding="ascii") as writing:
                writing.write(json.dumps(kept))
            draft.replace(file)  # a reader never sees a partial file

    def _clear(self, run_id: str) -> None:
        with self._lock:
            known = self._tracks.pop(run_id, None)
        if known is not None:
            with contextlib.suppress(OSError):
                upload_file(self._home, run_id).unlink(missing_ok=True)
