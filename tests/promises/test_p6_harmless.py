"""P6: the training thread never uses the network, never gets an exception because of storage or network trouble
(unless `strict`), never waits longer than its timeout, and its process is not changed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
from stage import PATIENCE, environ_of, hubqueue, python, totals, wait_until

import hubqueue as package
from hubqueue.domain.drafts import metrics_draft
from hubqueue.domain.errors import ConfigError, InvalidMetrics, InvalidModel, OutboxUnavailable, RunFinished
from hubqueue.domain.lifecycle import State
from hubqueue.outbox.locks import Lock
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    return home


def test_the_training_thread_makes_no_connection(
    at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("the training thread used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "last.pt").write_bytes(b"weights")

    run = package.start_run("yolov8n.pt", worker="none", strict=True, destination="hub")
    run.log_metrics({"loss": 1.0}, epoch=0)
    run.save_checkpoint(tmp_path / "last.pt", epoch=0)
    left = run.finish(timeout=0)

    assert left.entries == 3


@pytest.mark.usefixtures("new_home")
def test_importing_and_starting_leave_the_process_as_it_was(at_home: Path) -> None:
    code = """
import signal, sys, os, threading, logging
numbers = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
def snapshot():
    return ([signal.getsignal(number) for number in numbers], sys.stdout, sys.stderr, sys.excepthook,
            threading.excepthook, os.getcwd(), dict(os.environ), logging.getLogger().handlers[:], logging.getLogger().level)
before = snapshot()
import hubqueue
run = hubqueue.start_run("yolov8n.pt", worker="none", strict=True)
run.log_metrics({"loss": 1}, epoch=0)
run.finish(timeout=0)
assert snapshot() == before
assert not [t for t in threading.enumerate() if t is not threading.main_thread()], threading.enumerate()
print("as it was")
"""
    process = python(code, environ_of(at_home), fresh=True)

    out, _ = process.communicate(timeout=60)

    assert out.strip().splitlines()[-1] == "as it was"


def test_a_run_can_start_offline(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULTRALYTICS_HUB_API", "http://127.0.0.1:9")
    monkeypatch.setenv("HUB_API_KEY", "key-of-the-tests")

    run = package.start_run("yolov8n.pt", worker="thread", strict=True)
    run.log_metrics({"loss": 1.0}, epoch=0)
    left = run.finish(timeout=0.5)

    assert (left.entries, left.unsaved, run.remote_id) == (2, 0, None)


def test_finish_waits_no_longer_than_its_timeout(
    at_home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULTRALYTICS_HUB_API", hub.url)
    monkeypatch.setenv("HUB_API_KEY", "key-of-the-tests")
    monkeypatch.setenv("HUBQUEUE_DESTINATIONS__HUB__ANSWER_TIMEOUT", "3600")
    hub.fail("any:silence:seconds=3600")
    run = package.start_run("yolov8n.pt", worker="thread", strict=True)
    run.log_metrics({"loss": 1.0}, epoch=0)

    # If it waited for the response, or for the end of the attempt, it would take an hour.
    left = run.finish(timeout=1.0)

    assert left.entries == 2


def test_finish_does_not_wait_for_a_locked_database(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBQUEUE_OUTBOX__BUSY_TIMEOUT", "3600")
    run = package.start_run("yolov8n.pt", worker="none")
    with open_outbox(at_home, environ={}) as other, other.database.write():
        run._saving.backlog.put(metrics_draft("{}", 0))

        # With the configured busy timeout it would take an hour.
        left = run.finish(timeout=0.2)

    assert left.unsaved == 1


def test_a_full_spool_does_not_disturb_the_training(
    at_home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    (tmp_path / "last.pt").write_bytes(b"x" * 1000)
    outbox = run.outbox
    assert outbox is not None
    object.__setattr__(outbox.config.spool, "max_bytes", 10)

    assert run.save_checkpoint(tmp_path / "last.pt", epoch=0) is None
    assert run.log_metrics({"loss": 1.0}, epoch=0) is not None

    assert "does not fit" in caplog.text
    assert run.finish(timeout=0).unsaved == 1


def test_metrics_are_kept_in_memory_until_the_storage_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the home should be")
    monkeypatch.setenv("HUBQUEUE_HOME", str(blocked))
    run = package.start_run("yolov8n.pt", worker="none")

    assert run.log_metrics({"loss": 1.0}, epoch=0) is None
    assert run.log_metrics({"loss": 0.5}, epoch=1) is None
    assert caplog.text.count("NOTHING of this run can be saved") == len(caplog.records) == 1
    blocked.unlink()
    run._saving.opening.try_again()  # some seconds later
    assert run.log_metrics({"loss": 0.4}, epoch=2) is not None

    with open_outbox(blocked, environ={}) as outbox:
        assert totals(outbox) == {"enqueued": 4, "pending": 4}
    assert run.finish(timeout=0).unsaved == 0


def test_what_never_reached_the_disk_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the home should be")
    monkeypatch.setenv("HUBQUEUE_HOME", str(blocked))
    run = package.start_run("yolov8n.pt", worker="none")
    run.log_metrics({"loss": 1.0}, epoch=0)

    left = run.finish(timeout=0)

    assert left
    assert left.unsaved == 1


@pytest.mark.usefixtures("new_home")
def test_strict_raises_storage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the home should be")
    monkeypatch.setenv("HUBQUEUE_HOME", str(blocked))

    with pytest.raises(OutboxUnavailable):
        package.start_run("yolov8n.pt", worker="none", strict=True)


@pytest.mark.usefixtures("new_home")
def test_a_damaged_outbox_is_set_aside_and_the_training_continues(
    at_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    at_home.mkdir()
    garbage = b"this was a database once" * 1000
    (at_home / "outbox.db").write_bytes(garbage)

    run = package.start_run("yolov8n.pt", worker="none")

    assert run.log_metrics({"loss": 1.0}, epoch=0) is not None
    (aside,) = at_home.glob("outbox.db.damaged-*")
    assert aside.read_bytes() == garbage
    assert str(aside) in caplog.text


def test_errors_that_the_caller_can_fix_are_raised_at_once(at_home: Path) -> None:
    run = package.start_run("yolov8n.pt", worker="none")

    with pytest.raises(InvalidMetrics):
        run.log_metrics([("loss", 1.0)], epoch=0)  # type: ignore[arg-type]
    with pytest.raises(InvalidMetrics):
        run.log_metrics({"loss": 1.0}, epoch=-1)
    with pytest.raises(InvalidModel):
        package.start_run("what is this", worker="none")
    run.finish(timeout=0)
    with pytest.raises(RunFinished):
        run.log_metrics({"loss": 1.0}, epoch=1)


@pytest.mark.usefixtures("new_home")
def test_a_misspelt_setting_is_reported_before_the_training_starts(at_home: Path) -> None:
    at_home.mkdir()
    (at_home / "config.toml").write_text("[rate_limits]\nmetric = 3\n")

    with pytest.raises(ConfigError, match="metrics"):
        package.start_run("yolov8n.pt", worker="none")


def test_an_exception_ends_the_run_as_failed(at_home: Path) -> None:
    with pytest.raises(ZeroDivisionError), package.start_run("yolov8n.pt", worker="none") as run:
        run.log_metrics({"loss": 1 / 0}, epoch=0)

    with open_outbox(at_home, environ={}) as outbox:
        assert [row["state"] for row in outbox.stats.runs()] == ["failed"]


def test_children_of_a_fork_log_too_and_do_not_hang(at_home: Path) -> None:
    run = package.start_run("yolov8n.pt", worker="none", strict=True)
    run.log_metrics({"loss": 1.0}, epoch=0)
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=run.log_metrics, args=({"loss": n},), kwargs={"epoch": n}) for n in range(1, 5)
    ]

    for child in children:
        child.start()
    for child in children:
        child.join(60)

    assert [child.exitcode for child in children] == [0, 0, 0, 0]
    run.log_metrics({"loss": 1.0}, epoch=9)
    with open_outbox(at_home, environ={}) as outbox:
        kept = outbox.stats.entries(state=State.PENDING, kind="metrics")
        assert sorted(row["key"] for row in kept) == ["0", "1", "2", "3", "4", "9"]


def test_the_child_of_a_fork_starts_no_worker_of_its_own(
    at_home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULTRALYTICS_HUB_API", hub.url)
    monkeypatch.setenv("HUB_API_KEY", "key-of-the-tests")
    monkeypatch.setenv("HUBQUEUE_RATE_LIMITS__METRICS", "0.05")
    run = package.start_run("yolov8n.pt", worker="thread", strict=True)
    child = os.fork()
    if child == 0:
        try:
            run.log_metrics({"loss": 1.0}, epoch=0)
            os._exit(len([each for each in threading.enumerate() if each.name.startswith("hubqueue")]))
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(99)
    _, ended = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(ended) == 0
    assert not run.finish(timeout=90)
    assert hub.metrics(hub.models[0]) == {0: {"loss": 1.0}}


@pytest.mark.parametrize("children", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_forked_children_can_write_while_other_threads_write(at_home: Path, children: int) -> None:
    run = package.start_run("yolov8n.pt", worker="none", strict=True)
    done = threading.Event()

    def write() -> None:
        for epoch in range(1000, 100_000):
            run.log_metrics({"loss": 1.0}, epoch=epoch)
            if done.is_set():
                return

    thread = threading.Thread(target=write)
    thread.start()
    ends = []
    for epoch in range(children):
        child = os.fork()
        if child == 0:
            try:
                run.log_metrics({"loss": 1.0}, epoch=epoch)
                os._exit(0)
            except BaseException:
                os._exit(99)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    done.set()
    thread.join()

    assert ends == [0] * children


def test_threads_log_together(at_home: Path) -> None:
    run = package.start_run("yolov8n.pt", worker="none", strict=True, destination="hub")
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for epoch in range(first, first + 50):
                run.log_metrics({"loss": epoch}, epoch=epoch)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n * 50,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert run.finish(timeout=0).entries == 401


def test_a_process_with_a_worker_thread_exits_at_once(at_home: Path, hub: Sandbox) -> None:
    hub.fail("any:silence:seconds=100")
    code = """
import hubqueue
run = hubqueue.start_run("yolov8n.pt", worker="thread", strict=True)
run.log_metrics({"loss": 1}, epoch=0)
import threading
threading.Event().wait(1)
print("end of the script")
"""
    process = python(code, environ_of(at_home, hub.url), fresh=True)

    out, _ = process.communicate(timeout=40)

    assert process.returncode == 0, out
    assert "end of the script" in out


def test_a_detached_worker_outlives_its_trainer_and_exits_when_idle(at_home: Path, hub: Sandbox) -> None:
    code = """
import hubqueue, os
run = hubqueue.start_run("yolov8n.pt", strict=True)
run.log_metrics({"loss": 1}, epoch=0)
os._exit(0)
"""
    environ = environ_of(at_home, hub.url, HUBQUEUE_WORKER__IDLE_EXIT="1")

    out, _ = python(code, environ).communicate(timeout=60)

    assert out == ""
    assert hub.wait_until(
        lambda: bool(hub.models) and hub.metrics(hub.models[0]) == {0: {"loss": 1}}, timeout=PATIENCE
    )
    wait_until(lambda: '"alive": false' in hubqueue(environ, "status", "--json").stdout)


@pytest.mark.usefixtures("new_home")
def test_an_exiting_worker_is_replaced(at_home: Path, hub: Sandbox) -> None:
    at_home.mkdir(mode=0o700)
    (at_home / "locks").mkdir(mode=0o700)
    leaving = Lock(at_home / "locks" / "detached.lock")
    assert leaving.try_acquire()
    code = """
import hubqueue
run = hubqueue.start_run("yolov8n.pt", strict=True)
run.log_metrics({"loss": 1}, epoch=0)
print("logged", flush=True)
print(run.finish(timeout=60).entries)
"""
    trainer = python(code, environ_of(at_home, hub.url, HUBQUEUE_WORKER__IDLE_EXIT="1"))
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "logged\n"

    threading.Event().wait(1.5)  # by now `finish` has checked, and has found a worker
    leaving.release()

    assert trainer.communicate(timeout=90)[0] == "0\n"
    assert len(hub.models) == 1


def detached_workers(home: Path) -> list[str]:
    """The processes that were started as a worker of a home."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_text().split("\0")
            if str(home) in command and "--detached" in command:
                found.append(path.parent.name)
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to see the processes")
@pytest.mark.usefixtures("new_home")
def test_many_trainers_start_one_worker(at_home: Path, hub: Sandbox) -> None:
    code = "import hubqueue; hubqueue.start_run('yolov8n.pt', strict=True).finish(timeout=60)"
    # The worker stays until all trainers have ended, even on a slow machine.
    environ = environ_of(at_home, hub.url, HUBQUEUE_WORKER__IDLE_EXIT="600")
    trainers = [python(code, environ) for _ in range(4)]

    for trainer in trainers:
        out, _ = trainer.communicate(timeout=90)
        assert (trainer.returncode, out) == (0, "")
    # A process that has hardly begun would become the worker after the stop.
    wait_until(lambda: len(detached_workers(at_home)) == 1)
    assert hubqueue(environ, "stop").returncode == 0

    log = (at_home / "worker.log").read_text()
    assert re.findall(r" worker \w+ (started|stopped): ", log) == ["started", "stopped"]
    assert len(hub.models) == 4


@pytest.mark.skipif(os.name == "nt", reason="needs a file system that can be made read-only")
def test_a_read_only_home_is_reported_in_one_line_with_a_hint(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        shown = hubqueue(environ_of(folder / "home"), "enqueue", "run", "yolov8n.pt")
    finally:
        subprocess.run(["umount", str(folder)], check=True)

    assert shown.returncode == 1
    assert shown.stderr.startswith("error: ")
    assert "hint: " in shown.stderr
    assert "Traceback" not in shown.stderr


def test_ctrl_c_reaches_the_training(at_home: Path, hub: Sandbox) -> None:
    code = """
import hubqueue, signal, os, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent process may ignore it: `make test &` in a script
run = hubqueue.start_run("yolov8n.pt", worker="thread", strict=True)
try:
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(10)
except KeyboardInterrupt:
    print("mine")
"""
    out, _ = python(code, environ_of(at_home, hub.url)).communicate(timeout=40)

    assert out.strip().splitlines()[-1] == "mine"


def test_the_import_is_lazy() -> None:
    code = "import sys, hubqueue; print(sorted({name.split('.')[0] for name in sys.modules} & {'sqlalchemy', 'requests', 'apscheduler', 'alembic', 'click'}))"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert out.strip() == "[]"


def test_damage_found_during_a_run_loses_no_metric(at_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = package.start_run("yolov8n.pt", worker="none")
    for epoch in range(200):
        run.log_metrics({f"scalar{n}": 1.0 for n in range(20)}, epoch=epoch)
    (at_home / "last.pt").write_bytes(b"weights")
    run.save_checkpoint(at_home / "last.pt", epoch=0)
    assert run.outbox is not None
    run.outbox.close()
    with (at_home / "outbox.db").open("r+b") as file:
        for page in range(2, 30):
            file.seek(4096 * page)
            file.write(b"\xff" * 8)

    assert run.log_metrics({"loss": 1.0}, epoch=200) is not None

    assert "was damaged" in caplog.text
    assert list(at_home.glob("outbox.db.damaged-*"))
    (kept,) = at_home.glob("spool.damaged-*")
    assert len(list(kept.glob("[!.]*"))) == 1
    assert run.finish(timeout=0).unsaved == 0


def test_a_run_ends_on_a_rollback_journal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection uses SQLite's busy timeout, which `finish` shortens."""
    monkeypatch.setattr("hubqueue.config.home.Home.is_network_file_system", lambda _home: True)
    run = package.start_run("yolov8n.pt", home=home, worker="none", strict=True, destination="hub")
    run.log_metrics({"loss": 1}, epoch=0)

    left = run.finish(timeout=0)

    assert left.entries == 2  # with the registration
