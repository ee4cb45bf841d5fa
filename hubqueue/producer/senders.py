"""Which worker sends for a run: a detached process, a thread of this process, or none. Set by `start_run(worker=…)`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal, Protocol

from hubqueue.config.home import Home
from hubqueue.domain.errors import HubqueueError, WorkerError
from hubqueue.outbox.outbox import COURTESY, open_outbox
from hubqueue.producer.survival import logger
from hubqueue.worker import daemon

WorkerMode = Literal["auto", "thread", "none"]
_LOG = logger()
# Seconds between checks that the detached worker is still alive.
_CHECK = 30.0
_CHECK_AT_END = 1.0
_LONGEST_CHECK = 300.0


def sender(
    mode: WorkerMode, home: Home, config: str | None, rows: Callable[[], Sequence[str | None]]
) -> Sender:
    """The sender for a `worker` mode of `start_run`. `rows` returns the run's current rows of `destinations`.

    A row is None if the storage cannot be read.
    """
    if mode == "auto":
        return Detached(home, config, rows)
    return InProcess(home.path, config) if mode == "thread" else NoSender()


class Sender(Protocol):
    """Sends for a run. Any method may raise a storage error or a `WorkerError`."""

    @property
    def sends(self) -> bool:
        """Whether anything is sent from now on."""
        ...

    def nudge(self) -> None:
        """Something was enqueued."""
        ...

    def finish(self) -> None:
        """The run has ended: make sure that a worker sends what is left."""
        ...

    def close(self, deadline: float) -> None:
        """Stop before `deadline`, a moment of `time.monotonic()`."""
        ...


class NoSender:
    """Sends nothing; another process drains the outbox."""

    sends = False

    def nudge(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self, deadline: float) -> None:
        pass


class Detached:
    """A separate worker process, which outlives this one; started again if it dies."""

    sends = True

    def __init__(self, home: Home, config: str | None, rows: Callable[[], Sequence[str | None]]) -> None:
        self._home, self._config, self._rows = home, config, rows
        self._check_at = 0.0
        self._interval = self._usual_interval = _CHECK

    def nudge(self) -> None:
        now = time.monotonic()
        if now >= self._check_at:
            rows = [each for each in self._rows() if each is not None]
            if rows:  # else the storage cannot be read: try again with the next call
                self._check_at = now + self._interval
                # A worker that was just started may send for the other rows too: the next check finds out.
                started = any(daemon.ensure_worker(self._home, each, config=self._config) for each in rows)
                # A worker that has to be started at every check cannot send for this run: check less often.
                self._interval = min(self._interval * 2, _LONGEST_CHECK) if started else self._usual_interval

    def finish(self) -> None:
        # The script waits now, so a worker that is exiting or has died is replaced without delay.
        self._check_at = 0.0
        self._interval = self._usual_interval = _CHECK_AT_END
        self.nudge()

    def close(self, deadline: float) -> None:
        pass


class InProcess:
    """A worker on daemon threads of this process. What is left at the end of the process waits for the next worker."""

    def __init__(self, home: Path, config: str | None) -> None:
        # A separate outbox, because the worker pauses between its writes and the training does not.
        self._outbox = open_outbox(home, config, courtesy=COURTESY)
        self._start()

    @property
    def sends(self) -> bool:
        """False when no thread can be started, and at the end of the interpreter, which freezes the threads.

        Then a wait for them never ends.
        """
        return not (self._cannot_start or sys.is_finalizing())

    def nudge(self) -> None:
        if sys.is_finalizing():
            return
        if not self._thread.is_alive():
            # A storage error ended the thread, and may be over now; or the outbox was replaced by another file.
            self._outbox.reopen()
            self._start()
        self._service.wake()

    def finish(self) -> None:
        self.nudge()

    def close(self, deadline: float) -> None:
        self._service.stop(timedelta(seconds=max(0.0, deadline - time.monotonic())))
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        # Slow to load, and a training with a separate worker does not need them. The thread must not load them itself: the
        # end of the interpreter freezes it, and an import that is frozen keeps every later one waiting for ever.
        import hubqueue.destinations.wire.api
        import hubqueue.outbox.moves.settle  # noqa: F401
        from hubqueue.worker import log as journal
        from hubqueue.worker.service import Service

        self._service = Service(self._outbox, emit=journal.write)
        self._thread = threading.Thread(target=self._work, name="hubqueue-service", daemon=True)
        self._cannot_start = True
        try:
            self._thread.start()
            self._cannot_start = False
        except RuntimeError as error:  # too many threads, or the interpreter ends (from Python 3.12 on)
            hint = "what is saved is sent by the next worker: hubqueue drain"
            raise WorkerError(f"no thread can be started: {error}", hint=hint) from error

    def _work(self) -> None:
        try:
            self._service.run()
        except (HubqueueError, RuntimeError) as error:  # a RuntimeError: no thread can be started
            _LOG.warning("the worker thread has ended: %s; it starts again with the next call", error)
        finally:
            self._outbox.close()  # it reopens automatically if the thread starts again
