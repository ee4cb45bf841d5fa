"""Who sends for a run: a detached worker, this very process, or nobody. Chosen by `start_run(worker=…)`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Literal, Protocol

from hubqueue.config.home import Home
from hubqueue.domain.errors import HubqueueError
from hubqueue.outbox.outbox import COURTESY, open_outbox
from hubqueue.worker import daemon
from hubqueue.worker import log as journal
from hubqueue.worker.service import Service

WorkerMode = Literal["auto", "thread", "none"]
_LOG = logging.getLogger("hubqueue")
# How often a producer looks whether its detached worker still lives.
_LOOK = 30.0
_LOOK_AT_END = 1.0
_LONGEST_LOOK = 300.0


def sender(mode: WorkerMode, home: Home, config: str | None, row: Callable[[], str | None]) -> Sender:
    """Who sends in a mode of `start_run`. `row` gives the row of `destinations` that the run belongs to now."""
    if mode == "auto":
        return Detached(home, config, row)
    return InProcess(home.path, config) if mode == "thread" else Nobody()


class Sender(Protocol):
    """What a run needs of whoever sends for it. Any method may raise storage trouble or a `WorkerError`."""

    sends: bool

    def nudge(self) -> None:
        """Something was enqueued."""
        ...

    def finish(self) -> None:
        """The run has ended: make sure that somebody sends what is left."""
        ...

    def close(self, deadline: float) -> None:
        """Let go, before a moment of `time.monotonic()`."""
        ...


class Nobody:
    """Only saves; somebody else drains."""

    sends = False

    def nudge(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self, deadline: float) -> None:
        pass


class Detached:
    """A worker process of its own, which outlives this one; started again when it died."""

    sends = True

    def __init__(self, home: Home, config: str | None, row: Callable[[], str | None]) -> None:
        self._home, self._config, self._row = home, config, row
        self._look_at = 0.0
        self._every = self._usual = _LOOK

    def nudge(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            destination = self._row()
            if destination is not None:  # else the storage is in trouble: at the next call
                self._look_at = now + self._every
                started = daemon.ensure_worker(self._home, destination, config=self._config)
                # One that was started and is not there at the next look cannot send for this run.
                self._every = min(self._every * 2, _LONGEST_LOOK) if started else self._usual

    def finish(self) -> None:
        # Somebody waits now: a worker that was just leaving, or died, is replaced without delay.
        self._look_at = 0.0
        self._every = self._usual = _LOOK_AT_END
        self.nudge()

    def close(self, deadline: float) -> None:
        pass


class InProcess:
    """A worker on daemon threads of this process. What is left when the process ends waits for the next worker."""

    sends = True

    def __init__(self, home: Path, config: str | None) -> None:
        # An outbox of its own: a worker leaves gaps between its writes, the training does not.
        self._outbox = open_outbox(home, config, courtesy=COURTESY)
        self._begin()

    def nudge(self) -> None:
        if not self._thread.is_alive():
            self._begin()  # storage trouble ended it; by now there may be none
        self._service.wake()

    def finish(self) -> None:
        self.nudge()

    def close(self, deadline: float) -> None:
        self._service.stop(timedelta(seconds=max(0.0, deadline - time.monotonic())))
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _begin(self) -> None:
        self._service = Service(self._outbox, emit=journal.write)
        self._thread = threading.Thread(target=self._work, name="hubqueue-service", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._service.run()
        except HubqueueError as error:
            _LOG.warning("the worker thread has ended: %s; it starts again with the next call", error)
        finally:
            self._outbox.close()  # it opens again by itself should the thread begin again
