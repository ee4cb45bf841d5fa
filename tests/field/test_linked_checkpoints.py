"""A checkpoint that is a symbolic link (`best.pt -> epoch12.pt`): the file behind it is saved."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from stage import environ_of, hubqueue, python

from hubqueue.config.reader import SpoolSettings
from hubqueue.domain.errors import CheckpointUnreadable
from hubqueue.outbox.spool.spool import Spool
from hubqueue.sandbox import Sandbox

TRAIN = """
import hubqueue, sys
run = hubqueue.start_run("yolov8n.pt", worker="none")
print(run.save_checkpoint(sys.argv[1], epoch=3))
print("unsaved", run.finish(timeout=0).unsaved)
"""


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", SpoolSettings(min_free_bytes=0))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "epoch12.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights of epoch 12")
    return path


def saved(spool: Spool, path: Path | str) -> bytes:
    snapshot = spool.take(path, label="x")
    spool.verify(snapshot)
    with closing(spool.open(snapshot)) as body:
        return b"".join(bytes(block) for block in body)


def _relative(weights: Path) -> Path:
    weights.with_name("best.pt").symlink_to("epoch12.pt")
    return weights.with_name("best.pt")


def _chain(weights: Path) -> Path:
    for number in range(20):
        target = weights if number == 0 else weights.with_name(f"link{number - 1}")
        weights.with_name(f"link{number}").symlink_to(target)
    return weights.with_name("link19")


def _hard(weights: Path) -> Path:
    os.link(weights, weights.with_name("best.pt"))
    return weights.with_name("best.pt")


def _through_a_folder(weights: Path) -> Path:
    (weights.parents[1] / "latest").symlink_to(weights.parent)
    return weights.parents[1] / "latest" / "epoch12.pt"


@pytest.mark.parametrize("lead", [_relative, _chain, _hard, _through_a_folder])
def test_the_file_behind_a_link_is_saved(spool: Spool, weights: Path, lead: Callable[[Path], Path]) -> None:
    link = lead(weights)

    assert saved(spool, link) == b"weights of epoch 12"
    kept = next(spool.path.iterdir())
    assert kept.is_file() and not kept.is_symlink()
    assert link.exists() and weights.read_bytes() == b"weights of epoch 12"


def test_a_saved_link_does_not_change_when_it_is_switched(spool: Spool, weights: Path) -> None:
    link = _relative(weights)
    snapshot = spool.take(link, label="x")

    weights.with_name("epoch13.pt").write_bytes(b"other weights")
    link.unlink()
    link.symlink_to("epoch13.pt")

    spool.verify(snapshot)
    assert saved(spool, link) == b"other weights"


def test_a_link_that_is_switched_during_the_copy_gives_one_of_its_files(spool: Spool, tmp_path: Path) -> None:
    contents = {letter: letter.encode() * 3_000_000 for letter in "ab"}
    for letter, content in contents.items():
        (tmp_path / letter).write_bytes(content)
    link, done = tmp_path / "best.pt", threading.Event()
    link.symlink_to("a")

    def switch() -> None:
        number = 0
        while not done.wait(0.0002):
            number += 1
            (tmp_path / "next").symlink_to("ab"[number % 2])
            os.replace(tmp_path / "next", link)

    switching = threading.Thread(target=switch)
    switching.start()
    try:
        found = [saved(spool, link) for _ in range(30)]
    finally:
        done.set()
        switching.join()

    assert all(each in contents.values() for each in found)


REFUSED = {
    "dangling": ("gone.pt", "symbolic link to gone.pt, which does not exist"),
    "circle": ("bad.pt", "leads in a circle"),
    "device": ("/dev/zero", "not a plain file"),
    "terminal": ("/dev/tty", "not a plain file"),
    "folder": (".", "is a folder"),
    "missing folder": ("gone/best.pt", "which does not exist"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", REFUSED)
def test_a_link_to_no_file_is_refused_with_the_reason(spool: Spool, tmp_path: Path, kind: str) -> None:
    target, why = REFUSED[kind]
    (tmp_path / "bad.pt").symlink_to(target)

    with pytest.raises(CheckpointUnreadable, match=why) as refused:
        spool.take(tmp_path / "bad.pt", label="x")

    assert refused.value.hint
    assert str(tmp_path / "bad.pt") in str(refused.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="plays another user")
def test_a_link_of_another_user_sends_no_file_of_this_one(
    spool: Spool, tmp_path: Path, weights: Path
) -> None:
    planted = tmp_path / "best.pt"
    planted.symlink_to(weights)
    os.lchown(planted, 54321, 54321)
    (tmp_path / "ours.pt").symlink_to("best.pt")

    for each in (planted, tmp_path / "ours.pt"):
        with pytest.raises(CheckpointUnreadable, match="of another user") as refused:
            spool.take(each, label="x")
        assert refused.value.hint

    (tmp_path / "folder").symlink_to(weights.parent)
    os.lchown(tmp_path / "folder", 54321, 54321)
    for how in ({"archive": True}, {"folders": True}):
        with pytest.raises(CheckpointUnreadable, match="of another user"):
            spool.take(tmp_path / "folder", label="x", **how)

    os.chown(weights, 54321, 54321)  # their own file: as with a folder that a container has mounted
    assert saved(spool, planted) == b"weights of epoch 12"


@pytest.mark.timeout(60)
def test_a_pipe_behind_a_link_does_not_block(spool: Spool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "best.pt").symlink_to("pipe")

    with pytest.raises(CheckpointUnreadable, match="not a plain file"):
        spool.take(tmp_path / "best.pt", label="x")


@pytest.mark.parametrize("path", ["with\0nul", ""])
def test_a_path_that_is_no_path_is_refused(spool: Spool, path: str) -> None:
    with pytest.raises(CheckpointUnreadable):
        spool.take(path, label="x")


def test_a_training_saves_the_file_behind_its_link(hub: Sandbox, home: Path, weights: Path) -> None:
    environ = environ_of(home, hub.url)

    out, _ = python(TRAIN, environ, str(_relative(weights))).communicate(timeout=60)
    drained = hubqueue(environ, "drain", "--timeout", "60")

    assert (drained.returncode, "unsaved 0" in out) == (0, True), out
    (model,) = hub.models
    (found,) = hub.checkpoints(model)
    assert Path(found.path).read_bytes() == b"weights of epoch 12"


def test_a_training_continues_after_a_link_to_nothing(home: Path, tmp_path: Path) -> None:
    (tmp_path / "best.pt").symlink_to("gone.pt")

    out, _ = python(TRAIN, environ_of(home), str(tmp_path / "best.pt")).communicate(timeout=60)

    assert "the checkpoint was not saved" in out and "which does not exist" in out
    assert "unsaved 1" in out


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="no /proc here")
def test_an_open_file_can_be_named_by_its_descriptor(spool: Spool, weights: Path) -> None:
    with weights.open("rb") as file:
        assert saved(spool, f"/proc/self/fd/{file.fileno()}") == b"weights of epoch 12"
    read, write = os.pipe()
    with pytest.raises(CheckpointUnreadable, match="not a plain file"):
        spool.take(f"/proc/self/fd/{read}", label="x")
    os.close(read)
    os.close(write)


def test_a_shell_saves_its_standard_input_if_it_is_a_file(home: Path, weights: Path) -> None:
    environ = environ_of(home)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    saving = (sys.executable, "-m", "hubqueue", "enqueue", "checkpoint", "--run", run, "--epoch", "0")

    with weights.open("rb") as file:
        given = subprocess.run(
            [*saving, "/dev/stdin"], env=environ, stdin=file, capture_output=True, check=False
        )
    piped = subprocess.run(
        [*saving, "/dev/stdin"], env=environ, input=b"weights", capture_output=True, check=False
    )

    assert (given.returncode, piped.returncode == 0) == (0, False), given.stderr
    assert b"not a plain file" in piped.stderr
    (kept,) = (home / "spool").glob("[!.]*")
    assert kept.read_bytes() == b"weights of epoch 12"
