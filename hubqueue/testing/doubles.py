"""Test doubles for code that uses hubqueue: a clock that a test moves, a transport in memory, an outbox in a folder.

from hubqueue.testing import FakeClock, MemoryTransport, outbox_in

with outbox_in(tmp_path, clock=FakeClock()) as outbox:
    ...
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from hubqueue.config.reader import DestinationSettings
from hubqueue.destinations.base import Attempt
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Delivered, Outcome, Remote
from hubqueue.outbox.outbox import Outbox, open_outbox

_START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, wall: datetime = _START) -> None:
        self._wall, self._elapsed, self._boots = wall, 1000.0, 1

    @property
    def boot_id(self) -> str:
        return f"boot-{self._boots}"

    def wall(self) -> datetime:
        return self._wall

    def elapsed(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self._wall += timedelta(seconds=seconds)
        self._elapsed += seconds

    def jump(self, seconds: float) -> None:
        """Change the wall clock, as a time server or a person does. `elapsed()` does not change."""
        self._wall += timedelta(seconds=seconds)

    def reboot(self, seconds: float = 30.0) -> None:
        """Start a new boot after the machine was off for this many `seconds`."""
        self._boots += 1
        self._wall += timedelta(seconds=seconds)
        self._elapsed = 5.0


class MemoryTransport:
    """Keeps every batch in memory; `answer(batch)` returns its outcome (default: delivered)."""

    def __init__(self, answer: Callable[[Batch], Outcome] | None = None) -> None:
        self._answer = answer or _take
        self._lock = threading.Lock()
        self.batches: list[Batch] = []

    def dial(self, _outbox: Outbox, _settings: DestinationSettings) -> MemoryTransport:
        """Pass this method as `Worker(dial=…)`: every destination then uses this transport."""
        return self

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        attempt.on_start()
        with self._lock:
            self.batches.append(batch)
        attempt.on_bytes(batch.size)
        return self._answer(batch)

    def check(self) -> Outcome:
        return Delivered()

    def close(self) -> None:
        pass


def outbox_in(
    folder: str | os.PathLike[str],
    *,
    clock: FakeClock | None = None,
    environ: Mapping[str, str] | None = None,
) -> Outbox:
    """An outbox in `folder`, with default settings except those of `environ` (HUBQUEUE_…)."""
    return open_outbox(folder, environ={} if environ is None else environ, clock=clock)


def _take(batch: Batch) -> Outcome:
    model_id = batch.run.remote_id or f"model-{batch.run.id}"
    return Delivered(Remote(id=model_id, url=f"https://hub.example/models/{model_id}"))
