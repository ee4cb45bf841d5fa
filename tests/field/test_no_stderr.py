"""A program without stderr (pythonw, a service, a launcher that closes it): nothing in hubqueue fails for want of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import zygote
from stage import environ_of, hubqueue, python

from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")
PROGRAM = """
import os, sys
{without}
import json, logging, traceback
result = {{}}
try:
    import hubqueue
    session = hubqueue.HUBTrainingSession("yolov8n.pt", worker={worker!r}, deadline=100)
    session.create_model({{"epochs": 3}})
    session.metrics_queue[0] = '{{"loss": 1.0, "name": "text"}}'
    open("last.pt", "wb").write(b"weights" * 1000)
    session.upload_model(0, "last.pt", final=True)
    session.upload_model(0, "missing.pt")
    session.request_queue(lambda **_options: None, thread=False, retry=0, timeout=1)
    session.alive = False
    run = hubqueue.start_run("yolov8n.pt", worker={worker!r}, args={{"epochs": 3}})
    run.log_metrics({{"loss": 1.0}}, epoch=0)
    result["left"] = run.finish(timeout=100).entries
    run = hubqueue.start_run("yolov8n.pt", worker="none", home="/proc/no/home")
    run.log_metrics({{"loss": 1.0}}, epoch=0)
    result["unsaved"] = run.finish(timeout=0).unsaved
except BaseException:
    result["error"] = traceback.format_exc()
json.dump(result, open("result.json", "w"))
"""
WITHOUT = {
    "None": "sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None",
    "closed": "sys.stdout.close(); sys.stderr.close()",
    "descriptors closed": "os.close(0); os.close(1); os.close(2)",
    "a handler that fails": (
        "import logging\nclass Fails(logging.Handler):\n    def emit(self, record): raise ValueError(record)\n"
        "logging.getLogger().addHandler(Fails())"
    ),
}
# What a new interpreter makes of a closed stderr.
COMMAND = """
import os, sys
os.close(2)
sys.stderr = sys.__stderr__ = None
sys.stdout = open(os.devnull, "w")
from hubqueue.__main__ import main
sys.argv = {line!r}
main()
"""
# Each kind of program and each kind of worker is tried each time.
QUICK = {"None": "auto", "closed": "thread", "descriptors closed": "auto", "a handler that fails": "thread"}


def _end(environ: Mapping[str, str], code: str, *, fresh: bool) -> int:
    """Run a program that gives up its streams itself, in a new interpreter if its imports shall do without them too."""
    if zygote.suits(environ) and not fresh:
        return zygote.Forked(environ, code=code, finalize=True).wait(120)
    return subprocess.run([sys.executable, "-c", code], env=environ, check=False, timeout=120).returncode


@pytest.mark.parametrize(
    ("without", "worker"),
    [
        pytest.param(without, worker, marks=() if worker == quick else pytest.mark.slow)
        for without, quick in QUICK.items()
        for worker in ("auto", "thread")
    ],
)
def test_a_training_without_stderr_saves_and_sends(
    tmp_path: Path, home: Path, hub: Sandbox, without: str, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = PROGRAM.format(without=WITHOUT[without], worker=worker)

    monkeypatch.chdir(tmp_path)
    _end(environ_of(home, hub.url), code, fresh=without == "None")

    result = json.loads((tmp_path / "result.json").read_text())
    assert "error" not in result, result["error"]
    assert result == {"left": 0, "unsaved": 1}


@pytest.mark.parametrize(
    ("command", "fresh"),
    [
        (["drain"], False),
        (["status"], False),
        (["check", "--offline"], True),
        (["worker", "--idle-exit", "0"], False),
        *(
            pytest.param(each, True, marks=pytest.mark.slow)
            for each in (["drain"], ["status"], ["worker", "--idle-exit", "0"])
        ),
    ],
)
def test_a_command_without_stderr_has_its_exit_code(
    home: Path, hub: Sandbox, command: list[str], fresh: bool
) -> None:
    environ = environ_of(home, hub.url)
    code = "import hubqueue; run = hubqueue.start_run('yolov8n.pt', worker='none'); run.finish(timeout=0)"
    training = python(code, environ)
    out, _ = training.communicate(timeout=60)
    assert training.returncode == 0, out

    usual = hubqueue(environ, *command)
    if fresh:
        line = ["sh", "-c", 'exec "$@" >/dev/null 2>&-', "sh", sys.executable, "-m", "hubqueue", *command]
        code = subprocess.run(line, env=environ, check=False, timeout=60).returncode
    else:
        program = COMMAND.format(line=["hubqueue", *command])
        code = _end(environ, program, fresh=False)

    assert code == usual.returncode
