"""A home that is deleted, moved, replaced or cleaned while a training uses it."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest
import template
from _pytest.mark.structures import MarkDecorator
from stage import PATIENCE, Process, environ_of, hubqueue, kill, python, start_worker, wait_until

import hubqueue as package
from hubqueue.outbox.outbox import open_outbox
from hubqueue.producer.run import Run
from hubqueue.producer.senders import WorkerMode
from hubqueue.sandbox import Sandbox

DRIVERS = ("pysqlite3", "sqlite3")


@pytest.fixture(params=DRIVERS, autouse=True)
def _journal(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each SQLite library in turn: one keeps a write-ahead log, the older one a rollback journal."""
    if request.param == "pysqlite3":
        pytest.importorskip("pysqlite3", reason="there is no pysqlite3 wheel for this platform")
    template.lay(home, request.param)
    monkeypatch.setenv("HUBQUEUE_OUTBOX__DRIVER", request.param)
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    monkeypatch.setenv("HUB_API_KEY", "key-of-the-tests")


def with_either(name: str, values: Iterable[object], *, both: Container[object] = ()) -> MarkDecorator:
    """The values of a parameter, each with one of the two libraries, and `both` with both; slow tests do the rest."""
    pairs = [
        pytest.param(value, driver, marks=() if value in both or number % 2 == at else pytest.mark.slow)
        for number, value in enumerate(values)
        for at, driver in enumerate(DRIVERS)
    ]
    return pytest.mark.parametrize((name, "_journal"), pairs, indirect=["_journal"])


@pytest.fixture
def run(home: Path) -> Run:
    """A training that has saved two epochs; `backup` beside its home is a copy from after the first one."""
    started = package.start_run("yolov8n.pt", destination="hub", worker="none")
    assert started.log_metrics({"loss": 1.0}, epoch=0)
    shutil.copytree(home, backup_of(home))
    assert started.log_metrics({"loss": 1.0}, epoch=1)
    return started


def backup_of(home: Path) -> Path:
    return home.with_name("backup")


def epochs(home: Path, **settings: str) -> list[str]:
    """The epochs that the outbox at this path has, oldest first."""
    with open_outbox(home, environ={**os.environ, **settings}) as outbox:
        assert outbox.stats.miscounted() == []
        assert outbox.database.integrity() == "ok"
        return sorted((row["key"] for row in outbox.stats.entries(kind="metrics")), key=int)


def run_ids(home: Path) -> list[str]:
    with open_outbox(home, environ=dict(os.environ)) as outbox:
        return outbox.stats.run_ids()


def delete(home: Path) -> None:
    shutil.rmtree(home)


def delete_under_a_worker(home: Path) -> None:
    """As `rm -rf`, again until it succeeds: the worker may make a file in a folder that is being deleted."""
    wait_until(lambda: shutil.rmtree(home, ignore_errors=True) or not home.exists())


def delete_the_database(home: Path) -> None:
    (home / "outbox.db").unlink()


def delete_the_log(home: Path) -> None:
    for each in home.glob("outbox.db-*"):
        each.unlink()


def delete_only_the_shared_memory(home: Path) -> None:
    (home / "outbox.db-shm").unlink(missing_ok=True)


def delete_the_locks(home: Path) -> None:
    shutil.rmtree(home / "locks")


def delete_the_spool(home: Path) -> None:
    shutil.rmtree(home / "spool")


def move_away(home: Path) -> None:
    home.rename(home.with_name("home2"))


def restore_by_rename(home: Path) -> None:
    shutil.copyfile(backup_of(home) / "outbox.db", home / "restored")
    delete_the_log(home)
    (home / "restored").rename(home / "outbox.db")


def restore_by_copy(home: Path) -> None:
    """As `cp` does: into the same file."""
    delete_the_log(home)
    for each in backup_of(home).glob("outbox.db*"):
        shutil.copyfile(each, home / each.name)


def restore_all(home: Path) -> None:
    shutil.rmtree(home)
    shutil.copytree(backup_of(home), home)


def empty_the_database(home: Path) -> None:
    delete_the_log(home)
    os.truncate(home / "outbox.db", 0)


def put_another_outbox_there(home: Path) -> None:
    shutil.rmtree(home)
    open_outbox(home, environ=dict(os.environ)).close()


CHANGES = (
    *(delete, delete_the_database, delete_the_log, delete_only_the_shared_memory, delete_the_locks),
    *(delete_the_spool, move_away, restore_by_rename, restore_by_copy, restore_all, put_another_outbox_there),
)


@with_either("change", CHANGES, both=(delete, delete_the_log, restore_by_copy))
def test_what_a_training_saved_is_in_the_outbox_at_its_path_whatever_happens_to_the_home(
    home: Path, run: Run, change: Callable[[Path], None]
) -> None:
    run_id = run.id
    change(home)

    assert run.log_metrics({"loss": 1.0}, epoch=2)
    left = run.finish(timeout=0)

    assert epochs(home) == ["0", "1", "2"]
    assert run.id == run_id
    assert run_ids(home) == [run_id]
    assert left.unsaved == 0
    assert left.entries == 4  # with the registration


@with_either("change", [delete, move_away, restore_all, put_another_outbox_there])
def test_one_line_says_what_happened_to_the_outbox(
    home: Path, run: Run, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    change(home)

    for epoch in range(2, 5):
        run.log_metrics({"loss": 1.0}, epoch=epoch)
    run.finish(timeout=0)

    errors = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "while run" in errors[0]
    assert "clean or restore a home only while no training and no worker uses it" in errors[0]


def test_an_emptied_database_is_filled_again_from_memory(home: Path, run: Run) -> None:
    empty_the_database(home)

    run.log_metrics({"loss": 1.0}, epoch=2)
    run.finish(timeout=0)

    assert epochs(home) == ["0", "1", "2"]


@with_either("logs", [True, False])
def test_a_checkpoint_that_went_with_the_home_is_named_and_counted(
    home: Path, run: Run, tmp_path: Path, logs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    assert run.save_checkpoint(tmp_path / "last.pt", epoch=7)
    shutil.rmtree(home)

    if logs:
        run.log_metrics({"loss": 1.0}, epoch=8)
    left = run.finish(timeout=0)

    assert left.unsaved == 1
    assert "lost: the last checkpoint of epoch 7" in caplog.text
    status = hubqueue(environ_of(home), "status")
    assert "could not be saved" in status.stdout


def test_a_checkpoint_is_saved_into_a_spool_that_was_deleted(home: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    shutil.rmtree(home / "spool")

    assert run.save_checkpoint(tmp_path / "last.pt", epoch=2)

    assert len(list((home / "spool").glob("*.ckpt"))) == 1
    assert run.finish(timeout=0).unsaved == 0


def test_a_home_that_is_deleted_after_the_last_epoch_is_written_again_by_finish(home: Path, run: Run) -> None:
    shutil.rmtree(home)

    left = run.finish(timeout=0)

    assert left.entries == 3
    assert epochs(home) == ["0", "1"]


def test_finish_does_not_call_safe_what_no_file_has(
    home: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(home)
    home.write_text("a file in the place of the home")

    assert run.log_metrics({"loss": 1.0}, epoch=2) is None
    left = run.finish(timeout=0)

    assert left.unsaved == 3
    assert "saved on disk" not in caplog.text


TRAINING = """
import sys, hubqueue
run = hubqueue.start_run("yolov8s.pt", destination="hub", worker="none")
for line in open(sys.argv[1]):
    print(run.log_metrics({"loss": 1.0}, epoch=int(line)), flush=True)
"""


class Other(NamedTuple):
    """A second process that trains, and where it reads what to do."""

    process: Process
    orders: TextIO


@pytest.fixture
def other(home: Path) -> Iterator[Other]:
    """A second process that trains in this home, and saves an epoch for each number that it reads."""
    path = home.with_name("orders")
    os.mkfifo(path)
    process = python(TRAINING, environ_of(home), str(path))
    with path.open("w") as orders:
        yield Other(process, orders)
        kill(process)


def save(training: Other, epoch: int) -> int:
    assert training.process.stdout is not None
    print(epoch, file=training.orders, flush=True)
    while not (line := training.process.stdout.readline()).strip().isdecimal():
        assert line, "it has ended"
    return int(line)


@with_either("change", [delete, move_away, delete_the_log])
def test_two_trainings_of_one_home_both_keep_everything(
    home: Path, run: Run, other: Other, change: Callable[[Path], None]
) -> None:
    save(other, 10)
    change(home)

    for epoch in (11, 12):
        assert run.log_metrics({"loss": 1.0}, epoch=epoch - 9)
        save(other, epoch)

    assert epochs(home) == ["0", "1", "2", "3", "10", "11", "12"]
    assert len(run_ids(home)) == 2
    run.finish(timeout=0)


def test_a_kill_after_the_log_was_deleted_loses_nothing(home: Path, other: Other) -> None:
    save(other, 0)
    delete_the_log(home)
    save(other, 1)

    kill(other.process)

    assert epochs(home) == ["0", "1"]


@with_either("worker", ["auto", "thread"])
def test_uploads_continue_after_the_home_was_deleted(
    home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch, worker: WorkerMode
) -> None:
    for name, value in environ_of(home, hub.url).items():
        monkeypatch.setenv(name, value)
    run = package.start_run("yolov8n.pt", destination="hub", worker=worker)
    run.log_metrics({"loss": 1.0}, epoch=0)
    wait_until(lambda: bool(hub.models) and 0 in hub.metrics(hub.models[0]))

    delete_under_a_worker(home)
    run.log_metrics({"loss": 1.0}, epoch=1)
    left = run.finish(timeout=PATIENCE)

    assert not left
    assert len(hub.models) == 1
    assert set(hub.metrics(hub.models[0])) == {0, 1}


def test_a_worker_whose_home_is_deleted_ends_and_leaves_no_new_one(home: Path, hub: Sandbox) -> None:
    worker = start_worker(environ_of(home, hub.url))
    wait_until((home / "ballast").exists)  # it has started

    delete_under_a_worker(home)
    worker.wait(PATIENCE)

    assert not home.exists(), [*home.rglob("*")]


@with_either("command", ["status", "entries", "runs", "log"])
def test_a_look_at_a_home_whose_log_was_deleted_costs_the_training_nothing(
    home: Path, run: Run, command: str
) -> None:
    delete_the_log(home)

    shown = hubqueue(environ_of(home), command)
    run.log_metrics({"loss": 1.0}, epoch=2)
    run.finish(timeout=0)

    assert "Traceback" not in shown.stderr
    assert epochs(home) == ["0", "1", "2"]


@with_either("change", CHANGES)
def test_two_calls_for_one_epoch_stay_one_value(home: Path, run: Run, change: Callable[[Path], None]) -> None:
    run.log_metrics({"val": 2.0}, epoch=1)
    change(home)

    run.log_metrics({"val": 2.0}, epoch=0)
    run.finish(timeout=0)

    assert values(home) == {"0": {"loss": 1.0, "val": 2.0}, "1": {"loss": 1.0, "val": 2.0}}


@with_either("change", [restore_by_rename, restore_all, put_another_outbox_there])
def test_what_the_hub_has_of_an_epoch_is_not_replaced_by_less(
    home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    for name, value in environ_of(home, hub.url).items():
        monkeypatch.setenv(name, value)
    run = package.start_run("yolov8n.pt", destination="hub", worker="none")
    run.log_metrics({"loss": 1.0}, epoch=0)
    shutil.copytree(home, backup_of(home))
    run.log_metrics({"val": 2.0}, epoch=0)
    run.log_metrics({"loss": 1.0}, epoch=1)
    hubqueue(os.environ, "drain")
    change(home)

    run.log_metrics({"val": 2.0}, epoch=1)
    run.finish(timeout=0)
    hubqueue(os.environ, "drain")

    (model,) = hub.models
    assert hub.metrics(model) == {0: {"loss": 1.0, "val": 2.0}, 1: {"loss": 1.0, "val": 2.0}}
    assert [each.kind for each in hub.requests].count("registration") == 1


def values(home: Path) -> dict[str, dict[str, float]]:
    """What will be sent of each epoch."""
    with open_outbox(home, environ=dict(os.environ)) as outbox:
        rows = outbox.stats.entries(kind="metrics")
        found = {row["key"]: json.loads(outbox.stats.payload(row["id"]) or "") for row in rows[::-1]}
    return dict(sorted(found.items()))
