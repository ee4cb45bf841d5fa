"""P8 in a process that trains repeatedly: a finished run holds no handles, and the next one reuses the outbox."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

import hubqueue as package
from hubqueue.outbox.outbox import open_outbox
from hubqueue.producer.run import Run
from hubqueue.sandbox import Sandbox

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))


def descriptors() -> list[str]:
    """The open files of the process, by name."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(each.readlink()))
        except FileNotFoundError:
            continue
    return sorted(found)


def train(**options: object) -> Run:
    run = package.start_run("yolov8n.pt", strict=True, **options)  # type: ignore[arg-type]
    run.log_metrics({"loss": 1.0}, epoch=0)
    run.finish(timeout=30)
    return run


@needs_proc
def test_finished_runs_hold_no_descriptor(home: Path) -> None:
    before = descriptors()

    runs = [train(worker="none") for _ in range(20)]

    assert all(run.url is None for run in runs)  # reading `url` opens none either
    assert Counter(descriptors()) <= Counter(before)  # handles of earlier tests may disappear


@needs_proc
def test_finished_runs_with_a_worker_of_their_own_hold_no_descriptor(
    hub: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULTRALYTICS_HUB_API", hub.url)
    monkeypatch.setenv("HUB_API_KEY", "key-of-the-tests")
    train(worker="thread")
    before = [each for each in descriptors() if "socket" not in each]

    runs = [train(worker="thread") for _ in range(5)]

    assert all(run.url for run in runs)
    # The sockets belong to the sandbox, which runs in this process too.
    assert Counter(each for each in descriptors() if "socket" not in each) <= Counter(before)


def test_the_next_run_of_a_process_opens_the_same_outbox() -> None:
    first = train(worker="none")
    assert first.outbox is not None
    known = len(first.outbox.database._engine._compiled_cache)  # type: ignore[arg-type]

    second = train(worker="none")

    assert second.outbox is first.outbox
    assert len(first.outbox.database._engine._compiled_cache) == known  # type: ignore[arg-type]


def test_the_end_of_one_run_does_not_affect_another() -> None:
    first = package.start_run("yolov8n.pt", worker="none", strict=True)
    second = package.start_run("yolov8s.pt", worker="none", strict=True)
    assert first.outbox is second.outbox is not None

    first.finish(timeout=0)

    assert second.outbox.database._patience_now() == 5.0
    assert second.log_metrics({"loss": 1.0}, epoch=0)


def test_other_settings_are_another_outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(worker="none")
    monkeypatch.setenv("HUBQUEUE_SPOOL__MAX_BYTES", "12345")

    assert train(worker="none").outbox is not first.outbox


def test_the_next_run_creates_a_deleted_outbox_again(home: Path) -> None:
    train(worker="none")
    shutil.rmtree(home)

    train(worker="none")

    with open_outbox(home, environ=dict(os.environ)) as outbox:
        assert len(outbox.stats.runs()) == 1


def test_a_running_run_creates_a_deleted_outbox_again(home: Path) -> None:
    run = package.start_run("yolov8n.pt", worker="none", strict=True)
    shutil.rmtree(home)

    run.log_metrics({"loss": 1.0}, epoch=0)

    with open_outbox(home, environ=dict(os.environ)) as outbox:
        assert [row["key"] for row in outbox.stats.entries(kind="metrics")] == ["0"]
    run.finish(timeout=0)


def test_a_run_that_ends_in_a_fork_does_not_affect_those_of_the_parent() -> None:
    run = package.start_run("yolov8n.pt", destination="hub", worker="none", strict=True)
    child = os.fork()
    if child == 0:
        try:
            other = package.start_run("yolov8s.pt", worker="none", strict=True)
            other.log_metrics({"loss": 1.0}, epoch=0)
            other.finish(timeout=0)
            os._exit(0)
        except BaseException:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert run.log_metrics({"loss": 1.0}, epoch=0)
    assert run.finish(timeout=0).entries == 2
