"""A home in which nothing can be written: it can be looked at, and each command says what is the matter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stage import environ_of, hubqueue

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
    *(["resume", "hub"], ["enqueue", "run", "--model", "a.pt"]),
)
TRAINING = """
import os, sys
import hubqueue
run = hubqueue.start_run("yolov8n.pt", destination="hub", worker="none")
run.log_metrics({"loss": 1.0}, epoch=0)
run.finish(timeout=0) if sys.argv[1] == "finished" else os._exit(0)
"""
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(params=["pysqlite3", "sqlite3"])
def driver(request: pytest.FixtureRequest) -> str:
    if request.param == "pysqlite3":
        pytest.importorskip("pysqlite3", reason="there is no pysqlite3 wheel for this platform")
    return str(request.param)


@pytest.fixture(params=["finished", "killed"])
def trained(request: pytest.FixtureRequest, home: Path, driver: str) -> dict[str, str]:
    """The environment of a home with a run in it; a killed one leaves its log files there."""
    environ = environ_of(home, HUBQUEUE_OUTBOX__DRIVER=driver)
    subprocess.run(
        [sys.executable, "-c", TRAINING, request.param], env=environ, check=True, capture_output=True
    )
    return environ


def forbid_writing(home: Path) -> None:
    for folder, _, files in os.walk(home):
        for each in files:
            os.chmod(Path(folder, each), 0o400)
        os.chmod(folder, 0o500)


def without_privileges(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of a user whom permission bits stop; root without its capabilities is one."""
    command = [sys.executable, "-m", "hubqueue", *arguments]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to give up its privileges")
        command = ["setpriv", "--bounding-set=-all", *command]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def read_only(trained: dict[str, str], home: Path) -> Command:
    """Runs a command on a home whose files and folders nobody may write."""
    forbid_writing(home)
    return lambda *arguments: without_privileges(trained, *arguments)


@pytest.fixture
def on_a_read_only_disk(trained: dict[str, str], home: Path) -> Command:
    """Runs a command that sees the home on a disk that is mounted read-only."""
    script = f'mount --bind "{home}" "{home}" && mount -o remount,ro,bind "{home}" && exec "$@"'
    namespace = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this user may not mount")

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [*namespace, sys.executable, "-m", "hubqueue", *arguments]
        return subprocess.run(line, env=trained, capture_output=True, text=True, timeout=240, check=False)

    return command


def test_everything_can_be_looked_at(read_only: Command, home: Path) -> None:
    shown = {" ".join(command): read_only(*command) for command in READING}

    for name, each in shown.items():
        assert "Traceback" not in each.stderr, name
        assert "error: " not in each.stderr, name
    status = json.loads(shown["status --json"].stdout)
    assert status["outbox"]["read_only"] is True
    assert status["totals"]["pending"] == 2
    assert f"note: the home {home} is read-only" in shown["status"].stderr
    assert ", read-only)" in shown["status"].stdout
    assert shown["status"].returncode == 0
    assert shown["check --offline"].returncode == 1
    assert f"the home {home} is read-only" in shown["check --offline"].stdout


def test_a_look_changes_no_file(read_only: Command, home: Path) -> None:
    before = {
        each: each.read_bytes() for each in home.rglob("*") if each.is_file() and each.suffix != ".db-shm"
    }

    read_only("status")

    assert {each: each.read_bytes() for each in before} == before
    assert not list(home.glob("*.again-*"))


def test_what_is_on_a_read_only_disk_can_be_looked_at(on_a_read_only_disk: Command, home: Path) -> None:
    for command in (["status", "--json"], ["entries"], ["check", "--offline"]):
        shown = on_a_read_only_disk(*command)
        assert "Traceback" not in shown.stderr
        assert "error: " not in shown.stderr, shown.stderr
    assert f"error: the home {home} is read-only" in on_a_read_only_disk("drain").stderr


@pytest.mark.parametrize("driver", ["sqlite3"], indirect=True)
@pytest.mark.parametrize("trained", ["finished"], indirect=True)
def test_a_command_that_writes_is_refused_in_one_line_with_a_hint(read_only: Command, home: Path) -> None:
    for command in WRITING:
        refused = read_only(*command)
        lines = refused.stderr.splitlines()
        assert refused.returncode == 1, command
        assert lines[0] == f"error: the home {home} is read-only", command
        assert lines[1].startswith("hint: make it writable"), command
        assert len(lines) == 2, command


@pytest.mark.parametrize("driver", ["pysqlite3"], indirect=True)
@pytest.mark.parametrize("trained", ["killed"], indirect=True)
def test_a_log_without_its_shared_memory_is_read_from_a_copy(read_only: Command, home: Path) -> None:
    home.chmod(0o700)
    (home / "outbox.db-shm").unlink()
    home.chmod(0o500)

    shown = read_only("status", "--json")

    assert json.loads(shown.stdout)["totals"]["pending"] == 2


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
