"""How far the running uploads are, for the processes that wait for them or show them: one small file a run, in the locks' folder.

Best effort: never synced, never in the way of an upload, and gone when the upload has ended. What a killed worker left
behind is not shown: the file names its worker, whose lock says whether it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hubqueue.config.home import Home, open_private
from hubqueue.config.ownership import read_small
from hubqueue.domain.clock import SystemClock
from hubqueue.domain.entry import Kind
from hubqueue.outbox.locks import is_held
from hubqueue.worker import events
from hubqueue.worker.events import Fact

# Smaller uploads are over before anybody looks, and a file system is not asked more often than this.
_LEAST = 1 << 20
_EVERY = 0.25
# The rate is that of the last seconds: what the line does now, not what it did an hour ago.
_WINDOW = 10.0
_PREFIX = "upload-"


@dataclass(frozen=True, slots=True)
class Upload:
    """A running upload: bytes sent, bytes in all, bytes a second (None as long as it cannot be told)."""

    sent: int
    size: int
    rate: float | None

    @property
    def seconds_left(self) -> float | None:
        """How long it still takes at this rate."""
        return (self.size - self.sent) / self.rate if self.rate else None


@dataclass(slots=True)
class _Track:
    written_at: float
    samples: deque[tuple[float, int]] = field(default_factory=deque)


class Gauge:
    """Hears the worker's facts and writes the sent bytes of checkpoints down."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._clock = SystemClock()
        self._worker: str | None = None
        self._lock = threading.Lock()  # facts come from the sending threads
        self._tracks: dict[str, _Track] = {}

    def hear(self, fact: Fact) -> None:
        """Note how far an upload is, or that it has ended."""
        match fact:
            case events.WorkerStarted(worker=worker):
                self._worker = worker
            case events.UploadProgressed(run_id, _, sent, size) if size >= _LEAST:
                self._note(run_id, sent, size)
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

    def _note(self, run_id: str, sent: int, size: int) -> None:
        now = self._clock.elapsed()
        with self._lock:
            track = self._tracks.setdefault(run_id, _Track(now - _EVERY))
            if track.samples and sent < track.samples[-1][1]:
                track.samples.clear()  # it began anew
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
        told = {"worker": self._worker, "boot": self._clock.boot_id, **values}
        file = _file(self._home, run_id)
        draft = file.with_name(f".{file.name}")
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(open_private(draft, flags), "w", encoding="ascii") as writing:
                writing.write(json.dumps(told))
            draft.replace(file)  # a reader never sees half of it

    def _clear(self, run_id: str) -> None:
        with self._lock:
            known = self._tracks.pop(run_id, None)
        if known is not None:
            with contextlib.suppress(OSError):
                _file(self._home, run_id).unlink(missing_ok=True)


def upload_of(home: Home, run_id: str) -> Upload | None:
    """How far a run's running upload is; None when there is none, or nobody tells."""
    clock = SystemClock()
    try:
        told = json.loads(read_small(_file(home, run_id)))
        sent, size, since, then = (told[name] for name in ("sent", "size", "since", "sent_then"))
        silent = clock.elapsed() - told["at"] - told["gap"]
        if told["boot"] != clock.boot_id or not 0 <= then <= sent <= size:
            return None
        # Silence that is longer than usual counts as well: a line that stands still shows a rate that falls.
        passed = told["at"] - since + max(0.0, silent)
        if told["worker"] is not None and not is_held(home.locks / f"worker-{told['worker']}.lock"):
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return Upload(sent, size, (sent - then) / passed if sent > then and passed > 0 else None)


def uploads(home: Home) -> Iterator[tuple[str, Upload]]:
    """The running uploads of a home, by run."""
    for file in sorted(home.locks.glob(f"{_PREFIX}*")):
        run_id = file.name.removeprefix(_PREFIX)
        found = upload_of(home, run_id)
        if found is not None:
            yield run_id, found


def _file(home: Home, run_id: str) -> Path:
    return home.locks / f"{_PREFIX}{run_id}"
