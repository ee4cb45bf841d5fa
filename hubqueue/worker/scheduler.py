"""The scheduler ticks; it owns nothing. The only file that knows APScheduler.

Every job is a date that moves itself to its next due moment, because interval triggers fire early in half of
all gaps; the limits are the database's to keep. APScheduler reads the wall clock, which may jump: `tend`,
called from a loop on the monotonic clock, puts a job right that has not run when it should have.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_RUNNING

from hubqueue.domain.errors import HubqueueError

_LOG = logging.getLogger("hubqueue.worker")
_LATE = 5.0
_AFTER_TROUBLE = 1.0

# Does the work and says in how many seconds it wants to be called again.
Work = Callable[[], float]


class Scheduler:
    """Calls each work again and again, when it asked to be called."""

    def __init__(self, works: dict[str, Work]) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._works = works
        self._expected: dict[str, float] = {}
        self._woken: set[str] = set()
        self._at_work: set[str] = set()
        self._numbers = dict.fromkeys(works, 0)
        self._stopping = False
        self._lock = threading.Lock()
        self._done = threading.Condition(self._lock)
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(max(2, len(works)))},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            daemon=True,
        )

    def start(self) -> None:
        """Call every work for the first time, now."""
        self._scheduler.start()
        for name in self._works:
            self.wake(name)

    def wake(self, name: str) -> None:
        """Call a work as soon as possible: something has changed that it does not know of."""
        with self._lock:
            if name in self._at_work:
                self._woken.add(name)  # what it has seen may be out of date: again when it is done
                return
            number = self._next(name, 0.0)
        self._add(name, number, 0.0)

    def tend(self) -> None:
        """Put right what a jump of the wall clock has displaced."""
        now = time.monotonic()
        with self._lock:
            late = [name for name, expected in self._expected.items() if now - expected > _LATE]
        for name in late:
            self.wake(name)

    def stop(self) -> None:
        """Call nothing any more; a work that is being done is waited for."""
        if not self._scheduler.running:
            return
        with self._lock:
            self._stopping = True
        # APScheduler calls itself stopped before its own thread has handed out the jobs at hand, and then fails to
        # remove them: paused and empty first, it has none. Nor may it wait for the works, which it would do under
        # a lock that a work needs to plan its next date.
        self._scheduler.pause()
        self._scheduler.remove_all_jobs()
        self._scheduler.shutdown(wait=False)
        with self._lock:
            self._done.wait_for(lambda: not self._at_work)

    def _call(self, name: str, number: int) -> None:
        with self._lock:
            if self._stopping or number != self._numbers[name]:
                return  # nothing is called any more, or a newer date has taken the place of this one
            self._at_work.add(name)
            self._woken.discard(name)
            self._expected[name] = float("inf")
        again = self._do(name)
        with self._lock:
            self._at_work.discard(name)
            self._done.notify_all()
            again = 0.0 if name in self._woken else again
            number = self._next(name, again)
        self._add(name, number, again)

    def _do(self, name: str) -> float:
        try:
            return self._works[name]()
        except HubqueueError as error:
            _LOG.error("%s: %s", name, error)
        except Exception:
            _LOG.exception("%s failed unexpectedly; going on", name)
        return _AFTER_TROUBLE

    def _next(self, name: str, delay: float) -> int:
        self._numbers[name] += 1
        self._expected[name] = time.monotonic() + delay
        return self._numbers[name]

    def _add(self, name: str, number: int, delay: float) -> None:
        # Without our own lock: APScheduler calls back under its lock, and the two would wait for each other. Each
        # date is a job of its own, because APScheduler removes a job after it has handed it to a thread, and
        # would remove with it the next date of the same id where that one was planned in between.
        if self._scheduler.state == STATE_RUNNING:
            with contextlib.suppress(JobLookupError):
                self._scheduler.remove_job(f"{name} {number - 1}")
            when = datetime.now(UTC) + timedelta(seconds=delay)
            arguments = (name, number)
            self._scheduler.add_job(self._call, "date", run_date=when, args=arguments, id=f"{name} {number}")
