"""The scheduler ticks; it owns nothing. The only file that knows APScheduler.

Every job is a single date that plans its next due moment itself, because interval triggers fire early in half of
all gaps. The database enforces the limits. APScheduler reads the wall clock, which may jump: `tend`, called from
a loop on the monotonic clock, runs a job that is late.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_RUNNING

from hubqueue.domain.errors import HubqueueError

_LOG = logging.getLogger("hubqueue.worker")
_LATE = 5.0
_AFTER_TROUBLE = 1.0

# Runs once and returns after how many seconds it is to run again.
Job = Callable[[], float]


class Scheduler:
    """Runs each job repeatedly, at the moment that the job requested."""

    def __init__(self, jobs: dict[str, Job]) -> None:
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._jobs = jobs
        self._expected: dict[str, float] = {}
        self._woken: set[str] = set()
        self._running: set[str] = set()
        self._numbers = dict.fromkeys(jobs, 0)
        self._stopping = False
        self._lock = threading.Lock()
        self._done = threading.Condition(self._lock)
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": _Threads(max(2, len(jobs)))},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
            daemon=True,
        )

    def start(self) -> None:
        """Run every job for the first time, now."""
        self._scheduler.start()
        for name in self._jobs:
            self.wake(name)

    def wake(self, name: str) -> None:
        """Run a job as soon as possible: something has changed that it has not seen."""
        with self._lock:
            if name in self._running:
                self._woken.add(name)  # what it has read may be outdated, so it runs again afterwards
                return
            number = self._next(name, 0.0)
        self._add(name, number, 0.0)

    def tend(self) -> None:
        """Run the jobs that are late because the wall clock has jumped."""
        now = time.monotonic()
        with self._lock:
            late = [name for name, expected in self._expected.items() if now - expected > _LATE]
        for name in late:
            self.wake(name)

    def stop(self) -> None:
        """Run no more jobs, and wait for the running ones."""
        if not self._scheduler.running:
            return
        with self._lock:
            self._stopping = True
        # APScheduler marks itself stopped before its own thread has submitted the due jobs, and then fails to remove
        # them. So it is paused and emptied first. It must not wait for running jobs either: it would do so under a
        # lock that a job needs to plan its next date.
        self._scheduler.pause()
        self._scheduler.remove_all_jobs()
        self._scheduler.shutdown(wait=False)
        with self._lock:
            self._done.wait_for(lambda: not self._running)

    def _call(self, name: str, number: int) -> None:
        with self._lock:
            if self._stopping or number != self._numbers[name]:
                return  # stopped, or a newer date has replaced this one
            self._running.add(name)
            self._woken.discard(name)
            self._expected[name] = float("inf")
        again = self._run_job(name)
        with self._lock:
            self._running.discard(name)
            self._done.notify_all()
            again = 0.0 if name in self._woken else again
            number = self._next(name, again)
        self._add(name, number, again)

    def _run_job(self, name: str) -> float:
        try:
            return self._jobs[name]()
        except HubqueueError as error:
            _LOG.error("%s: %s", name, error)
        except Exception:
            _LOG.exception("%s failed unexpectedly; it will run again", name)
        return _AFTER_TROUBLE

    def _next(self, name: str, delay: float) -> int:
        self._numbers[name] += 1
        self._expected[name] = time.monotonic() + delay
        return self._numbers[name]

    def _add(self, name: str, number: int, delay: float) -> None:
        # Without our own lock: APScheduler calls back under its lock, and the two would deadlock. Each date has an
        # id of its own, because APScheduler removes an id after it has submitted it to a thread. It would also
        # remove a next date with the same id that was planned meanwhile.
        if self._scheduler.state == STATE_RUNNING:
            with contextlib.suppress(JobLookupError):
                self._scheduler.remove_job(f"{name} {number - 1}")
            when = datetime.now(UTC) + timedelta(seconds=delay)
            arguments = (name, number)
            self._scheduler.add_job(self._call, "date", run_date=when, args=arguments, id=f"{name} {number}")


class _Threads(BaseExecutor):  # type: ignore[misc]  # APScheduler has no types
    """Runs the jobs on daemon threads.

    APScheduler's own executor uses `concurrent.futures`: the end of a process waits for its running jobs, and a job that
    is due after that is an error.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._due: queue.SimpleQueue[tuple[Any, list[datetime]] | None] = queue.SimpleQueue()

    def start(self, scheduler: Any, alias: str) -> None:
        super().start(scheduler, alias)
        for number in range(self._size):
            threading.Thread(target=self._work, name=f"hubqueue-job-{number}", daemon=True).start()

    def shutdown(self, wait: bool = True) -> None:
        del wait  # `Scheduler.stop` waits for the running jobs
        for _ in range(self._size):
            self._due.put(None)

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        self._due.put((job, run_times))

    def _work(self) -> None:
        while (due := self._due.get()) is not None:
            job, run_times = due
            try:
                events = run_job(job, job._jobstore_alias, run_times, self._logger.name)
            except Exception as error:
                self._run_job_error(job.id, error, sys.exc_info()[2])
            else:
                self._run_job_success(job.id, events)
