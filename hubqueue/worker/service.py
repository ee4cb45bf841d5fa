"""The worker as a service: worker, janitor and scheduler in one loop, until it is stopped or has nothing to do.

Used by `hubqueue worker` (and the detached process), by `hubqueue drain`, and inside a training process with
`worker="thread"`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from hubqueue.domain.errors import OutboxUnavailable
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.reach import obstacle, served
from hubqueue.outbox.stats import Owed
from hubqueue.outbox.trainings import RunIds
from hubqueue.worker.events import Emit, Fact
from hubqueue.worker.janitor import Janitor
from hubqueue.worker.progress import UploadProgress
from hubqueue.worker.scheduler import Scheduler
from hubqueue.worker.worker import Connect, Worker

# In seconds. A new entry of another process may stay unseen for this long; a poll costs a few reads and no lock.
_POLL = 0.5
_SCAN = 5.0
_TIDY = 600.0
_NEVER = datetime.max.replace(tzinfo=UTC)
_ELSEWHERE = "they were started for another address or key than this shell has"


class Service:
    """Runs a worker on an outbox. `run` blocks; `wake` and `stop` may be called from any thread."""

    def __init__(self, outbox: Outbox, *, emit: Emit, dial: Connect | None = None) -> None:
        self._outbox = outbox
        progress = UploadProgress(outbox.home)

        def note_and_emit(fact: Fact) -> None:
            progress.note(fact)
            emit(fact)

        self._janitor = Janitor(outbox, emit)
        self._stop = threading.Event()
        self._grace: timedelta | None = None
        self._woken = threading.Event()
        self._seen: int | None = None
        self._due = _NEVER
        self.worker = Worker(outbox, emit=note_and_emit, on_free=self.wake, dial=dial)
        jobs = {
            "step": self._step,
            "scan": self._scan,
            "renew": self._renew,
            "tidy": self._tidy,
        }
        self._scheduler = Scheduler(jobs)

    def wake(self) -> None:
        """Step now: something was enqueued, or a thread became free."""
        self._woken.set()
        self._scheduler.wake("step")

    def stop(self, grace: timedelta | None = None) -> None:
        """Make `run` end: no new claims, `grace` for running uploads (None: that of the configuration)."""
        if grace is not None:
            self._grace = grace
        if self._stop.is_set() and grace == timedelta(0):
            self.worker.abort()  # the second stop: no grace
        self._stop.set()

    def detect(self) -> None:
        """Record how dead trainings and workers ended, and copy what damaged outboxes still owe: then all that is owed counts."""
        self._janitor.scan()
        self._janitor.salvage()

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
        """Run until `stop` is called or `until` returns a reason to end. Returns the reason.

        With `only_one` it ends at once when other workers already serve all that this one could. `until` is
        called every `every` seconds, on the monotonic clock. `grace` is what running uploads get at the end
        (None: that of the configuration).
        """
        self._grace = grace
        if not self.worker.start(only_one=only_one):
            return "another worker is running"
        reason = "internal error"
        try:
            # Before the first step, so that a dead worker's leases are free at once.
            self.detect()
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
                return "the outbox was deleted, moved or replaced by another file"
            try:
                reason = until()
            except OutboxUnavailable:
                continue  # the jobs have reported it already, and try again
            if reason is not None:
                return reason
        return "interrupted"

    def _step(self) -> float:
        database = self._outbox.database
        version = database.version()
        # If nothing was written and nothing is due, an idle worker costs one cheap query, twice a second.
        if version is None or version != self._seen or self._woken.is_set() or database.now() >= self._due:
            self._woken.clear()
            self._seen = version
            self.worker.step()
            self._due = self.worker.next_due() or _NEVER
        return min(_POLL, max(0.0, (self._due - database.now()).total_seconds()))

    def _scan(self) -> float:
        self._janitor.scan()
        if self.worker.scan():
            self.wake()
        return _SCAN

    def _renew(self) -> float:
        self.worker.renew()
        return self._outbox.config.worker.lease.total_seconds() / 3

    def _tidy(self) -> float:
        self._janitor.tidy()
        return _TIDY


def idle_for(outbox: Outbox, worker: Worker, seconds: float) -> Callable[[], str | None]:
    """An `until` that ends a worker after `seconds` with nothing that it could send, now or later.

    A destination on hold keeps it: only a living worker probes it. The hold of a run, whose model the hub does not know,
    does not.
    """
    idle_since: list[float] = []

    def check() -> str | None:
        owed = outbox.stats.owed(within=worker.serves, probed=True)
        # A run without a lock was created by a shell command: whether its script is alive is unknown.
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
    run_id: RunIds,
    deadline: float | None,
    report: Callable[[Owed], None],
) -> Callable[[], str | None]:
    """An `until` that ends a drain when nothing is owed, when no worker can send what is left, or at `deadline`.

    `deadline` is a moment of `time.monotonic()`. At each check `report` receives what is still owed.
    """

    def check() -> str | None:
        owed = outbox.stats.owed(run_id)
        report(owed)
        if not owed.entries:
            return "everything is delivered"
        if owed.entries == owed.held and not worker.busy:
            return "the destination or the run is on hold"
        if owed.entries == outbox.stats.owed(run_id, within=worker.serves | served(outbox)).held:
            return _why_left(outbox, run_id)
        if deadline is not None and time.monotonic() >= deadline:
            return "timed out"
        return None

    return check


def _why_left(outbox: Outbox, run_id: RunIds) -> str:
    """Why nobody here can send what is left: that the same key is missing for all of it, or that it belongs elsewhere."""
    owed = outbox.stats.owed_by_destination()
    if run_id is not None:
        ids = [run_id] if isinstance(run_id, str) else run_id
        rows = [outbox.stats.run(each) for each in ids if outbox.stats.owed(each).entries]
        owed = {row["destination"]: 1 for row in rows if row is not None} or owed
    found = [obstacle(outbox, each) for each in outbox.addresses.all() if owed.get(each.name)]
    reasons = {each.what if each is not None and each.key else None for each in found}
    return reasons.pop() or _ELSEWHERE if len(reasons) == 1 else _ELSEWHERE
