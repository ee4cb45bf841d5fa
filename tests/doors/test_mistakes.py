"""Wrong input: always an error with the nearest name, never a success, never a traceback."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from stage import (
    PATIENCE,
    Process,
    command_process,
    environ_of,
    hubqueue,
    in_one_interpreter,
    log,
    must_claim,
    new_run,
)

from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")


@pytest.fixture
def run(home: Path) -> str:
    """A run with one entry that the hub has refused, and one that waits."""
    with open_outbox(home, environ={}) as outbox:
        run_id = new_run(outbox)
        log(outbox, run_id, 7)
        outbox.settlement.bury(must_claim(outbox), reason="400 Bad Request: no such metric", started_at=None)
        log(outbox, run_id, 8)
    return run_id


@pytest.mark.parametrize(
    "arguments",
    [
        ["drain", "--run"],
        ["entries", "--run"],
        ["log", "--run"],
        ["status", "--run"],
        ["cancel", "--run"],
        ["enqueue", "metrics", "--epoch", "0", "loss=1", "--run"],
        ["enqueue", "end", "--run"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_run_that_does_not_exist_is_an_error_with_the_nearest_one(
    home: Path, run: str, arguments: list[str]
) -> None:
    typed = run[:5] + "x" + run[6:]

    shown = hubqueue(environ_of(home), *arguments, typed)

    assert shown.returncode == 2, shown.stdout + shown.stderr
    assert f"error: there is no run {typed}\n" in shown.stderr
    assert f"did you mean {run}?" in shown.stderr


@pytest.mark.parametrize("command", ["drain", "entries", "log", "status"])
@pytest.mark.usefixtures("new_home")
def test_a_run_is_unknown_without_an_outbox(home: Path, command: str) -> None:
    shown = hubqueue(environ_of(home), command, "--run", "nope")

    assert (shown.returncode, "there is no run nope" in shown.stderr) == (2, True)
    assert not home.exists()


def test_a_unique_prefix_of_an_id_is_enough(home: Path, run: str) -> None:
    environ = environ_of(home)
    assert run in hubqueue(environ, "status", "--run", run[:6]).stdout

    with open_outbox(home, environ={}) as outbox:
        runs = [run, *(new_run(outbox, remote_id=f"model-{number}") for number in range(100, 120))]
    first = next(each[0] for each in runs if sum(other.startswith(each[0]) for other in runs) > 1)
    shown = hubqueue(environ, "entries", "--run", first)

    assert shown.returncode == 2
    assert f"runs begin with {first}: " in shown.stderr


def test_an_entry_that_cannot_be_moved_is_reported_with_its_state(home: Path, run: str) -> None:
    environ = environ_of(home)

    unknown = [hubqueue(environ, command, "9999") for command in ("redrive", "cancel", "show")]
    waiting = hubqueue(environ, "redrive", "2")

    assert [(each.returncode, "there is no entry 9999" in each.stderr) for each in unknown] == [(2, True)] * 3
    assert (waiting.returncode, "entry 2 is pending, not dead" in waiting.stderr) == (1, True)
    assert hubqueue(environ, "redrive", "1").returncode == 0
    assert hubqueue(environ, "cancel", "1").returncode == 0
    again = hubqueue(environ, "cancel", "1")
    assert (again.returncode, "entry 1 is cancelled, not pending or dead" in again.stderr) == (1, True)


def test_a_drain_reports_what_was_refused_earlier(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    other = hubqueue(environ, "enqueue", "run", "yolov8s.pt").stdout.strip()
    hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "2", "loss=1")
    hub.fail("metrics:400:epoch=2")
    hubqueue(environ, "drain")

    again = hubqueue(environ, "drain")
    of_run = hubqueue(environ, "drain", "--run", run)
    of_other = hubqueue(environ, "drain", "--run", other)

    for shown in (again, of_run):
        assert shown.returncode == 1, shown.stdout
        assert "1 entry was refused by the hub" in shown.stderr
        assert f"of run {run}, metrics 2: " in shown.stderr
        assert "hint: hubqueue entries --state dead" in shown.stderr
        assert shown.stdout == ""
    assert (of_other.returncode, of_other.stderr) == (0, "")


def test_a_drain_reports_both_what_was_refused_and_what_is_left(home: Path, run: str) -> None:
    shown = hubqueue(environ_of(home, "http://127.0.0.1:9"), "drain", "--timeout", "0.5")

    assert shown.returncode == 1
    assert "1 entry was refused by the hub" in shown.stderr
    assert "1 upload not sent: " in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["statsu"], "did you mean status?"),
        (["stat"], "did you mean status?"),
        (["logs"], "did you mean log?"),
        (["enqueue", "metrcs"], "did you mean metrics?"),
        (["config", "nope"], "there is no command config nope"),
        (["--hepl"], "did you mean --help?"),
        (["status", "--jsn"], "did you mean --json?"),
        (["entries", "--limit", "no"], "--limit must be a whole number of at least 1, not 'no'"),
        (["entries", "--limit", "0"], "--limit must be a whole number of at least 1, not '0'"),
        (["drain", "--timeout", "-1"], "--timeout must be a number of at least 0"),
        (["show", "first"], "ENTRY must be a whole number, not 'first'"),
        (["entries", "--state", "ded"], "--state must be one of pending, delivered, dead"),
        (["enqueue", "metrics", "--epoch", "1"], "the option --run is missing"),
        (["show"], "ENTRY is missing"),
        (
            ["enqueue", "checkpoint", "--run", "r", "--epoch", "1", "--map", "51", "f.pt"],
            "--map must be a number from 0 to 1",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_usage_error_is_one_line_and_one_hint(home: Path, arguments: list[str], words: str) -> None:
    shown = hubqueue(environ_of(home), *arguments)

    lines = shown.stderr.splitlines()
    assert shown.returncode == 2
    assert (len(lines), lines[0][:7], lines[1][:6]) == (2, "error: ", "hint: "), shown.stderr
    assert words in shown.stderr


def test_help_and_version_are_commands_too(home: Path) -> None:
    environ = environ_of(home)

    assert hubqueue(environ, "version").stdout == hubqueue(environ, "--version").stdout
    assert hubqueue(environ, "help").stdout == hubqueue(environ, "--help").stdout
    assert hubqueue(environ, "help", "status").stdout == hubqueue(environ, "status", "--help").stdout


def test_home_and_config_work_after_the_command_too(home: Path, tmp_path: Path, run: str) -> None:
    environ = environ_of(tmp_path / "another")

    assert run in hubqueue(environ, "status", "--home", str(home)).stdout
    assert (
        hubqueue(
            environ, "enqueue", "metrics", "--run", run, "--epoch", "9", "x=1", "--home", str(home)
        ).returncode
        == 0
    )
    wrong = hubqueue(environ, "status", "--config", "/nonexistent.toml")
    assert (wrong.returncode, "there is no configuration" in wrong.stderr) == (2, True)


def test_a_shell_script_follows_the_rules_of_the_python_interface(home: Path) -> None:
    environ = environ_of(home)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    twice = hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "a=1", "a=2")
    hubqueue(environ, "enqueue", "end", "--run", run)

    late = hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "1", "a=1")
    file = hubqueue(environ, "enqueue", "checkpoint", "--run", run, "--epoch", "1", __file__)

    assert (twice.returncode, "a is given twice" in twice.stderr) == (2, True)
    for each in (late, file):
        assert (each.returncode, f"error: run {run} is finished" in each.stderr) == (2, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("where", "command"),
    [
        *(("/dev/full", command) for command in ("status", "runs", "log", "entries")),
        (">&-", "status"),
        *(pytest.param(">&-", command, marks=pytest.mark.slow) for command in ("runs", "log", "entries")),
    ],
)
def test_a_stdout_that_cannot_be_written_is_one_error(home: Path, run: str, command: str, where: str) -> None:
    environ = environ_of(home)
    process: Process
    if where == ">&-":  # the interpreter starts without it
        shell = f"exec {sys.executable} -m hubqueue {command} >&-"
        process = subprocess.Popen(["sh", "-c", shell], env=environ, stderr=subprocess.PIPE, text=True)
    else:
        with open(where, "w") as full:
            process = command_process(environ, command, stdout=full.fileno(), stderr=subprocess.PIPE)

    _, errors = process.communicate(timeout=PATIENCE)

    assert process.returncode == 1
    assert errors is not None and errors.startswith("error: cannot write the output: ")
    assert len(errors.splitlines()) == 2


def test_a_demo_in_an_impossible_folder_is_one_error(home: Path) -> None:
    shown = hubqueue(environ_of(home), "demo", "--keep", os.devnull + "/foo")

    assert shown.returncode in {1, 2}
    assert shown.stderr.startswith("error: ")
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    "encoding",
    ["latin-1", "ascii", *(pytest.param(each, marks=pytest.mark.slow) for each in ("cp1252", "utf-8"))],
)
def test_every_encoding_shows_everything(home: Path, encoding: str) -> None:
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox, model="模型-é.pt"), 0, 1, 2)
        must_claim(outbox)
    environ = environ_of(home, PYTHONIOENCODING=encoding)

    done = in_one_interpreter(environ, "status", "runs", "log", "entries")

    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode("utf-8" if encoding == "ascii" else encoding)
    assert all(each in shown for each in ("uploads waiting", "RUN ", "ENTRY ")), shown


def test_a_terminal_is_asked_for_metrics(home: Path) -> None:
    environ = environ_of(home)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    master, slave = pty.openpty()
    command = ["enqueue", "metrics", "--run", run, "--epoch", "0"]
    process = command_process(environ, *command, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(slave)
    assert process.stderr is not None
    prompt = process.stderr.readline()
    os.write(master, b'{"loss": 1}\n\x04')
    output, _ = process.communicate(timeout=60)
    os.close(master)

    assert "reading JSON" in prompt and "Ctrl-D ends" in prompt
    assert (process.returncode, output) == (0, "entry 2\n")
