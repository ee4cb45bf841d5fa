"""Names with characters that mean something to a shell, a URL, SQLite or a terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import template
from stage import environ_of, hubqueue

import hubqueue as package
from hubqueue.domain.errors import ConfigError
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

NAMES = (
    *(
        "exp?lr=1",
        "exp#1",
        "a%41",
        "a%20b",
        "a;b&c",
        "with blank",
        "quo'te\"s",
        "back\\slash",
        "a*?[x]",
        "x:y",
        "-v",
    ),
    *("new\nline", "tab\there", "red\x1b[31m", "üñ-日本", os.fsdecode(b"latin\xe9")),
)
# Each kind of reader: an option, an escape in a URL, a glob, a shell; a terminal, and bytes that are no text.
QUICK = ("-a%41?lr=1#[x]*;'\\", os.fsdecode(b"new\nl\xe9\x1b[31m"))
EACH = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=ascii(name))
    for name in (*QUICK, *NAMES)
]
TRAINING = """
import os, sys
import hubqueue
with open(sys.argv[1], "wb") as file:
    file.write(b"weights")
run = hubqueue.start_run("yolov8n.pt", destination="hub")
assert run.log_metrics({"loss": 1.0}, epoch=0)
assert run.save_checkpoint(sys.argv[1], epoch=0)
left = run.finish(timeout=100)
assert not left, left
"""


@pytest.mark.parametrize("name", EACH)
def test_every_path_is_itself_in_the_training_the_worker_and_the_commands(
    tmp_path: Path, hub: Sandbox, name: str
) -> None:
    home = tmp_path / name / name
    settings = tmp_path / f"{name}.toml"
    spool = tmp_path / f"spool {name}"
    settings.write_text("[rate_limits]\nmetrics = 0.1\n")
    environ = environ_of(home, hub.url, HUBQUEUE_CONFIG=str(settings), HUBQUEUE_SPOOL__PATH=str(spool))

    checkpoint = tmp_path / f"{name}.pt"
    trained = subprocess.run(
        [sys.executable, "-c", TRAINING, checkpoint],
        env=environ,
        capture_output=True,
        timeout=240,
        check=False,
    )
    shown = hubqueue(environ, "status", "--json")
    settings_shown = hubqueue(environ, "config", "show", "--json")

    assert trained.returncode == 0, trained.stderr
    assert len(hub.checkpoints(hub.models[0])) == 1
    status = json.loads(shown.stdout)
    assert status["outbox"]["url"] == f"sqlite:///{home}/outbox.db"
    assert status["spool"]["path"] == str(spool)
    assert json.loads(settings_shown.stdout)["file"] == str(settings)
    assert {each.name for each in home.iterdir()} >= {"outbox.db", "locks"}
    assert {each.name for each in tmp_path.iterdir()} <= {
        *(name, settings.name, spool.name, checkpoint.name),
        *("hub", "home"),
    }


@pytest.mark.parametrize("name", EACH)
def test_no_name_of_a_path_changes_the_lines_of_a_command(tmp_path: Path, name: str) -> None:
    environ = environ_of(tmp_path / name)
    template.lay(tmp_path / name)

    shown = [
        hubqueue(environ, *command) for command in (["status"], ["check", "--offline"], ["config", "show"])
    ]

    for each in shown:
        assert "Traceback" not in each.stderr
        assert "\x1b" not in each.stdout
    (outbox,) = (line for line in shown[0].stdout.splitlines() if line.startswith("outbox  sqlite:///"))
    assert "/outbox.db  " in outbox
    for line in shown[1].stdout.splitlines():
        assert line.startswith(("ok  ", "warn", "FAIL", "      ")), line


def test_homes_that_differ_after_a_question_mark_do_not_share_an_outbox(tmp_path: Path) -> None:
    for rate in ("1", "2"):
        run = package.start_run("yolov8n.pt", home=tmp_path / f"exp?lr={rate}", worker="none", strict=True)
        run.finish(timeout=0)

    for rate in ("1", "2"):
        with open_outbox(tmp_path / f"exp?lr={rate}", environ={}) as outbox:
            assert len(outbox.stats.run_ids()) == 1


@pytest.mark.parametrize(
    "given",
    [
        "$HOME/runs",
        pytest.param("${SCRATCH}/runs", marks=pytest.mark.slow),
        pytest.param("/data/$USER", marks=pytest.mark.slow),
        "~nobody-of-that-name/runs",
    ],
)
def test_a_variable_that_no_shell_replaced_is_refused_with_a_hint(tmp_path: Path, given: str) -> None:
    environ = {**environ_of(tmp_path), "HUBQUEUE_HOME": given}
    cases = {
        "HUBQUEUE_HOME": (environ, ["status"]),
        "--home": (environ_of(tmp_path / "home"), ["--home", given, "status"]),
        "HUBQUEUE_CONFIG": (environ_of(tmp_path / "home", HUBQUEUE_CONFIG=given), ["status"]),
        "--config": (environ_of(tmp_path / "home"), ["--config", given, "status"]),
        "spool.path": (environ_of(tmp_path / "home", HUBQUEUE_SPOOL__PATH=f"/{given}"), ["status"]),
        "outbox.url": (
            environ_of(tmp_path / "home", HUBQUEUE_OUTBOX__URL=f"sqlite:////tmp/{given}"),
            ["status"],
        ),
    }
    if given.startswith("~"):  # inside a path it is an ordinary character
        cases = {name: case for name, case in cases.items() if name not in ("spool.path", "outbox.url")}

    for name, (variables, command) in cases.items():
        refused = hubqueue(variables, *command)
        assert refused.returncode == 2, name
        assert "was not replaced by its value" in refused.stderr, name
        assert "hint: " in refused.stderr, name
    with pytest.raises(ConfigError, match="was not replaced by its value"):
        package.start_run("yolov8n.pt", home=given, worker="none")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite:///outbox.db", "absolute path"),
        ("sqlite://", "absolute path"),
        ("sqlite:////tmp/outbox.db?mode=ro", "no query"),
    ],
)
def test_a_sqlite_url_that_would_be_another_file_elsewhere_is_refused(
    home: Path, url: str, problem: str
) -> None:
    refused = hubqueue(environ_of(home, HUBQUEUE_OUTBOX__URL=url), "status")

    assert refused.returncode == 2
    assert problem in refused.stderr


@pytest.mark.parametrize("name", ["a%41.db", "a#b.db", "a b.db", "a%20b.db"])
def test_a_sqlite_url_names_its_file_as_it_is_written(tmp_path: Path, name: str) -> None:
    environ = environ_of(tmp_path / "home", HUBQUEUE_OUTBOX__URL=f"sqlite:///{tmp_path / name}")

    with open_outbox(tmp_path / "home", environ=environ):
        assert (tmp_path / name).is_file()

    assert (
        json.loads(hubqueue(environ, "status", "--json").stdout)["outbox"]["url"]
        == f"sqlite:///{tmp_path / name}"
    )


@pytest.mark.parametrize(
    "model",
    ["models/é 日本.pt", "a?b#c%41.pt", "new\nline.pt", "$HOME/yolo.pt", os.fsdecode(b"m\xe9.pt")],
    ids=ascii,
)
def test_a_model_is_saved_and_shown_whatever_its_name(home: Path, model: str) -> None:
    with package.start_run(model, home=home, destination="hub", worker="none", strict=True) as run:
        run.log_metrics({"loss": 1.0}, epoch=0)
        run.finish(timeout=0)

    for command in (["status"], ["runs"], ["status", "--json"], ["show", "1"]):
        shown = hubqueue(environ_of(home), *command)
        assert shown.returncode == 0, shown.stderr
        assert "Traceback" not in shown.stderr
