"""How a training starts its worker: only a Python, as isolated as the training, and not repeatedly."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from stage import ROOT, environ_of, python, wait_until

from hubqueue.config.home import Home
from hubqueue.sandbox import Sandbox
from hubqueue.worker.daemon import worker_lives

pytestmark = pytest.mark.usefixtures("migrated_home")
LOGGED = "import logging\nlogging.basicConfig(level=logging.WARNING, format='%(message)s')\n"
TRAINING = """
import os, sys
{before}
import hubqueue
run = hubqueue.start_run("yolov8n.pt", home=sys.argv[1])
run.log_metrics({{"loss": 1.0}}, epoch=0)
left = run.finish(timeout={timeout})
print("left", left.entries if hasattr(left, "entries") else bool(left))
"""


def _train(
    folder: Path,
    url: str,
    *flags: str,
    before: str = "",
    timeout: float = 30,
    **environ: str,
) -> str:
    code = TRAINING.format(before=before, timeout=timeout)
    inherited = environ_of(folder / "home", url, HUBQUEUE_WORKER__IDLE_EXIT="0", **environ)
    if flags:
        command = [sys.executable, *flags, "-c", LOGGED + code, str(folder / "home")]
        done = subprocess.run(
            command, env=inherited, cwd=folder, capture_output=True, text=True, check=False, timeout=90
        )
        output = done.stdout + done.stderr
    else:
        with contextlib.chdir(folder):
            process = python(code, inherited, str(folder / "home"))
        output = process.communicate(timeout=90)[0] or ""
    wait_until(lambda: not worker_lives(Home(folder / "home")), timeout=60)
    return output


@pytest.mark.parametrize("flag", ["-I", pytest.param("-E", marks=pytest.mark.slow), "-s"])
def test_the_worker_is_as_isolated_as_its_training(tmp_path: Path, hub: Sandbox, flag: str) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    # Under -s only the worker's own import counts: the training itself uses PYTHONPATH.
    record = f"open({str(tmp_path / 'seen')!r}, 'a').write(' '.join(sys.argv) + '\\n')"
    (foreign / "sitecustomize.py").write_text(f"import sys\nif '--detached' in sys.orig_argv: {record}\n")

    output = _train(tmp_path, hub.url, flag, PYTHONPATH=str(foreign))

    assert "left" in output and len(hub.models) == 1, output
    assert not (tmp_path / "seen").exists()


def test_the_worker_finds_hubqueue_where_its_training_found_it(tmp_path: Path, hub: Sandbox) -> None:
    where = [str(ROOT), *(each for each in sys.path if each.endswith("site-packages"))]

    # Without site-packages (-S) only the `sys.path` that the training has changed finds the packages.
    output = _train(tmp_path, hub.url, "-I", "-S", before=f"sys.path += {where!r}")

    assert len(hub.models) == 1, output
    assert "ended at once" not in output


def test_a_module_beside_the_script_does_not_reach_the_worker(tmp_path: Path, hub: Sandbox) -> None:
    (tmp_path / "simplejson.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w')\nraise SystemExit\n")
    before = "import sys; sys.path.insert(0, os.getcwd()); sys.modules['simplejson'] = None"

    output = _train(tmp_path, hub.url, before=before)

    assert len(hub.models) == 1, output
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("sys.frozen = True", "frozen program"),
        ("sys.executable = ''", "does not know its own executable"),
        ("sys.executable = os.environ['PROGRAM']", "may not be a Python"),
        ("os.environ['HUBQUEUE_IS_WORKER'] = '1'", "itself started as a worker"),
    ],
)
def test_what_is_not_certainly_a_python_is_not_started(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, before: str, why: str
) -> None:
    program = tmp_path / "trainer"
    program.write_text(f"#!/bin/sh\necho started >> {tmp_path / 'seen'}\n")
    program.chmod(0o755)

    environ = environ_of(home, "http://127.0.0.1:9", PROGRAM=str(program))
    monkeypatch.chdir(tmp_path)

    output, _ = python(TRAINING.format(before=before, timeout=2), environ, str(home)).communicate(timeout=90)

    assert output is not None
    assert output.count(why) == 1, output
    assert "hubqueue worker" in output  # the hint
    assert "left" in output
    assert not (tmp_path / "seen").exists()
    assert not (home / "worker.log").exists()


def test_a_worker_that_ends_at_once_is_reported_once(tmp_path: Path) -> None:
    output = _train(tmp_path, "http://127.0.0.1:9", before=_WITH_A_BROKEN_WORKER, timeout=8)

    assert output.count("the worker ended at once (exit code 2)") == 1, output
    assert "HUBQUEUE_WORKER__LEASE" in output
    assert "left" in output
    tries = (tmp_path / "home" / "worker.log").read_text().count("error: HUBQUEUE_WORKER__LEASE")
    assert 1 <= tries <= 3  # not one a second; two may start at the same time


# Only the worker sees the invalid setting that ends it.
_WITH_A_BROKEN_WORKER = """
import subprocess
real = subprocess.Popen
def broken(command, *, env=None, **options):
    return real(command, env={**env, "HUBQUEUE_WORKER__LEASE": "nonsense"}, **options)
subprocess.Popen = broken
"""
