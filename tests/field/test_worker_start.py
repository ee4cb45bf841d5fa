"""How a training's worker begins: with the training's own hubqueue, once, and when it cannot, somebody says why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipapp
from collections.abc import Callable
from pathlib import Path

import pytest
import zygote
from stage import ROOT, environ_of, hubqueue, wait_until

from hubqueue.config.home import Home
from hubqueue.sandbox import Sandbox
from hubqueue.worker.daemon import worker_lives

pytestmark = pytest.mark.usefixtures("migrated_home")
TRAINING = """
import logging, os, sys
logging.basicConfig(level=logging.WARNING, format="%(message)s")
{before}
import hubqueue
{between}
run = hubqueue.start_run("yolov8n.pt")
run.log_metrics({{"loss": 1.0}}, epoch=0)
left = run.finish(timeout={timeout})
print("left", left.entries, left.unsaved)
"""
NOWHERE = "http://127.0.0.1:9"

Train = Callable[..., str]


@pytest.fixture
def train(tmp_path: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs a training in a folder of its own; returns its output. `forks` where nothing depends on what it has loaded."""

    def run(
        before: str = "",
        between: str = "",
        *,
        timeout: float = 60,
        program: list[str] | None = None,
        forks: bool = False,
        **environ: str,
    ) -> str:
        (tmp_path / "here").mkdir(exist_ok=True)
        script = tmp_path / "here" / "train.py"
        script.write_text(TRAINING.format(before=before, between=between, timeout=timeout))
        settings = {"HUBQUEUE_WORKER__IDLE_EXIT": "0", **environ}
        variables = environ_of(tmp_path / "home", hub.url, **settings)
        monkeypatch.chdir(tmp_path / "here")
        if forks and zygote.suits(variables):
            pipe = subprocess.PIPE
            forked = zygote.Forked(variables, code=script.read_text(), stdout=pipe, stderr=pipe)
            out, err = forked.communicate(timeout=120)
        else:
            line = program or [sys.executable, str(script)]
            done = subprocess.run(
                line, env=variables, capture_output=True, text=True, check=False, timeout=120
            )
            out, err = done.stdout, done.stderr
        wait_until(lambda: not worker_lives(Home(tmp_path / "home")))
        return (out or "") + (err or "")

    return run


def _arrived(hub: Sandbox, output: str) -> bool:
    return len(hub.models) == 1 and "left 0 0" in output and "ended at once" not in output


@pytest.mark.slow  # each of its two processes compiles every module
@pytest.mark.usefixtures("new_home")
def test_a_training_in_a_zipapp_gets_a_worker(tmp_path: Path, hub: Sandbox, train: Train) -> None:
    content = tmp_path / "content"
    shutil.copytree(ROOT / "hubqueue", content / "hubqueue", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "migrations", content / "hubqueue" / "_migrations")
    (content / "__main__.py").write_text(TRAINING.format(before="", between="", timeout=60))
    zipapp.create_archive(content, tmp_path / "training.pyz")

    output = train(program=[sys.executable, "-P", str(tmp_path / "training.pyz")], PYTHONPATH="")

    assert _arrived(hub, output), output


def test_the_worker_has_the_hubqueue_of_its_training(tmp_path: Path, hub: Sandbox, train: Train) -> None:
    old = tmp_path / "old" / "hubqueue"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("raise ImportError('an old version')\n")

    # As after `sys.path.insert(0, checkout)` beside an installed version.
    output = train(f"sys.path.insert(0, {str(ROOT)!r})", PYTHONPATH=str(old.parent))

    assert _arrived(hub, output), output


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("hubqueue", "."),
        pytest.param("requests", ".", marks=pytest.mark.slow),
        ("requests", ""),
        pytest.param("queue", ".", marks=pytest.mark.slow),
        pytest.param("apscheduler", ".", marks=pytest.mark.slow),
        pytest.param("simplejson", ".", marks=pytest.mark.slow),
    ],
)
def test_a_file_beside_the_script_does_not_stop_the_worker(
    tmp_path: Path, hub: Sandbox, train: Train, name: str, path: str
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    # The training itself survives it: its own modules are loaded before the file is there.
    loads = "import queue, requests, apscheduler, hubqueue; from hubqueue import start_run"
    writes = f"open({name + '.py'!r}, 'w').write('raise ImportError')"

    output = train(loads, writes, PYTHONPATH=f"{path}:{ROOT}")

    assert _arrived(hub, output), output


def test_a_deleted_working_directory_does_not_stop_the_worker(
    tmp_path: Path, hub: Sandbox, train: Train
) -> None:
    (tmp_path / "gone").mkdir()

    output = train(between="os.chdir('../gone'); os.rmdir('../gone')", PYTHONPATH=f"{ROOT}:relative")

    assert _arrived(hub, output), output


def test_a_process_spawned_by_multiprocessing_starts_a_worker(
    tmp_path: Path, hub: Sandbox, train: Train
) -> None:
    script = tmp_path / "spawns.py"
    script.write_text(
        """
import multiprocessing
def train():
    import hubqueue
    run = hubqueue.start_run("yolov8n.pt")
    run.log_metrics({"loss": 1.0}, epoch=0)
    print("left", run.finish(timeout=60).entries, 0)
if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=train)
    child.start()
    child.join()
"""
    )

    output = train(program=[sys.executable, str(script)])

    assert _arrived(hub, output), output


@pytest.mark.parametrize(
    "executable", ["None", pytest.param("''", marks=pytest.mark.slow), "'/nonexistent/python3'"]
)
def test_an_interpreter_without_an_executable_is_said_once(train: Train, executable: str) -> None:
    output = train(f"sys.executable = {executable}", timeout=3, forks=True)

    assert output.count("no worker could be started") == 1, output
    assert "hubqueue worker" in output  # the hint
    assert "left 2 0" in output
    assert "Traceback" not in output


def test_a_python_of_another_version_is_no_worker(train: Train) -> None:
    # Without the tag of this Python, each module that is loaded later is compiled.
    loads = "import hubqueue.integrations.hub_session.session, hubqueue.outbox.status, hubqueue.producer.run"

    output = train(loads, "sys.implementation.cache_tag = 'cpython-99'", timeout=3, forks=True)

    assert output.count("is not the Python of the training") == 1, output
    assert "left 2 0" in output


def test_a_wrapper_that_runs_the_training_again_is_started_once(tmp_path: Path, train: Train) -> None:
    program = tmp_path / "python3"
    # It lives as a training does, and takes no lock of a worker.
    program.write_text(f"#!/bin/sh\necho started >> {tmp_path / 'seen'}\nexec sleep 15\n")
    program.chmod(0o755)

    output = train(f"sys.executable = {str(program)!r}", timeout=6, forks=True)

    assert "left 2 0" in output, output
    assert (tmp_path / "seen").read_text().count("started") == 1


def test_check_says_why_the_last_worker_ended(tmp_path: Path, hub: Sandbox, train: Train) -> None:
    before = "import subprocess; real = subprocess.Popen\n"
    before += "def broken(command, *, env=None, **options):\n"
    before += "    return real(command, env={**env, 'HUBQUEUE_WORKER__LEASE': 'nonsense'}, **options)\n"
    before += "subprocess.Popen = broken"
    environ = environ_of(tmp_path / "home", hub.url)

    output = train(before, timeout=6, forks=True)
    found = json.loads(hubqueue(environ, "check", "--offline", "--json").stdout)

    assert output.count("the worker ended at once") == 1, output
    (failed,) = [each for each in found if each["what"] == "worker"]
    assert not failed["ok"]
    assert "HUBQUEUE_WORKER__LEASE" in failed["detail"]
    assert "hubqueue worker" in failed["hint"]

    # A worker that begins is the proof that it is over.
    assert "left 0 0" in train(forks=True)
    found = json.loads(hubqueue(environ, "check", "--offline", "--json").stdout)
    assert not [each for each in found if each["what"] == "worker"]
