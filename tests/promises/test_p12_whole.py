"""P12: a checkpoint of several files arrives whole or not at all: its manifest is committed last; and what was delivered can
be fetched back and verified, on another machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from stage import environ_of, files_in, hubqueue, kill, python, start_worker, wait_until

TRAIN = """
import sys, hubqueue
run = hubqueue.start_run("resnet50.pt", destination="nas", name="trial", worker="none")
run.save_checkpoint(sys.argv[1], step=100)
run.finish(timeout=0)
"""
FILES = {f"shard {number:03d}/weights.bin": os.urandom(1000) for number in range(100)} | {
    "config.json": b"{}"
}
CHECKPOINT = "step-00000100"


def machine(home: Path, disk: Path) -> dict[str, str]:
    """The environment of a machine that has the disk."""
    nas = {"HUBQUEUE_DESTINATIONS__NAS__TYPE": "folder", "HUBQUEUE_DESTINATIONS__NAS__PATH": str(disk)}
    return environ_of(home, **nas)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.fixture
def environ(migrated_home: Path, disk: Path, tmp_path: Path) -> dict[str, str]:
    """The machine of a training that has saved a checkpoint of many files, and has sent nothing yet."""
    environ = machine(migrated_home, disk)
    for path, body in FILES.items():
        (tmp_path / "checkpoint" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoint" / path).write_bytes(body)
    out, _ = python(TRAIN, environ, str(tmp_path / "checkpoint")).communicate(timeout=60)
    assert out is not None and ": 3 uploads (" in out
    return environ


def test_a_worker_that_is_killed_leaves_a_whole_checkpoint_or_none(
    environ: dict[str, str], disk: Path, tmp_path: Path
) -> None:
    folder = disk / "trial" / "checkpoints" / CHECKPOINT
    for more in (1, 30):
        worker = start_worker(environ)
        # Only counted, not read: the worker renames them.
        wait_until(
            lambda more=more: (folder / "manifest.json").exists() or len([*folder.rglob("*.*")]) >= more
        )
        kill(worker)
        pulled = hubqueue(environ, "pull", "nas", "--run", "trial", "--to", str(tmp_path / f"after {more}"))
        found = files_in(tmp_path / f"after {more}") if pulled.returncode == 0 else None
        assert found in (None, {f"{CHECKPOINT}/{path}": body for path, body in FILES.items()})

    drained = hubqueue(environ, "drain", "--timeout", "60")

    assert drained.returncode == 0, drained.stdout + drained.stderr
    elsewhere = machine(tmp_path / "home of another machine", disk)
    pulled = hubqueue(elsewhere, "pull", "nas", "--run", "trial", "--to", str(tmp_path / "resumed"))
    assert pulled.returncode == 0, pulled.stderr
    assert files_in(tmp_path / "resumed" / CHECKPOINT) == FILES
    verified = hubqueue(elsewhere, "verify", "nas", "--run", "trial", "--json")
    assert verified.returncode == 0, verified.stdout
    assert len(json.loads((folder / "manifest.json").read_text())["files"]) == len(FILES)


@pytest.mark.parametrize("damage", ["another byte", "a byte less", "gone"])
def test_what_is_not_whole_any_more_is_found_and_never_resumed(
    environ: dict[str, str], disk: Path, tmp_path: Path, damage: str
) -> None:
    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0
    shard = disk / "trial" / "checkpoints" / CHECKPOINT / "shard 042" / "weights.bin"
    body = bytearray(shard.read_bytes())
    if damage == "another byte":
        body[500] ^= 1
        shard.write_bytes(body)
    elif damage == "a byte less":
        shard.write_bytes(body[:-1])
    else:
        shard.unlink()

    pulled = hubqueue(environ, "pull", "nas", "--run", "trial", "--to", str(tmp_path / "resumed"))
    verified = hubqueue(environ, "verify", "nas", "--run", "trial")

    assert (pulled.returncode, verified.returncode) == (1, 1)
    assert "shard 042/weights.bin" in pulled.stderr
    assert "shard 042/weights.bin" in verified.stdout
    assert not (tmp_path / "resumed" / CHECKPOINT).exists()
