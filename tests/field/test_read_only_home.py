"""A home in which nothing can be written: it can be looked at, and each command says what is the matter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import template
from stage import environ_of, hubqueue, python

import hubqueue as package
from hubqueue.config.home import Home

READING = (
    *(
        ["status"],
        ["status", "--json"],
        ["runs"],
        ["entries"],
        ["show", "1"],
        ["log"],
        ["config", "show"],
        ["stop"],
    ),
    ["check", "--offline"],
)
WRITING = (
    *(
        ["drain"],
        ["worker"],
        ["worker", "--detach"],
        ["redrive", "--all"],
        ["cancel", "1"],
        ["prune"],
        ["migrate"],
    ),
    *(["resume", "hub"], ["enqueue", "run", "a.pt"]),
)
TRAINING = """
import os, sys
import hubqueue
run = hubqueue.start_run("yolov8n.pt", destination="hub", worker="none")
run.log_metrics({"loss": 1.0}, epoch=0)
run.finish(timeout=0) if sys.argv[1] == "finished" else os._exit(0)
"""
# Runs commands one after the other in forks of one process, because an interpreter for each of them takes seconds.
COMMANDS = """
import gc, json, os, sys, tempfile
import hubqueue.cli.drain, hubqueue.cli.enqueue, hubqueue.cli.repair, hubqueue.cli.status, hubqueue.cli.worker
import hubqueue.outbox.status, hubqueue.worker.check
from hubqueue.__main__ import main
gc.collect()
gc.freeze()  # the end of a fork need not look at what was loaded
results = []
for line in json.loads(sys.argv[1]):
    streams = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
    child = os.fork()
    if child == 0:
        for number, stream in enumerate(streams, 1):
            os.dup2(stream.fileno(), number)
        sys.argv = ["hubqueue", *line]
        main()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    results.append([code, *(each.seek(0) or each.read().decode() for each in streams)])
print(json.dumps(results))
"""


class Shown(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Commands = Callable[..., list[Shown]]


def run_all(
    environ: Mapping[str, str], prefix: Sequence[str], commands: Sequence[Sequence[str]]
) -> list[Shown]:
    line = [*prefix, sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=240, check=True)
    return [Shown(*each) for each in json.loads(done.stdout)]


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    if request.param == "pysqlite3":
        pytest.importorskip("pysqlite3", reason="there is no pysqlite3 wheel for this platform")
    return str(request.param)


@pytest.fixture
def trained(request: pytest.FixtureRequest, home: Path, driver: str) -> dict[str, str]:
    """The environment of a home with a run in it; a killed one leaves its log files there."""
    environ = environ_of(template.lay(home, driver), HUBQUEUE_OUTBOX__DRIVER=driver)
    training = python(TRAINING, environ, request.param)
    out, _ = training.communicate(timeout=100)
    assert training.returncode == 0, out
    return environ


def homes(*quick: tuple[str, str]) -> pytest.MarkDecorator:
    """The parameters of a test of all homes; those that are not among the quick ones are slow."""
    every = [(state, driver) for state in ("finished", "killed") for driver in ("pysqlite3", "sqlite3")]
    marked = [pytest.param(*each, marks=() if each in quick else pytest.mark.slow) for each in every]
    return pytest.mark.parametrize(("trained", "driver"), marked, indirect=True)


def forbid_writing(home: Path) -> None:
    for folder, _, files in os.walk(home):
        for each in files:
            os.chmod(Path(folder, each), 0o400)
        os.chmod(folder, 0o500)


@pytest.fixture
def read_only(trained: dict[str, str], home: Path) -> Commands:
    """Runs commands on a home whose files and folders this user may not write."""
    prefix = []
    if os.geteuid() == 0:  # without its capabilities, root is stopped by permission bits
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to give up its privileges")
        prefix = ["setpriv", "--bounding-set=-all"]
    forbid_writing(home)
    return lambda *commands: run_all(trained, prefix, commands)


@pytest.fixture
def on_a_read_only_disk(trained: dict[str, str], home: Path) -> Commands:
    """Runs commands that see the home on a disk that is mounted read-only."""
    script = f'mount --bind "{home}" "{home}" && mount -o remount,ro,bind "{home}" && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this user may not mount")
    return lambda *commands: run_all(trained, prefix, commands)


@homes(("killed", "pysqlite3"), ("finished", "sqlite3"))
def test_everything_can_be_looked_at(read_only: Commands, home: Path) -> None:
    before = contents(home)

    shown = dict(zip(map(" ".join, READING), read_only(*READING), strict=True))

    for name, each in shown.items():
        assert "Traceback" not in each.err, name
        assert "error: " not in each.err, name
    status = json.loads(shown["status --json"].out)
    assert status["outbox"]["read_only"] is True
    assert status["totals"]["pending"] == 2
    assert f"note: the home {home} is read-only" in shown["status"].err
    assert ", read-only)" in shown["status"].out
    assert shown["status"].code == 0
    assert shown["check --offline"].code == 1
    assert f"the home {home} is read-only" in shown["check --offline"].out
    assert contents(home) == before


def contents(home: Path) -> dict[Path, bytes]:
    """The files of a home, without the one by which readers of a log count each other."""
    return {
        each: each.read_bytes() for each in home.rglob("*") if each.is_file() and each.suffix != ".db-shm"
    }


@homes(("killed", "pysqlite3"))
def test_what_is_on_a_read_only_disk_can_be_looked_at(on_a_read_only_disk: Commands, home: Path) -> None:
    *looks, drained = on_a_read_only_disk(
        ["status", "--json"], ["entries"], ["check", "--offline"], ["drain"]
    )

    for shown in looks:
        assert "Traceback" not in shown.err
        assert "error: " not in shown.err
    assert json.loads(looks[0].out)["totals"]["pending"] == 2
    assert f"error: the home {home} is read-only" in drained.err


@pytest.mark.parametrize("driver", ["sqlite3"], indirect=True)
@pytest.mark.parametrize("trained", ["finished"], indirect=True)
def test_a_command_that_writes_is_refused_in_one_line_with_a_hint(read_only: Commands, home: Path) -> None:
    for command, refused in zip(WRITING, read_only(*WRITING), strict=True):
        lines = refused.err.splitlines()
        assert refused.code == 1, command
        assert lines[0] == f"error: the home {home} is read-only", command
        assert lines[1].startswith("hint: make it writable"), command
        assert len(lines) == 2, command


@pytest.mark.parametrize("driver", ["pysqlite3"], indirect=True)
@pytest.mark.parametrize("trained", ["killed"], indirect=True)
def test_a_log_without_its_shared_memory_is_read_from_a_copy(read_only: Commands, home: Path) -> None:
    home.chmod(0o700)
    (home / "outbox.db-shm").unlink()
    home.chmod(0o500)

    (shown,) = read_only(["status", "--json"])

    assert json.loads(shown.out)["totals"]["pending"] == 2


@pytest.mark.parametrize("path", ["/proc/x", "/proc/self/x/y"])
def test_a_home_that_cannot_exist_is_not_called_empty(path: str) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("there is no /proc")
    environ = environ_of(Path(path))

    for command in (["status"], ["runs"], ["entries"], ["log"]):
        shown = hubqueue(environ, *command)
        assert shown.returncode == 1
        assert "yet" not in shown.stdout
        assert f"error: the home {path} cannot exist: " in shown.stderr
        assert "hint: choose a writable home: HUBQUEUE_HOME" in shown.stderr
    checked = hubqueue(environ, "check", "--offline")
    assert f"FAIL  home          the home {path} cannot exist: " in checked.stdout


def test_a_file_or_a_dangling_link_in_the_place_of_a_home_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")

    for home, why in (
        ("file", "is not a folder"),
        ("file/below", "is not a folder"),
        ("link", "which does not exist"),
    ):
        shown = hubqueue(environ_of(tmp_path / home), "status")
        assert shown.returncode == 1
        assert why in shown.stderr


def test_a_run_that_was_never_saved_is_not_called_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("x")
    run = package.start_run("yolov8n.pt", home=tmp_path / "file", worker="none")
    run.log_metrics({"loss": 1.0}, epoch=0)

    run.finish(timeout=0)

    last = caplog.messages[-1]
    assert last.startswith("this run of yolov8n.pt: 1 could not be saved")
    assert last.endswith("see: hubqueue check")


def test_a_home_that_others_can_read_is_a_warning_with_its_command(home: Path) -> None:
    Home(home).create()
    home.chmod(0o755)

    checked = hubqueue(environ_of(home), "check", "--offline")

    assert f"warn  home          {home} can be read by others (mode 0755)" in checked.stdout
    assert f"chmod go-rwx {home}" in checked.stdout
    assert checked.returncode == 0
