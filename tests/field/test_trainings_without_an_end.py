"""A training of a framework whose callbacks learn nothing of its failure was shown as finished, or as interrupted."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from stage import environ_of, python

from hubqueue.outbox.outbox import open_outbox
from hubqueue.worker.events import Fact
from hubqueue.worker.janitor import Janitor

pytestmark = pytest.mark.usefixtures("migrated_home")
STARTS = """
import os, signal, sys
import hubqueue
from hubqueue.integrations.interruption import expect_end, has_ended
run = hubqueue.start_run("small", worker="none", destination="lab")
expect_end(run, by_callback=BY_CALLBACK)
run.log_metrics({"loss": 1.0}, epoch=0)
"""


@pytest.fixture
def environ(home: Path, tmp_path: Path) -> Mapping[str, str]:
    lab = {"HUBQUEUE_DESTINATIONS__LAB__TYPE": "folder", "HUBQUEUE_DESTINATIONS__LAB__PATH": str(tmp_path)}
    return environ_of(home, **lab)


def ended(environ: Mapping[str, str], code: str, *, by_callback: bool = True) -> tuple[str, str | None, int]:
    """The state of the run of a script that has ended, the error in its completion, and its exit code."""
    script = python(STARTS.replace("BY_CALLBACK", str(by_callback)) + code, environ, finalize=True)
    script.communicate()
    facts: list[Fact] = []
    with open_outbox(environ=environ) as outbox:
        Janitor(outbox, facts.append).scan()
        (run,) = outbox.stats.runs()
        ends = outbox.stats.entries(run_id=run["id"], kind="completion")
        found: dict[str, Any] = json.loads(outbox.stats.payload(ends[-1]["id"]) or "{}") if ends else {}
    return run["state"], found.get("error"), script.returncode


def test_a_script_that_catches_the_exception_of_its_training_has_failed(environ: Mapping[str, str]) -> None:
    code = "try: 1 / 0\nexcept ZeroDivisionError: pass"

    assert ended(environ, code) == ("failed", "the training did not reach its end", 0)


def test_an_exception_that_nobody_catches_is_the_reason(environ: Mapping[str, str]) -> None:
    assert ended(environ, "1 / 0") == ("failed", "ZeroDivisionError", 1)


def test_a_training_that_its_callback_has_finished_stays_finished(environ: Mapping[str, str]) -> None:
    state, error, _ = ended(environ, "has_ended(run); run.finish(timeout=0)")

    assert (state, error) == ("finished", None)


def test_a_training_that_another_one_has_continued_stays_finished(environ: Mapping[str, str]) -> None:
    code = """
again = hubqueue.start_run("small", worker="none", destination="lab", resume=run.id)
expect_end(again, by_callback=True)
has_ended(again)
again.finish(timeout=0)
"""
    state, error, _ = ended(environ, code)

    assert (state, error) == ("finished", None)


def test_a_loop_without_a_last_callback_ends_with_its_script(environ: Mapping[str, str]) -> None:
    state, error, _ = ended(environ, "", by_callback=False)

    assert (state, error) == ("finished", None)


@pytest.mark.parametrize("by_callback", [True, False])
def test_a_process_that_its_launcher_ends_has_failed(environ: Mapping[str, str], by_callback: bool) -> None:
    launched = {**environ, "LOCAL_RANK": "0"}

    found = ended(launched, "os.kill(os.getpid(), signal.SIGTERM)", by_callback=by_callback)

    assert found == ("failed", "SIGTERM", -signal.SIGTERM)


def test_a_process_without_a_launcher_keeps_the_usual_signal(environ: Mapping[str, str]) -> None:
    state, error, code = ended(environ, "os.kill(os.getpid(), signal.SIGTERM)")

    assert (state, code) == ("interrupted", -signal.SIGTERM)
    assert error != "SIGTERM"


def test_a_handler_of_the_training_stays(environ: Mapping[str, str]) -> None:
    before = "import signal, os\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(7))\n"
    code = STARTS.replace("BY_CALLBACK", "True") + "os.kill(os.getpid(), signal.SIGTERM)"
    script = python(before + code, {**environ, "LOCAL_RANK": "0"})
    script.communicate()

    assert script.returncode == 7


def test_a_forked_child_ends_no_run_and_has_the_usual_signal(environ: Mapping[str, str]) -> None:
    code = """
child = os.fork()
if not child:
    os._exit(0 if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else 3)
_, status = os.waitpid(child, 0)
child = os.fork()
if not child:
    sys.exit()
os.waitpid(child, 0)
state = run.outbox.stats.run(run.id)["state"]
has_ended(run)
run.finish(timeout=0)
os._exit(0 if status == 0 and state == "running" else 3)
"""
    _, _, exit_code = ended({**environ, "LOCAL_RANK": "0"}, code)

    assert exit_code == 0
