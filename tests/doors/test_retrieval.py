"""`hubqueue pull`, `verify` and `destinations`, as a person and a script see them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import shelf
from click.testing import CliRunner, Result
from stage import environ_of

from hubqueue import __version__
from hubqueue.cli import main
from hubqueue.cli.destinations.progress import Bar

RUN = "resnet50-0bf51cd3352d"
WEIGHTS = os.urandom(300_000)


@pytest.fixture
def module(tmp_path: Path) -> Iterator[ModuleType]:
    with shelf.installed(tmp_path / "site") as module:
        yield module


@pytest.fixture
def run(home: Path, tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run at the destination `lab`, and the home of this process."""
    shelf.configure(home, tmp_path / "shelf", "[destinations.hub]", "type = 'hub'")
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shelf" / RUN
    shelf.put(folder, "epoch-0003", {"last.pt": WEIGHTS}, epoch=3, is_best=True, map=0.41)
    files = {"config.json": b"{}", "model/a.bin": WEIGHTS}
    shelf.put(folder, "epoch-0004", files, epoch=4, step=1200, is_folder=True, is_latest=True)
    return folder


def call(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, arguments)


def test_pull_prints_the_path_and_nothing_else(run: Path, tmp_path: Path) -> None:
    first = call("pull", "lab", "--run", RUN)
    again = call("pull", "lab", "--run", RUN)
    file = call("pull", "lab", "--run", RUN, "--which", "best", "--to", "ckpt")

    assert (first.exit_code, first.stdout) == (0, f"{tmp_path}/{RUN}/epoch-0004\n")
    assert first.stderr == f"epoch-0004 of {RUN}: 2 files, 300.0 kB, verified\n"
    assert again.stdout == first.stdout
    assert again.stderr == f"epoch-0004 of {RUN}: 2 files, 300.0 kB, verified; it was here already\n"
    assert (file.exit_code, file.stdout) == (0, f"{tmp_path}/ckpt/epoch-0003/last.pt\n")
    assert (tmp_path / "ckpt" / "epoch-0003" / "last.pt").read_bytes() == WEIGHTS


def test_pull_lists_runs_and_checkpoints(run: Path) -> None:
    assert call("pull", "lab", "--list").stdout == (
        "RUN                    ID            MODEL        STATE\n"
        f"{RUN}  0bf51cd3352d  resnet50.pt  finished\n"
    )
    assert call("pull", "lab", "--list", "--run", RUN).stdout == (
        "CHECKPOINT  EPOCH  STEP  SIZE      FILES  KIND    MAP\n"
        "epoch-0003  3            300.0 kB  1      best    0.41\n"
        "epoch-0004  4      1200  300.0 kB  2      latest\n"
    )
    shown = json.loads(call("pull", "lab", "--list", "--run", RUN, "--json").stdout)
    assert (shown["run"], [each["kinds"] for each in shown["checkpoints"]]) == (RUN, [["best"], ["latest"]])


def test_pull_as_json(run: Path, tmp_path: Path) -> None:
    shown = json.loads(call("pull", "lab", "--run", RUN, "--to", "x", "--json").stdout)

    assert shown["path"] == f"{tmp_path}/x/epoch-0004"
    assert (shown["received"], shown["resumed"]) == (300_002, 0)
    assert shown["checkpoint"]["step"] == 1200


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("lab",), 2, "name the run with --run: hubqueue pull lab --list shows them"),
        (
            ("lab", "--run", RUN, "--which", "newest"),
            2,
            "which must be latest, best, final, epoch:N or step:N",
        ),
        (("hub", "--run", RUN), 2, "destination hub (type hub) cannot be read\nhint: these can: lab"),
        (("lba", "--run", RUN), 2, "unknown destination 'lba'; did you mean 'lab'?"),
        (("lab", "--run", "resnet50"), 1, f"lab has no run 'resnet50'\nhint: did you mean {RUN}?"),
        (("lab", "--run", RUN, "--which", "final"), 1, f"run {RUN} has no checkpoint that is final there"),
        (("lab", "--run", RUN, "--to", "$HOME/x"), 2, "--to $HOME/x has $HOME in it"),
    ],
)
def test_each_mistake_is_one_line_and_a_hint(
    run: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, error: str
) -> None:
    done = call("pull", *arguments)

    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith(f"error: {error}"), done.stderr
    assert "hint: " in done.stderr
    assert not (tmp_path / RUN).exists()


def test_something_else_at_the_path_is_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / RUN / "epoch-0004").mkdir(parents=True)
    (tmp_path / RUN / "epoch-0004" / "mine").write_bytes(b"mine")

    refused = call("pull", "lab", "--run", RUN)
    forced = call("pull", "lab", "--run", RUN, "--force")

    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "exists already, and is not this checkpoint" in refused.stderr
    assert forced.exit_code == 0
    assert not (tmp_path / RUN / "epoch-0004" / "mine").exists()


def test_a_damaged_checkpoint_ends_with_1_and_has_no_path(run: Path, tmp_path: Path) -> None:
    (run / "epoch-0004" / "model" / "a.bin").write_bytes(bytes(300_000))

    done = call("pull", "lab", "--run", RUN)

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "error: 'model/a.bin' of epoch-0004 at lab is not whole: its SHA-256 is not"
    )
    assert os.listdir(tmp_path / RUN) == [".epoch-0004.part"]


def test_ctrl_c_leaves_only_the_part_and_the_same_command_continues(
    run: Path, home: Path, tmp_path: Path, module: ModuleType
) -> None:
    # The second block waits for the signal, in a process of its own.
    code = (
        "import os, sys, threading, hubqueue_shelf\n"
        "from hubqueue.__main__ import main\n"
        "blocks = []\n"
        "def wait():\n"
        "    blocks.append(1)\n"
        "    if len(blocks) == 3:\n"
        "        print('waiting', flush=True)\n"
        "        threading.Event().wait(60)\n"
        "hubqueue_shelf.FAULTS.on_block = wait\n"
        f"sys.argv[1:] = ['pull', 'lab', '--run', {RUN!r}]\n"
        "main()\n"
    )
    environ = environ_of(home, PYTHONPATH=f"{tmp_path / 'site'}{os.pathsep}{shelf.ROOT}")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err.strip()) == (1, "", "aborted")
    assert os.listdir(tmp_path / RUN) == [".epoch-0004.part"]
    module.FAULTS.requests.clear()
    done = call("pull", "lab", "--run", RUN)
    assert done.exit_code == 0
    assert ("blocks", "model/a.bin", 65_536) in module.FAULTS.requests
    assert "of it were here already" in done.stderr


def test_verify_has_a_line_for_each_difference(run: Path) -> None:
    whole = call("verify", "lab", "--run", RUN)
    (run / "epoch-0004" / "model" / "a.bin").write_bytes(b"x")
    (run / "epoch-0004" / "config.json").unlink()
    broken = call("verify", "lab", "--run", RUN, "--read")
    shown = json.loads(call("verify", "lab", "--run", RUN, "--json").stdout)

    assert (whole.exit_code, broken.exit_code) == (0, 1)
    assert whole.stdout == (
        "ok    epoch-0003  1 file, 300.0 kB, by the hashes that the destination states\n"
        "ok    epoch-0004  2 files, 300.0 kB, by the hashes that the destination states\n"
    )
    assert broken.stdout == (
        "ok    epoch-0003  1 file, 300.0 kB, all bytes read\n"
        "FAIL  epoch-0004  2 differences\n"
        "      config.json: it is not there\n"
        "      model/a.bin: it has 1 byte, not 300000\n"
    )
    assert (shown["ok"], [each["ok"] for each in shown["checkpoints"]]) == (False, [True, False])
    assert call("verify", "lab", "--run", RUN, "--which", "best").exit_code == 0


def test_a_name_from_a_bucket_cannot_change_the_terminal(run: Path) -> None:
    evil = [{"path": "a\x1b[2Jb", "size": 1, "sha256": None}]
    shelf.rewrite(run, "epoch-0004", files=evil)

    for arguments in (("verify", "lab", "--run", RUN), ("pull", "lab", "--run", RUN)):
        done = call(*arguments)
        assert done.exit_code == 1
        assert "\x1b" not in done.output


def test_destinations_shows_types_and_what_is_configured(
    run: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBQUEUE_KEY_HUB", "key-of-the-tests")

    lines = call("destinations").stdout.splitlines()
    shown = json.loads(call("destinations", "--json").stdout)

    assert [line.split() for line in lines if line.startswith(("TYPE", "shelf"))] == [
        ["TYPE", "PACKAGE", "FOLDERS", "STEPS", "PULL", "SECRETS", "KINDS"],
        ["shelf", "hubqueue-shelf", "1.0", "yes", "-", "yes", "none", "registration,", "ckpt"],
    ]
    assert [line.split()[:4] for line in lines[lines.index("") + 1 :]] == [
        ["DESTINATION", "TYPE", "ADDRESS", "KEY"],
        ["hub", "hub", "https://api.ultralytics.com", "yes"],
        ["lab", "shelf", "-", "-"],
    ]
    types = {each["type"]: each for each in shown["types"]}
    assert (types["hub"]["package"], types["hub"]["version"]) == ("hubqueue", __version__)
    assert (types["shelf"]["pull"], types["shelf"]["secrets"]) == (True, [])
    assert {each["name"]: each["key"] for each in shown["destinations"]} == {"hub": True, "lab": None}
    assert "key-of-the-tests" not in json.dumps(shown) + "\n".join(lines)


def test_destinations_names_a_broken_package_and_shows_the_others(
    run: Path, module: ModuleType, home: Path
) -> None:
    Path(str(module.__file__)).write_text("import a_library_that_is_not_there")
    del sys.modules["hubqueue_shelf"]
    shelf.look_again()

    done = call("destinations")
    (broken,) = [
        each for each in json.loads(call("destinations", "--json").stdout)["types"] if each["type"] == "shelf"
    ]

    assert done.exit_code == 0
    assert "! destinations of type 'shelf' cannot be loaded from hubqueue-shelf" in done.stdout
    assert broken["problem"] is not None
    assert (broken["package"], broken["kinds"]) == ("hubqueue-shelf", None)


def test_destinations_shows_the_types_although_the_configuration_is_wrong(run: Path, home: Path) -> None:
    (home / "config.toml").write_text("[destinations.lab]\ntype = 'shlef'\n")

    done = call("destinations")

    assert done.exit_code == 2
    assert re.search(r"^shelf +hubqueue-shelf 1\.0 ", done.stdout, re.MULTILINE)
    assert "did you mean 'shelf'?" in done.stderr


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_bytes_and_time_left_on_a_terminal_only() -> None:
    terminal, pipe = Terminal(), StringIO()
    for stream in (terminal, pipe, None):
        with Bar(stream, "pull") as bar:
            bar.show(1_000_000, 1_000_000, 4_000_000)
            bar.show(4_000_000, 1_000_000, 4_000_000)

    assert "1.00M/4.00M" in terminal.getvalue()
    assert "4.00M/4.00M" in terminal.getvalue()
    assert pipe.getvalue() == ""
