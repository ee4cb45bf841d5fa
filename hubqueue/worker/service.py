"""The worker as a service: worker, janitor and scheduler in one loop, until it is told to stop or has nothing to do.

Used by `hubqueue worker` (and the detached process), by `hubqueue drain`, and inside a training process that
asked for `worker="thread"`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from hubqueue.domain.errors import OutboxUnavailable
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.reach import served
from hubqueue.outbox.stats import Owed
from hubqueue.worker.events import Emit, Fact
from hubqueue.worker.janitor import Janitor
from hubqueue.worker.progress import UploadProgress
from hubqueue.worker.scheduler import Scheduler
from hubqueue.worker.worker import Connect, Worker

# How long a new entry of another process may stay unseen. A look costs a few reads and no lock.
_LOOK = 0.5
_AROUND = 5.0
_TIDY = 600.0
_NEVER = datetime.max.replace(tzinfo=UTC)


class Service:
    """Runs a worker on an outbox. `run` blocks; `wake` and `stop` may be called from any thread."""

    def __init__(self, outbox: Outbox, *, emit: Emit, dial: Connect | None = None) -> None:
        self._outbox = outbox
        progress = UploadProgress(outbox.home)

        def tell(fact: Fact) -> None:
            progress.note(fact)
            emit(fact)

        self._janitor = Janitor(outbox, emit)
        self._stop = threading.Event()
        self._grace: timedelta | None = None
        self._woken = threading.Event()
        self._seen: int | None = None
        self._due = _NEVER
        self.worker = Worker(outbox, emit=tell, on_free=self.wake, dial=dial)
        works = {
            "step": self._step,
            "look around": self._look_around,
            "renew": self._renew,
            "tidy": self._tidy,
        }
        self._scheduler = Scheduler(works)

    def wake(self) -> None:
        """Something was enqueued, or a thread became free: look now."""
        self._woken.set()
        self._scheduler.wake("step")

    def stop(self, grace: timedelta | None = None) -> None:
        """Make `run` end: no new claims, `grace` for running uploads (None: what the configuration says)."""
        if grace is not None:
            self._grace = grace
        if self._stop.is_set() and grace == timedelta(0):
            self.worker.abort()  # told a second time: no grace any more
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def run(
        self,
        *,
        until: Callable[[], str | None] = lambda: None,
        every: float = 1.0,
        grace: timedelta | None = None,
        only_one: bool = False,
    ) -> str:
        """Work until `stop` is called or `until` gives a reason to end; the reason.

        `only_one` ends it at once where other workers are at work for all that this one could do.
        `until` is asked every so many seconds, on the monotonic clock. `grace` is what running uploads get at
        the end (None: what the configuration says).
        """
        self._grace = grace
        if not self.worker.start(only_one=only_one):
            return "another worker is at work"
        reason = "internal error"
        try:
            # Before the first step: a dead worker's leases are free at once.
            self._janitor.look_around()
            self._janitor.salvage()
            self._scheduler.start()
            reason = self._wait(until, every)
        finally:
            self._scheduler.stop()
            self.worker.stop(self._grace, reason=reason)
        return reason

    def _wait(self, until: Callable[[], str | None], every: float) -> str:
        while not self._stop.wait(every):
            self._scheduler.tend()
            if self._outbox.database.was_replaced():
                return "the outbox was replaced by another one"
            try:
                reason = until()
            except OutboxUnavailable:
                continue  # told by the works already; they go on trying
            if reason is not None:
                return reason
        return "interrupted"

    def _step(self) -> float:
        database = self._outbox.database
        version = database.version()
        # Nobody has written and nothing has come due: an idle worker asks one cheap question, twice a second.
        if version is None or version != self._seen or self._woken.is_set() or database.now() >= self._due:
            self._woken.clear()
            self._seen = version
            self.worker.step()
            self._due = self.worker.next_due() or _NEVER
        return min(_LOOK, max(0.0, (self._due - database.now()).total_seconds()))

    def _look_around(self) -> float:
        self._janitor.look_around()
        if self.worker.look_around():
            self.wake()
        return _AROUND

    def _renew(self) -> float:
        self.worker.renew()
        return self._outbox.config.worker.lease.total_seconds() / 3

    def _tidy(self) -> float:
        self._janitor.tidy()
        return _TIDY


def idle_for(outbox: Outbox, worker: Worker, seconds: float) -> Callable[[], str | None]:
    """An `until` that ends a worker after `seconds` without anything that it could send, now or later."""
    idle_since: list[float] = []

    def check() -> str | None:
        owed = outbox.stats.owed(within=worker.serves)
        # A run without a lock was made by a shell command: nobody can tell whether its script still lives.
        if owed.entries > owed.held or any(
            outbox.run_lock(run_id).exists() for run_id in outbox.stats.running(worker.serves)
        ):
            idle_since.clear()
        elif not idle_since:
            idle_since.append(time.monotonic())
        elif time.monotonic() - idle_since[0] >= seconds:
            return f"nothing to send for {seconds:g} s"
        return None

    return check


def nothing_left(
    outbox: Outbox,
    worker: Worker,
    *,
    run_id: str | None,
    deadline: float | None,
    told: Callable[[Owed], None],
) -> Callable[[], str | None]:
    """An `until` that ends a drain when nothing is owed, when nobody can send what is left, or at `deadline`.

    `deadline` is a moment of `time.monotonic()`; `told` gets at each look what is still owed.
    """

    def check() -> str | None:
        owed = outbox.stats.owed(run_id)
        told(owed)
        if not owed.entries:
            return "everything is delivered"
        if owed.entries == owed.held:
            return "the destination or the run is on hold"
        if owed.entries == outbox.stats.owed(run_id, within=worker.serves | served(outbox)).held:
            return "they were started for another address or key than this shell has"
        if deadline is not None and time.monotonic() >= deadline:
            return "timed out"
        return None

    return check
