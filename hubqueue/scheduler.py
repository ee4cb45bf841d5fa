"""The scheduler ticks; it owns nothing. The only file that knows APScheduler.

Every job is a date that moves itself to its next due moment, because interval triggers fire early in half of
all gaps; the limits are the database's to keep. APScheduler reads the wall clock, which may jump: `tend`,
called from a loop on the monotonic clock, puts a job right that has not run when it should have.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from hubqueue.errors import HubqueueError

_LOG = logging.getLogger("hubqueue.worker")
_LATE = 5.0

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
        self._lock = threading.Lock()
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(max(2, len(works)))},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            daemon=True,
        )
        self._scheduler.add_listener(self._on_done, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)

    def start(self) -> None:
        """Call every work for the first time, now."""
        self._scheduler.start()
        with self._lock:
            for name in self._works:
                self._plan(name, 0.0)

    def wake(self, name: str) -> None:
        """Call a work as soon as possible: something has changed that it does not know of."""
        with self._lock:
            if name in self._at_work:
                self._woken.add(name)  # what it has seen may be out of date: again when it is done
            else:
                self._plan(name, 0.0)

    def tend(self) -> None:
        """Put right what a jump of the wall clock has displaced."""
        with self._lock:
            for name, expected in list(self._expected.items()):
                if name not in self._at_work and time.monotonic() - expected > _LATE:
                    self._plan(name, 0.0)

    def stop(self) -> None:
        """Call nothing any more; a work that is being done is waited for."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=True)

    def _call(self, name: str) -> float:
        with self._lock:
            self._at_work.add(name)
            self._woken.discard(name)
        try:
            return self._works[name]()
        except HubqueueError as error:
            _LOG.error("%s: %s", name, error)
        except Exception:
            _LOG.exception("%s failed unexpectedly; going on", name)
        return 1.0

    def _on_done(self, event: JobExecutionEvent) -> None:
        # Not from `_call` itself: until APScheduler has counted the job as done it would refuse the next one.
        name = event.job_id
        with self._lock:
            self._at_work.discard(name)
            again = 0.0 if name in self._woken or event.retval is None else event.retval
            self._plan(name, again)

    def _plan(self, name: str, delay: float) -> None:
        self._expected[name] = time.monotonic() + delay
        if self._scheduler.running:
            when = datetime.now(UTC) + timedelta(seconds=delay)
            self._scheduler.add_job(
                self._call, "date", run_date=when, args=(name,), id=name, replace_existing=True
            )
