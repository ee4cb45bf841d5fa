"""Another process keeps a lock of the outbox and never releases it: a stopped process, a person's open transaction."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgres import Postgres
from sqlalchemy import text
from stage import environ_of, hubqueue, kill, python, wait_until

import hubqueue as package
from hubqueue.outbox.database import migration, patience, transactions
from hubqueue.outbox.outbox import open_outbox

pytestmark = pytest.mark.usefixtures("migrated_home")

# Seconds. The allowed waits are compared, not the time that passed: a busy machine confuses nothing.
FULL_WAIT = 0.5

_DATABASE = """
import sys, threading
from hubqueue.outbox.outbox import open_outbox
with open_outbox(sys.argv[1]) as outbox:
    path, driver = outbox.database.path, outbox.database._driver
connection = driver.connect(str(path), isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
threading.Event().wait()
"""
_MIGRATIONS = """
import sys, threading
from pathlib import Path
from hubqueue.outbox.locks import Lock
lock = Lock(Path(sys.argv[1]) / "locks" / "migrate.lock")
assert lock.try_acquire()
print("held", flush=True)
threading.Event().wait()
"""


@contextmanager
def _kept_by_a_stopped_process(home: Path, code: str, **environ: str) -> Iterator[Callable[[], None]]:
    """A process that takes the lock and is stopped (SIGSTOP). Yields what kills it."""
    process = python(code, environ_of(home, **environ), str(home))
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "held"
        os.kill(process.pid, signal.SIGSTOP)
        yield lambda: kill(process)
    finally:
        kill(process)


@pytest.fixture(params=["auto", "sqlite3"])
def driver(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both journals: with a rollback journal the lock keeps readers out too."""
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    monkeypatch.setenv("HUBQUEUE_OUTBOX__BUSY_TIMEOUT", str(FULL_WAIT))
    monkeypatch.setenv("HUBQUEUE_OUTBOX__DRIVER", request.param)
    return str(request.param)


class Waits:
    """The real waits in vain of this process, in order, each as the seconds that it was allowed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._allowed: dict[Hashable, float] = {}
        self._in_vain: list[float] = []
        for module in (transactions, migration):
            monkeypatch.setattr(module, "seconds_for", self._seconds_for)
            monkeypatch.setattr(module, "waited", self._waited)

    def of(self, act: Callable[[], object]) -> list[float]:
        """The waits in vain of one call, which takes at least as long as the longest of them."""
        self._in_vain.clear()
        begun = time.monotonic()
        act()
        taken = time.monotonic() - begun
        assert taken >= max(self._in_vain, default=0.0)
        return list(self._in_vain)

    def _seconds_for(self, lock: Hashable, usual: float) -> float:
        self._allowed[lock] = patience.seconds_for(lock, usual)
        return self._allowed[lock]

    def _waited(self, lock: Hashable, *, in_vain: bool) -> None:
        if in_vain:
            self._in_vain.append(self._allowed[lock])
        patience.waited(lock, in_vain=in_vain)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    return Waits(monkeypatch)


def test_only_the_first_call_waits_the_full_time(
    driver: str, home: Path, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    caplog.clear()
    with _kept_by_a_stopped_process(home, _DATABASE, HUBQUEUE_OUTBOX__DRIVER=driver):
        first = waits.of(lambda: run.log_metrics({"loss": 1.0}, epoch=0))
        later = [waits.of(lambda at=at: run.log_metrics({"loss": 1.0}, epoch=at)) for at in range(1, 6)]

        assert max(first) == FULL_WAIT
        assert all(sum(each) < FULL_WAIT / 2 for each in later)
        assert any(later)
        (said,) = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
        assert said.startswith("the metrics could not be saved yet: the outbox ")
        assert "database is locked (another program holds its lock" in said
    assert run.log_metrics({"loss": 1.0}, epoch=6) is not None
    assert run.finish(timeout=0).unsaved == 0


def test_the_start_of_a_second_run_does_not_wait_again(driver: str, home: Path, waits: Waits) -> None:
    with _kept_by_a_stopped_process(home, _DATABASE, HUBQUEUE_OUTBOX__DRIVER=driver):
        first = waits.of(lambda: package.start_run("yolov8n.pt", worker="none"))
        second = waits.of(lambda: package.start_run("yolov8s.pt", worker="none"))

    assert max(first) == FULL_WAIT
    assert 0 < sum(second) < FULL_WAIT / 2


def test_a_wait_that_succeeds_makes_the_next_one_long_again(driver: str, home: Path, waits: Waits) -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    with _kept_by_a_stopped_process(home, _DATABASE, HUBQUEUE_OUTBOX__DRIVER=driver):
        first = waits.of(lambda: run.log_metrics({"loss": 1.0}, epoch=0))
    assert run.log_metrics({"loss": 1.0}, epoch=1) is not None
    with _kept_by_a_stopped_process(home, _DATABASE, HUBQUEUE_OUTBOX__DRIVER=driver):
        again = waits.of(lambda: run.log_metrics({"loss": 1.0}, epoch=2))

    assert max(first) == max(again) == FULL_WAIT


def test_finish_uses_its_time_to_wait_for_the_lock(driver: str, home: Path) -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    with _kept_by_a_stopped_process(home, _DATABASE, HUBQUEUE_OUTBOX__DRIVER=driver) as release:
        assert run.log_metrics({"loss": 1.0}, epoch=0) is None  # one full wait in vain
        assert run.log_metrics({"loss": 1.0}, epoch=1) is None
        left = []
        ending = threading.Thread(target=lambda: left.append(run.finish(timeout=100)))
        ending.start()
        # It has tried in vain several times.
        wait_until(lambda: sum(run._saving._survivor._repeated.values()) > 5)
        release()
        ending.join()

    assert left[0].unsaved == 0
    with open_outbox(home, environ={"HUBQUEUE_OUTBOX__DRIVER": driver}) as outbox:
        row = outbox.stats.run(str(run.id))
    assert row is not None
    assert row["state"] == "finished"


def test_finish_ends_at_its_deadline_when_the_lock_never_comes(driver: str, home: Path) -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    with _kept_by_a_stopped_process(home, _DATABASE, HUBQUEUE_OUTBOX__DRIVER=driver):
        left = run.finish(timeout=1)  # without a limit, it would never end

    assert left or left.unsaved == 0


@pytest.mark.usefixtures("new_home")
def test_a_lock_of_the_migrations_that_never_comes_is_survived(
    home: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUBQUEUE_OUTBOX__BUSY_TIMEOUT", str(FULL_WAIT))
    (home / "locks").mkdir(parents=True)
    home.chmod(0o700)
    with _kept_by_a_stopped_process(home, _MIGRATIONS):
        first = waits.of(lambda: package.start_run("yolov8n.pt", home=home, worker="none"))
        runs = []
        second = waits.of(lambda: runs.append(package.start_run("yolov8n.pt", home=home, worker="none")))
        (run,) = runs
        assert run.log_metrics({"loss": 1.0}, epoch=0) is None

    assert max(first) == FULL_WAIT
    assert 0 < sum(second) < FULL_WAIT / 2
    assert "a lock is not released" in caplog.text
    assert run.finish(timeout=30).unsaved == 0


def test_a_command_says_what_holds_the_lock(driver: str, home: Path) -> None:
    package.start_run("yolov8n.pt", worker="none").finish(timeout=0)
    environ = environ_of(home, HUBQUEUE_OUTBOX__BUSY_TIMEOUT="0.1", HUBQUEUE_OUTBOX__DRIVER=driver)
    with _kept_by_a_stopped_process(home, _DATABASE, HUBQUEUE_OUTBOX__DRIVER=driver):
        done = hubqueue(environ, "resume", "hub")

    assert done.returncode == 1
    assert "database is locked" in done.stderr
    assert "a stopped process" in done.stderr


def test_a_server_whose_lock_never_comes_is_like_a_file(
    postgres: Postgres,
    home: Path,
    waits: Waits,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    monkeypatch.setenv("HUBQUEUE_OUTBOX__URL", postgres.new_database(migrated=True))
    monkeypatch.setenv("HUBQUEUE_OUTBOX__BUSY_TIMEOUT", str(FULL_WAIT))
    run = package.start_run("yolov8n.pt", worker="none")
    with open_outbox(home) as other, other.database.write() as tx:
        tx.execute(text("LOCK TABLE lanes, entries IN ACCESS EXCLUSIVE MODE"))

        first = waits.of(lambda: run.log_metrics({"loss": 1.0}, epoch=0))
        later = [waits.of(lambda at=at: run.log_metrics({"loss": 1.0}, epoch=at)) for at in range(1, 4)]

    assert max(first) == FULL_WAIT
    assert all(sum(each) < FULL_WAIT / 2 for each in later)
    assert any(later)
    assert caplog.text.count("another program holds its lock") == 1
    assert run.log_metrics({"loss": 1.0}, epoch=4) is not None
    assert run.finish(timeout=0).unsaved == 0
