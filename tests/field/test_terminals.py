"""Terminals that cannot show every character, and outputs that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import template
from stage import environ_of, python

COMMANDS = (
    *(["status"], ["status", "--json"], ["runs"], ["entries"], ["show", "2"], ["log"], ["config", "show"]),
    *(["check", "--offline"], ["drain", "--timeout", "0.2"], ["help"], ["nonsense"]),
)
# Tried each time: the locale that has the smallest character set, for input and names too.
ENCODINGS = (
    pytest.param({"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.slow, id="latin-1"),
    pytest.param({"PYTHONIOENCODING": "cp1252"}, marks=pytest.mark.slow, id="cp1252"),
    pytest.param({"PYTHONIOENCODING": "ascii:strict"}, marks=pytest.mark.slow, id="ascii:strict"),
    pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, id="C"),
)
# The same for streams: an output that is full, and closed ones while an error would still be seen.
OUTPUTS = (
    ">/dev/full",
    "<&- >&-",
    *(
        pytest.param(each, marks=pytest.mark.slow)
        for each in (">&-", "2>/dev/full", "2>&-", ">&- 2>&-", ">/dev/full 2>/dev/full", "<&-")
    ),
)
TRAINING = """
import sys
import hubqueue
run = hubqueue.start_run("modèle-日本-😀.pt", destination="hub", worker="none")
run.log_metrics({"précision/日本": 1.0}, epoch=0)
with open(sys.argv[1], "wb") as file:
    file.write(b"weights")
run.save_checkpoint(sys.argv[1], epoch=0)
run.finish(timeout=0)
"""
# All commands in one process after the other: an interpreter for each of them would take minutes.
ALL = """
import gc, os, sys
import hubqueue.cli.drain, hubqueue.cli.repair, hubqueue.cli.status, hubqueue.outbox.status
import hubqueue.worker.check, hubqueue.worker.service
from hubqueue.__main__ import main
gc.collect()
gc.freeze()  # the end of a fork need not look at what was loaded
for line in os.environ["COMMANDS"].split("|"):
    child = os.fork()
    if child == 0:
        sys.argv = ["hubqueue", *line.split()]
        main()
    os.waitpid(child, 0)
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a home with a run, all of them with names that few terminals can show."""
    found = environ_of(template.lay(tmp_path / "häuser-日本"), "http://127.0.0.1:9")
    training = python(TRAINING, found, str(tmp_path / "é日.pt"))
    out, _ = training.communicate(timeout=100)
    assert training.returncode == 0, out
    return {**found, "COMMANDS": "|".join(" ".join(each) for each in COMMANDS)}


def test_no_training_fails_on_a_character_that_the_terminal_lacks(tmp_path: Path) -> None:
    environ = environ_of(template.lay(tmp_path / "häuser-日本"), "http://127.0.0.1:9")

    trained = subprocess.run(
        [sys.executable, "-c", TRAINING, tmp_path / "é日.pt"],
        env={**environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=False,
    )

    assert trained.returncode == 0, trained.stderr
    assert b"Traceback" not in trained.stderr


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_command_fails_on_a_character_that_the_terminal_lacks(
    environ: dict[str, str], encoding: dict[str, str]
) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", ALL],
        env={**environ, **encoding},
        capture_output=True,
        timeout=240,
        check=False,
    )

    assert b"Traceback" not in shown.stderr, shown.stderr
    assert b"UnicodeEncodeError" not in shown.stderr
    assert b"3 uploads waiting" in shown.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("where", OUTPUTS)
def test_no_command_fails_on_an_output_that_cannot_be_written(environ: dict[str, str], where: str) -> None:
    shown = subprocess.run(
        ["sh", "-c", f'"$@" {where}', "sh", sys.executable, "-c", ALL],
        env=environ,
        capture_output=True,
        timeout=240,
        check=False,
    )

    assert b"Traceback" not in shown.stderr, shown.stderr
    assert b"Exception ignored" not in shown.stderr
    if where == ">/dev/full":
        assert (
            shown.stderr.count(b"error: cannot write the output: No space left on device")
            >= len(COMMANDS) - 2
        )
