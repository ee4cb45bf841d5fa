"""A training that ended well was shown as failed, because it left by `sys.exit(0)` or never called `finish()`."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from stage import ROOT, end, environ_of, hubqueue, kill, platform_environ, python, start_worker, wait_until

import hubqueue as package
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.exits import can_report
from hubqueue.outbox.locks import Lock
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.ending.departure import departure
from hubqueue.sandbox import Sandbox
from hubqueue.worker.events import Fact
from hubqueue.worker.janitor import Janitor

pytestmark = pytest.mark.usefixtures("migrated_home")
# Nothing listens there: what is sent stays in the outbox.
NOWHERE = "http://127.0.0.1:9"
needs_exit_codes = pytest.mark.skipif(not can_report(), reason="this C library does not report exit codes")
# A shell lets what it starts in the background ignore Ctrl-C.
TAKES_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
STARTS = """
import os, signal, sys, threading
import hubqueue
run = hubqueue.start_run("yolo26n.pt", worker="none", args={"project": "coco", "name": "exp-1"})
print(run.id, flush=True)
run.log_metrics({"loss": 1.0}, epoch=0)
"""


@pytest.fixture
def environ(home: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    found = platform_environ(home, NOWHERE)
    for name in found.keys() - os.environ.keys() | {"HUBQUEUE_HOME"}:
        monkeypatch.setenv(name, found[name])
    return found


def ends(outbox: Outbox, run_id: str) -> tuple[str, dict[str, Any] | None]:
    """The state of a run, and the end that waits for its hub."""
    (run,) = outbox.stats.runs(run_id=run_id)
    waiting = [
        row for row in outbox.stats.entries(run_id=run_id, kind="completion") if row["state"] == "pending"
    ]
    assert len(waiting) < 2, waiting
    return run["state"], json.loads(outbox.stats.payload(waiting[0]["id"]) or "") if waiting else None


def scanned(environ: Mapping[str, str], run_id: str) -> tuple[str, str | None]:
    """The state of a run after a worker has looked for its process, and the error that its hub gets."""
    facts: list[Fact] = []
    with open_outbox(environ=environ) as outbox:
        Janitor(outbox, facts.append).scan()
        state, end = ends(outbox, run_id)
    return state, None if end is None else end["data"].get("error")


def ended(environ: Mapping[str, str], code: str, *, finalize: bool = True) -> tuple[str, str | None]:
    """How a script ended. Its interpreter is finalized, unless nothing depends on its exit code."""
    script = python(STARTS + code, environ, finalize=finalize)
    out, _ = script.communicate()
    return scanned(environ, out.split()[0])


@pytest.fixture
def quick_collections() -> Iterator[None]:
    """Garbage collections that leave out what the tests before have loaded: there is much of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def exits(*code: object) -> Callable[[], NoReturn]:
    return lambda: sys.exit(*code)


@pytest.mark.parametrize("leave", [exits(), exits(0), exits(None), exits(False)])
def test_a_block_that_is_left_with_exit_code_0_has_finished(
    environ: Mapping[str, str], leave: Callable[[], NoReturn]
) -> None:
    with pytest.raises(SystemExit), package.start_run("yolo26n.pt", worker="none") as run:
        leave()

    with open_outbox(environ=environ) as outbox:
        state, end = ends(outbox, run.id or "")
    assert state == "finished"
    assert end is not None
    assert end["event"] == "training_complete"


@pytest.mark.parametrize(
    ("leave", "error"),
    [
        (exits(3), "SystemExit: 3"),
        (exits(True), "SystemExit: True"),
        (exits("no data"), "SystemExit: no data"),
        (exits(0.0), "SystemExit: 0.0"),
    ],
)
def test_a_block_that_is_left_with_another_exit_code_has_failed(
    environ: Mapping[str, str], leave: Callable[[], NoReturn], error: str
) -> None:
    with pytest.raises(SystemExit), package.start_run("yolo26n.pt", worker="none") as run:
        leave()

    assert scanned(environ, run.id or "") == ("failed", error)


def test_the_exit_of_a_command_line_tool_is_no_failure() -> None:
    class Exit(RuntimeError):  # as click and typer have it
        def __init__(self, code: int) -> None:
            self.exit_code = code

    assert departure(Exit(0)).status == "finished"
    assert departure(Exit(1)).status == "failed"


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_a_person_or_an_event_loop_does_not_wait_for_an_interrupted_training(
    environ: Mapping[str, str], error: type[BaseException]
) -> None:
    assert departure(error()).timeout <= 2

    with pytest.raises(error), package.start_run("yolo26n.pt", worker="none") as run:
        raise error

    assert scanned(environ, run.id or "") == ("failed", error.__name__)


def test_ctrl_c_ends_a_block_while_its_hub_does_not_respond(environ: Mapping[str, str], home: Path) -> None:
    code = """
import hubqueue, signal, threading
with hubqueue.start_run("yolo26n.pt", worker="thread", args={"project": "coco"}) as run:
    run.log_metrics({"loss": 1.0}, epoch=0)
    print(run.id, flush=True)
    threading.Event().wait()
"""
    training = python(TAKES_CTRL_C + code, environ)
    assert training.stdout is not None
    run_id = training.stdout.readline().strip()

    training.send_signal(signal.SIGINT)
    training.communicate()

    assert scanned(environ, run_id) == ("failed", "KeyboardInterrupt")
    with open_outbox(environ=environ) as outbox:
        assert [row["key"] for row in outbox.stats.entries(run_id=run_id, kind="metrics")] == ["0"]


@pytest.mark.parametrize(
    "code",
    [
        "",
        pytest.param("sys.exit(0)", marks=pytest.mark.slow),
        pytest.param("exit(0)", marks=pytest.mark.slow),
        pytest.param("del run", marks=pytest.mark.slow),
        pytest.param("run = hubqueue.start_run('yolo26s.pt', worker='none')", marks=pytest.mark.slow),
        "threading.Thread(target=lambda: run.log_metrics({'loss': 2.0}, epoch=1)).start()",
        pytest.param("threading.Thread(target=lambda: 1 / 0).start()", marks=pytest.mark.slow),
        "pid = os.fork() or sys.exit(3); os.waitpid(pid, 0)",
    ],
)
def test_a_script_that_reaches_its_end_without_finish_has_finished(
    environ: Mapping[str, str], code: str
) -> None:
    assert ended(environ, code) == ("finished", None)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1 / 0", "ZeroDivisionError"),
        pytest.param("raise KeyboardInterrupt", "KeyboardInterrupt", marks=pytest.mark.slow),
        pytest.param(
            "import runpy; sys.argv[1:] = []; runpy.run_path('/nonexistent/train.py')",
            "FileNotFoundError",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_script_that_an_exception_ends_has_failed_with_its_name(
    environ: Mapping[str, str], code: str, error: str
) -> None:
    assert ended(environ, code) == ("failed", error)


@needs_exit_codes
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("sys.exit(3)", "exit code 3"),
        pytest.param("sys.exit('no data')", "exit code 1", marks=pytest.mark.slow),
        pytest.param("raise SystemExit(257)", "exit code 1", marks=pytest.mark.slow),
    ],
)
def test_a_script_that_ends_with_another_exit_code_has_failed(
    environ: Mapping[str, str], code: str, error: str
) -> None:
    assert ended(environ, code) == ("failed", error)


@needs_exit_codes
def test_the_status_shows_an_exit_code_before_any_worker_has_seen_it(environ: Mapping[str, str]) -> None:
    python(STARTS + "sys.exit(3)", environ, finalize=True).communicate()

    assert json.loads(hubqueue(environ, "status", "--json").stdout)["runs"][0]["state"] == "failed"


@needs_exit_codes
def test_the_hub_is_not_sent_an_end_that_the_exit_code_may_change(environ: Mapping[str, str]) -> None:
    script = python(STARTS + "sys.exit(0)", environ, finalize=True)
    run_id = script.communicate()[0].split()[0]

    with open_outbox(environ=environ) as outbox:
        assert waits(outbox, run_id)
        scanned(environ, run_id)
        assert not waits(outbox, run_id)
        assert not list((outbox.home.locks / "exits").iterdir())


@needs_exit_codes
@pytest.mark.parametrize(
    ("code", "event"),
    [
        ("sys.exit(3)", "training_failed"),
        pytest.param("", "training_complete", marks=pytest.mark.slow),
    ],
)
def test_the_hub_is_sent_one_end_and_the_right_one(hub: Sandbox, home: Path, code: str, event: str) -> None:
    environ = platform_environ(home, hub.url)
    worker = start_worker(environ)

    python(STARTS + code, environ, finalize=True).communicate()

    wait_until(lambda: any(hub.run(each).state != "training" for each in hub.runs))
    end(worker)
    (model,) = hub.runs
    received = [each.event for each in hub.run(model).events if each.event.startswith("training_")]
    assert [each for each in received if each not in ("training_started", "training_progress")] == [event]


def test_drain_sends_the_end_of_a_killed_training_that_owes_nothing_else(hub: Sandbox, home: Path) -> None:
    environ = platform_environ(home, hub.url)
    worker = start_worker(environ)
    script = python(STARTS + "threading.Event().wait()", environ)
    with open_outbox(environ=environ) as outbox:
        wait_until(lambda: outbox.stats.totals()["delivered"] > 0 and not outbox.stats.owed().entries)
        kill(worker)
        kill(script)

        drained = hubqueue(environ, "drain", "--timeout", "60")

    assert (drained.returncode, drained.stdout) == (0, "everything is delivered\n"), drained
    (model,) = hub.runs
    assert hub.run(model).events[-1].event == "training_failed"


@needs_exit_codes
def test_the_end_waits_for_a_process_that_takes_long_to_exit(environ: Mapping[str, str]) -> None:
    code = "import atexit, threading\natexit.register(lambda: (print('exits', flush=True), threading.Event().wait()))"
    script = python(code + STARTS, environ, fresh=True)  # its own handler runs after that of the package
    assert script.stdout is not None
    run_id = script.stdout.readline().strip()
    assert script.stdout.readline() == "exits\n"

    assert scanned(environ, run_id)[0] == "finished"
    with open_outbox(environ=environ) as outbox:
        assert waits(outbox, run_id)
        kill(script)  # as a crash of a library at the very end: the script had reached its end
        assert scanned(environ, run_id)[0] == "finished"
        assert not waits(outbox, run_id)


def waits(outbox: Outbox, run_id: str) -> bool:
    """Whether the end of a run waits for the exit code of its process."""
    (run,) = outbox.stats.runs(run_id=run_id)
    (lane,) = (lane for lane in run["lanes"] if lane["kind"] == "completion")
    return bool(lane["retry_at"] > outbox.database.now())


@pytest.mark.parametrize(
    "code",
    [
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.abort()",
        "os.kill(os.getpid(), signal.SIGTERM)",
    ],
)
def test_a_process_that_vanishes_is_interrupted(environ: Mapping[str, str], code: str) -> None:
    assert ended(environ, code, finalize=False) == ("interrupted", "the training ended without reporting")


def test_a_process_that_is_killed_while_it_starts_its_run_is_interrupted(environ: Mapping[str, str]) -> None:
    code = """
import os, signal
import hubqueue
from hubqueue.producer import opening
start = opening.open_run
def starts(*given, **named):
    start(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)
opening.open_run = starts
hubqueue.start_run("yolo26n.pt", worker="none", args={"project": "coco", "name": "exp-1"})
"""
    python(code, environ).communicate(timeout=90)
    with open_outbox(environ=environ) as outbox:
        (run,) = outbox.stats.runs()
        assert run["state"] == "running"

        Janitor(outbox, lambda _fact: None).scan()

        assert ends(outbox, run["id"])[0] == "interrupted"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_process_that_is_killed_after_a_commit_of_its_start_leaves_nothing_that_cannot_be_sent(
    tmp_path: Path, home: Path, number: int
) -> None:
    at = "HUBQUEUE_DESTINATIONS__LAB__"
    environ = environ_of(home, **{f"{at}TYPE": "folder", f"{at}PATH": str(tmp_path / "box")})
    code = f"""
import contextlib, os, signal
import hubqueue
from hubqueue.outbox.database.database import Database
real, left = Database.write, [{number}]
@contextlib.contextmanager
def write(self):
    with real(self) as tx:
        yield tx
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
Database.write = write
run = hubqueue.start_run("yolo26n.pt", destination="lab", worker="none")
run.log_metrics({{"loss": 1.0}}, epoch=0)
"""
    assert python(code, environ).wait(90) == -signal.SIGKILL

    drained = hubqueue(environ, "drain", "--timeout", "60")

    assert drained.returncode == 0, drained
    states = [json.loads(each.read_text())["state"] for each in (tmp_path / "box").glob("*/run.json")]
    with open_outbox(environ=environ) as outbox:
        assert states == [RunState.INTERRUPTED] * len(outbox.stats.runs())


def test_a_run_that_continues_another_one_leaves_no_lock_of_a_new_one(
    environ: Mapping[str, str], home: Path
) -> None:
    code = """
import hubqueue
for _ in range(2):
    with hubqueue.start_run("ABCDEFGHIJ0123456789", destination="hub", worker="none") as run:
        print(run.id)
"""

    said, _ = python(code, environ).communicate(timeout=90)

    locks = {each.name for each in (home / "locks").glob("run-*")}
    assert locks == {f"run-{line}.lock" for line in said.splitlines()}, said
    assert len(locks) == 1


def test_a_fork_that_outlives_its_training_does_not_say_how_it_ended(environ: Mapping[str, str]) -> None:
    code = """
training = os.getpid()
if os.fork():
    os.kill(training, signal.SIGKILL)
while os.getppid() == training:
    threading.Event().wait(0.01)
run.log_metrics({"loss": 2.0}, epoch=1)
sys.exit(0)
"""
    assert ended(environ, code)[0] == "interrupted"


def test_a_script_that_has_loaded_a_notebook_is_a_script(environ: Mapping[str, str]) -> None:
    loads = "import types; sys.modules['ipykernel'] = types.ModuleType('ipykernel')"

    assert ended(environ, loads, finalize=False)[0] == "finished"


def test_every_unfinished_run_of_a_script_is_ended(environ: Mapping[str, str]) -> None:
    code = "more = [hubqueue.start_run('yolo26n.pt', worker='none') for _ in range(3)]\nmore[0].finish(status='failed')"
    ended(environ, code)

    with open_outbox(environ=environ) as outbox:
        assert sorted(row["state"] for row in outbox.stats.runs()) == ["failed", *["finished"] * 3]


def test_the_end_of_a_fork_is_not_that_of_the_training(environ: Mapping[str, str]) -> None:
    code = """
pid = os.fork()
if not pid:
    run.log_metrics({"loss": 2.0}, epoch=1)
    sys.exit(0)
os.waitpid(pid, 0)
print("waiting", flush=True)
threading.Event().wait()
"""
    training = python(STARTS + code, environ, finalize=True)
    assert training.stdout is not None
    run_id = training.stdout.readline().strip()
    assert training.stdout.readline() == "waiting\n"

    assert scanned(environ, run_id) == ("running", None)

    kill(training)
    assert scanned(environ, run_id)[0] == "interrupted"


@pytest.mark.parametrize(
    ("method", "act", "expected"),
    [
        ("fork", "pass", ("finished", None)),
        ("fork", "sys.exit(0)", ("finished", None)),
        ("fork", "sys.exit(3)", ("failed", "SystemExit: 3")),
        ("fork", "1 / 0", ("failed", "ZeroDivisionError")),
        pytest.param("spawn", "pass", ("finished", None), marks=pytest.mark.slow),
        ("spawn", "1 / 0", ("failed", "ZeroDivisionError")),
    ],
)
def test_a_training_in_a_process_of_multiprocessing_ends_as_a_script_does(
    environ: Mapping[str, str], tmp_path: Path, method: str, act: str, expected: tuple[str, str | None]
) -> None:
    (tmp_path / "train.py").write_text(
        f"""
import multiprocessing, sys
def train():
    import hubqueue
    run = hubqueue.start_run("yolo26n.pt", worker="none", args={{"project": "coco"}})
    {act}
if __name__ == "__main__":
    process = multiprocessing.get_context("{method}").Process(target=train)
    process.start()
    process.join()
"""
    )
    code = f"import runpy; runpy.run_path({str(tmp_path / 'train.py')!r}, run_name='__main__')"
    if method == "spawn":  # the child imports the main module, so that it must be a file
        code = f"import subprocess, sys; subprocess.run([sys.executable, {str(tmp_path / 'train.py')!r}])"
    # The process that trains ends as multiprocessing ends it, whatever its parent is.
    script = python(code, {**environ, "PYTHONPATH": str(ROOT)})
    script.communicate()

    with open_outbox(environ=environ) as outbox:
        (run_id,) = outbox.stats.run_ids()
    assert scanned(environ, run_id) == expected


def test_an_interactive_interpreter_says_nothing_about_the_training(environ: Mapping[str, str]) -> None:
    assert ended({**environ, "PYTHONINSPECT": "1"}, "import builtins; sys.ps1 = '>'")[0] == "interrupted"


def test_what_the_script_says_at_exit_counts_more(environ: Mapping[str, str]) -> None:
    code = """
import atexit
run = None
def say():
    run.finish(timeout=0, results={"metrics": {"map": 0.5}})
atexit.register(say)
import hubqueue
run = hubqueue.start_run("yolo26n.pt", worker="none", args={"project": "coco"})
print(run.id, flush=True)
"""
    script = python(code, environ, fresh=True)  # as above
    run_id = script.communicate()[0].split()[0]

    with open_outbox(environ=environ) as outbox:
        state, end = ends(outbox, run_id)
    assert state == "finished"
    assert end is not None
    assert end["data"]["results"] == {"metrics": {"map": 0.5}}


def test_a_locked_outbox_does_not_keep_a_script_from_ending(environ: Mapping[str, str]) -> None:
    script = python(
        TAKES_CTRL_C + STARTS + "print('started', flush=True)\nthreading.Event().wait()",
        environ,
        finalize=True,
    )
    assert script.stdout is not None
    run_id = script.stdout.readline().strip()
    assert script.stdout.readline() == "started\n"

    with open_outbox(environ=environ) as outbox, outbox.database.write():
        script.send_signal(signal.SIGINT)
        script.communicate()  # it ends although the lock is held

    assert scanned(environ, run_id)[0] == "interrupted"


def test_what_is_in_memory_is_saved_at_the_end_of_a_script(environ: Mapping[str, str], home: Path) -> None:
    code = """
home = os.environ["HUBQUEUE_HOME"]
from hubqueue.outbox.outbox import open_outbox
from hubqueue.outbox.database.patience import impatient
with open_outbox() as other, other.database.write(), impatient(0.05):
    assert run.log_metrics({"loss": 2.0}, epoch=1) is None
"""
    assert ended(environ, code, finalize=False)[0] == "finished"

    with open_outbox(environ=environ) as outbox:
        assert sorted(row["key"] for row in outbox.stats.entries(kind="metrics")) == ["0", "1"]


def test_a_shell_script_ends_a_run_whose_process_has_died(environ: Mapping[str, str]) -> None:
    with open_outbox(environ=environ) as outbox:
        run = package.start_run("yolo26n.pt", worker="none")
        outbox.registry.end_run(run.id or "", RunState.INTERRUPTED)

        done = hubqueue(environ, "enqueue", "end", "--run", run.id or "")

        assert "is finished" in done.stdout
        assert ends(outbox, run.id or "")[0] == "finished"


def test_a_run_that_has_ended_keeps_no_lock(environ: Mapping[str, str]) -> None:
    with package.start_run("yolo26n.pt", worker="none") as run:
        pass

    assert run.outbox is not None
    assert Lock(run.outbox.run_lock(run.id or "")).acquire(0)


def test_a_dropped_run_is_interrupted_when_the_next_one_starts(environ: Mapping[str, str]) -> None:
    dropped = package.start_run("yolo26n.pt", worker="none").id or ""
    gc.collect()
    assert scanned(environ, dropped)[0] == "running"

    run = package.start_run("yolo26n.pt", worker="none")

    assert scanned(environ, dropped)[0] == "interrupted"
    run.finish(timeout=0)


def test_a_notebook_cell_that_runs_twice_leaves_one_running_run(environ: Mapping[str, str]) -> None:
    ids = []
    for _ in range(2):
        run = package.start_run("yolo26n.pt", worker="none")
        run.log_metrics({"loss": 1.0}, epoch=0)
        ids.append(run.id or "")
    gc.collect()

    run.log_metrics({"loss": 1.0}, epoch=1)

    assert [scanned(environ, each)[0] for each in ids] == ["interrupted", "running"]
    run.finish(timeout=0)


@pytest.mark.usefixtures("quick_collections")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_trials_that_are_never_finished_keep_no_descriptors(environ: Mapping[str, str]) -> None:
    run = package.start_run("yolo26n.pt", worker="none")
    run = package.start_run("yolo26n.pt", worker="none")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(10):
        run = package.start_run("yolo26n.pt", worker="none")
        run.log_metrics({"loss": 1.0}, epoch=0)
        gc.collect()

    assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.mark.parametrize(
    "replace", ["", pytest.param("hubqueue.open_outbox(home).close()", marks=pytest.mark.slow)]
)
def test_a_script_whose_home_is_deleted_at_its_end_saves_what_it_has(
    environ: Mapping[str, str], home: Path, replace: str
) -> None:
    code = f"import shutil\nhome = {str(home)!r}\nshutil.rmtree(home)\n{replace}"

    assert ended(environ, code) == ("finished", None)

    with open_outbox(environ=environ) as outbox:
        assert [row["key"] for row in outbox.stats.entries(kind="metrics")] == ["0"]


@needs_exit_codes
def test_an_exit_code_says_nothing_about_a_run_that_was_continued_since(environ: Mapping[str, str]) -> None:
    script = python(STARTS + "sys.exit(3)", environ, finalize=True)
    run_id = script.communicate()[0].split()[0]

    run = package.start_run("yolo26n.pt", worker="none", resume=run_id)
    run.finish(timeout=0)

    assert json.loads(hubqueue(environ, "status", "--json").stdout)["runs"][0]["state"] == "finished"
    assert scanned(environ, run_id) == ("finished", None)
