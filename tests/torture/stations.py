"""The workers of a month: the real ones, except for the way they die, and for the line that they send through.

An upload over a slow link takes virtual hours. Its thread waits in the line meanwhile, as it would in a socket.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torture.month import Hub, Killed, What

from hubqueue.config.reader import DestinationSettings
from hubqueue.destinations.base import Attempt
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Aborted, Outcome
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.spool.spool import Spool
from hubqueue.testing import MemoryTransport
from hubqueue.worker.events import Fact
from hubqueue.worker.janitor import Janitor
from hubqueue.worker.worker import Worker

# Seconds of the real clock, between two looks of a waiting upload at the stop of its worker.
_LOOK = 0.01
_PATIENCE = 60.0


@dataclass(eq=False, slots=True)
class Upload:
    """An upload that takes a while. What ends it sets `over`; `killed` if that is the end of its worker."""

    run: str
    seconds: float
    over: threading.Event = field(default_factory=threading.Event)
    killed: bool = False


class Line(MemoryTransport):
    """The transport of one worker, which may be killed in it. `begun` are the slow uploads that nobody has planned yet."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub
        self._spool: Spool | None = None
        self.dying = ""
        self.dead = False
        self.begun: list[Upload] = []
        self.waiting: list[Upload] = []
        self.changed = threading.Condition()

    def dial(self, outbox: Outbox, _settings: DestinationSettings) -> Line:
        self._spool = outbox.spool
        return self

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        self.dead = bool(self.dying)
        digest = self._digest(batch)
        if not self._hub.begin(batch, attempt, self.dying):
            return self._hub.take(batch, attempt, self.dying, digest)
        upload = Upload(batch.run.id, self._hub.upload)
        with self.changed:
            self.begun.append(upload)
            self.waiting.append(upload)
            self.changed.notify_all()
        try:
            while not upload.over.wait(_LOOK):
                if attempt.stop.is_set():
                    return Aborted("the worker stops")
            if upload.killed:
                raise Killed
            return self._hub.end(batch, digest)
        finally:
            self._hub.note(What.ARRIVED, upload.run, number=upload.seconds)
            with self.changed:
                if upload in self.waiting:
                    self.waiting.remove(upload)

    def release(self, upload: Upload, *, killed: bool = False) -> bool:
        """End an upload that is still running. Wait for its thread afterwards."""
        with self.changed:
            if upload not in self.waiting:
                return False
            self.waiting.remove(upload)
            upload.killed = killed
            upload.over.set()
            return True

    def _digest(self, batch: Batch) -> str:
        """Read the checkpoints of a batch, as a request does."""
        hasher = hashlib.sha256()
        for entry in batch.entries:
            if entry.snapshot is not None:
                assert self._spool is not None
                with closing(self._spool.open(entry.snapshot)) as body:
                    for block in body:
                        hasher.update(block)
        return hasher.hexdigest()


class Mortal(Worker):
    """A worker that can be killed: it releases nothing, but the kernel frees its lock."""

    def die(self) -> None:
        self._lock.release()

    def _attempt(self, crew: Any, first: Any) -> None:
        with contextlib.suppress(Killed):
            super()._attempt(crew, first)


class Station:
    """A worker's process, started."""

    def __init__(self, outbox: Outbox, hub: Hub, worker: type[Mortal], emit: Callable[[Fact], None]) -> None:
        self.outbox, self.line = outbox, Line(hub)
        self.worker = worker(outbox, emit=emit, on_free=self._wake, dial=self.line.dial)
        self.janitor = Janitor(outbox, emit)
        self.worker.start()
        self.janitor.scan()

    def waits(self) -> float:
        """The seconds until something is due."""
        due = self.worker.next_due()
        return math.inf if due is None else (due - self.outbox.database.now()).total_seconds()

    def settle(self) -> None:
        """Wait until every attempt has ended, but for the uploads over a slow link."""
        with self.line.changed:
            settled = self.line.changed.wait_for(
                lambda: self.worker.busy == len(self.line.waiting), _PATIENCE
            )
        assert settled, "an attempt did not end"

    def cut(self) -> None:
        """End the threads of a killed worker."""
        for upload in list(self.line.waiting):
            self.line.release(upload, killed=True)
        self.settle()

    def close(self) -> None:
        self.worker.stop(timedelta(0))
        self.outbox.close()

    def _wake(self) -> None:
        with self.line.changed:
            self.line.changed.notify_all()
