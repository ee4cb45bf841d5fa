"""`worker="thread"` while the interpreter ends: no traceback, no wait in vain, and nothing is lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from stage import Bench, environ_of, log, new_run, python, totals

from hubqueue.domain.entry import Kind
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")
TRAINING = """
import atexit, builtins, os, sys, threading
import hubqueue
run = hubqueue.start_run("yolov8n.pt", worker="thread")
run.log_metrics({"loss": 1.0}, epoch=0)
def finish():
    left = run.finish(timeout=100)
    print("left", left.entries, left.unsaved, flush=True)
"""
NOWHERE = "http://127.0.0.1:9"


# In a new interpreter, what is not loaded before its end is loaded in it, and may freeze there.
FRESH = pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])


def _train(home: Path, url: str, end: str, *, fresh: bool, status: int = 0) -> str:
    process = python(TRAINING + end, environ_of(home, url), fresh=fresh, finalize=not fresh)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == status, out
    assert "Error submitting job" not in out
    assert "Fatal Python error" not in out
    return out


def test_a_thread_that_outlives_the_main_thread_can_finish(home: Path, hub: Sandbox) -> None:
    end = """
def later():
    threading.main_thread().join()
    run.log_metrics({"loss": 0.5}, epoch=1)
    finish()
threading.Thread(target=later).start()
"""
    out = _train(home, hub.url, end, fresh=True)

    assert "Traceback" not in out, out
    assert out.strip().splitlines()[-1] == "left 0 0"
    assert sorted(hub.metrics(hub.models[0])) == [0, 1]


@FRESH
def test_a_run_can_be_finished_by_atexit(home: Path, hub: Sandbox, fresh: bool) -> None:
    out = _train(home, hub.url, "atexit.register(finish)\n", fresh=fresh)

    assert "Traceback" not in out, out
    assert out.strip().splitlines()[-1] == "left 0 0"


def test_a_destructor_at_the_very_end_does_not_wait_for_frozen_threads(home: Path) -> None:
    end = """
class Trainer:
    def __del__(self):
        finish()
builtins.kept = Trainer()
"""
    # It would wait the timeout of 100 s, or for a thread that never starts: longer than the process may take here.
    out = _train(home, NOWHERE, end, fresh=True)

    assert "Traceback" not in out, out
    assert out.strip().splitlines()[-1] == "left 2 0"


@FRESH
def test_a_destructor_at_the_very_end_does_not_wait_for_a_frozen_write(home: Path, fresh: bool) -> None:
    end = """
class Trainer:
    def __del__(self):
        finish()
builtins.kept = Trainer()
def write():
    with run.outbox.database.write():
        writing.set()
        threading.Event().wait()
writing = threading.Event()
threading.Thread(target=write, daemon=True).start()
writing.wait()
"""
    out = _train(home, NOWHERE, end, fresh=fresh)

    assert "Traceback" not in out, out
    assert out.strip().splitlines()[-1].startswith("left 2")


@FRESH
@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(0)\n", 0),
        pytest.param("sys.exit('failed')\n", 1, marks=pytest.mark.slow),
        ("os._exit(3)\n", 3),
        (
            """
def log():
    for epoch in range(10**9):
        run.log_metrics({"loss": 1.0}, epoch=epoch % 10)
threading.Thread(target=log, daemon=True).start()
threading.Event().wait(0.5)
""",
            0,
        ),
        pytest.param(
            "if os.fork() == 0:\n    run.log_metrics({'loss': 1.0}, epoch=1)\n    os._exit(0)\nos.wait()\n",
            0,
            marks=pytest.mark.slow,
        ),
        ("if os.fork() == 0:\n    run.log_metrics({'loss': 1.0}, epoch=1)\n    sys.exit(0)\nos.wait()\n", 0),
    ],
    ids=["exit", "message", "os._exit", "daemon thread", "fork and _exit", "fork and exit"],
)
def test_an_end_without_finish_is_quiet_and_keeps_everything(
    home: Path, end: str, status: int, fresh: bool
) -> None:
    out = _train(home, NOWHERE, end, fresh=fresh, status=status)

    assert "Traceback" not in out, out
    with open_outbox(home) as outbox:
        assert outbox.database.integrity() == "ok"
        assert outbox.stats.entries(kind="metrics", limit=100)


def test_what_is_claimed_is_sent_although_no_thread_can_be_started(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = new_run(outbox)
    log(outbox, run_id, 0, 1)
    with Bench(outbox) as bench:

        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")  # as Python 3.12 does once the main thread has ended

        monkeypatch.setattr(threading.Thread, "start", refuse)
        bench.step()
        monkeypatch.undo()

    assert (Kind.METRICS, ["0", "1"]) in bench.sent
    assert totals(outbox)["delivered"] == 2
