"""The destination `folder`: its disk is away, another one, full, read-only or without links; what is resumed; who may read it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from layout_stage import BLOCK, Box, Training, random_bytes

from hubqueue.config.reader import parse
from hubqueue.destinations.base import Attempt, DestinationUnavailable, quiet
from hubqueue.destinations.folder.root import Root
from hubqueue.destinations.folder.store import Folder
from hubqueue.domain.errors import ConfigError
from hubqueue.domain.outcome import Aborted, Delivered, Outcome, RetryLater

RUN = "yolov8n-a1b2c3d4e5f6"


@pytest.fixture
def box(tmp_path: Path, home: Path) -> Box:
    home.mkdir(mode=0o700)
    (tmp_path / "disk").mkdir()
    return Box(tmp_path / "disk" / "box", home=home, fsync=True)


def started(box: Box, **named: str) -> Training:
    training = box.training(**named)
    training.sent(training.start())
    return training


def reason(found: Outcome) -> str:
    assert isinstance(found, RetryLater), found
    return found.reason


# --- the settings


def test_the_path_is_the_address_and_must_be_set() -> None:
    found = parse("[destinations.box]\ntype = 'folder'\npath = '~/nas'", {"HOME": "/home/me"}, source="x")
    by_variables = parse(
        "",
        {"HUBQUEUE_DESTINATIONS__BOX__TYPE": "folder", "HUBQUEUE_DESTINATIONS__BOX__PATH": "/mnt/nas"},
        source="x",
    )
    with pytest.raises(ConfigError) as missing:
        parse("[destinations.box]\ntype = 'folder'", {}, source="x")
    with pytest.raises(ConfigError) as relative:
        parse("[destinations.folder]\npath = 'nas'\nurl = 'https://x.example'", {}, source="x")

    assert found.destination("box").url == "/home/me/nas"
    assert found.destination("box").rate_limits.ckpt.total_seconds() == 0
    assert by_variables.destination("box").url == "/mnt/nas"
    (problem,) = missing.value.problems
    assert problem.startswith(
        "destinations.box.path must be set (HUBQUEUE_DESTINATIONS__BOX__PATH): the folder in"
    )
    assert relative.value.problems == (
        "destinations.folder.path must be an absolute path, or one that begins with ~/",
        "destinations.folder.url is a setting of type 'hub' or 'platform' or 'http' or 'huggingface' only; this destination is of type 'folder'",
    )


def test_there_is_no_folder_without_a_configuration() -> None:
    assert "folder" not in parse("", {}, source="x").destinations


# --- whether the folder is there


def test_the_folder_is_made_and_marked_at_its_first_use(box: Box) -> None:
    training = started(box)

    marker = json.loads((box.path / ".hubqueue").read_bytes())
    assert training.run.remembered == {"folder": marker["id"]}


def test_it_is_not_made_where_the_folder_above_it_is_missing(box: Box, tmp_path: Path) -> None:
    (tmp_path / "disk").rmdir()
    training = box.training()

    found = training.send(training.start())

    assert f"{tmp_path / 'disk'} does not exist; mount its disk" in reason(found)
    assert not (tmp_path / "disk").exists()


def test_a_disk_that_is_away_is_waited_for_and_nothing_is_written_in_its_place(
    box: Box, tmp_path: Path
) -> None:
    training, disk = started(box), tmp_path / "disk"
    batches = [training.metrics("0"), training.checkpoint(b"x", epoch=0), training.end()]
    other = box.training(id="b" * 12)  # a new run, of which nothing is remembered
    disk.rename(tmp_path / "off")
    disk.mkdir()

    found = [training.send(each) for each in batches] + [other.send(other.start())]
    left = list(disk.iterdir())
    with pytest.raises(DestinationUnavailable) as unreadable:
        list(box.reader().runs())
    checked = other.transport.check() if other.transport else None
    disk.rmdir()
    (tmp_path / "off").rename(disk)

    assert left == []
    assert {reason(each) for each in found} == {
        f"{box.path}: the folder is not there; mount its disk, or put the folder back"
    }
    assert str(unreadable.value) == f"{box.path}: the folder is not there"
    assert unreadable.value.hint == "mount its disk, or put the folder back"
    assert isinstance(checked, RetryLater)
    for each in batches:
        training.sent(each)
    other.sent(other.start())


def test_a_mount_point_itself_is_not_written_to(box: Box, tmp_path: Path) -> None:
    training = started(box)
    box.path.rename(tmp_path / "off")
    box.path.mkdir()  # the disk's mount point, empty

    found = training.send(training.metrics("0"))

    assert "it is another folder, without the file .hubqueue; mount its disk; to continue" in reason(found)
    assert list(box.path.iterdir()) == []


def test_another_disk_at_the_path_is_refused_until_a_person_says_otherwise(box: Box, tmp_path: Path) -> None:
    training = started(box)
    first = (box.path / ".hubqueue").read_bytes()
    box.path.rename(tmp_path / "first")
    other = Box(box.path, home=None)
    started(other, id="b" * 12)  # of another home
    refused = training.send(training.metrics("0"))

    (box.path / ".hubqueue").write_bytes(b"")
    training.sent(training.metrics("1"))

    assert (
        "another folder is there; mount the right disk; to continue in this folder, empty its file"
        in reason(refused)
    )
    assert (box.path / ".hubqueue").read_bytes() == first
    assert sorted(each.name for each in box.path.iterdir()) == [".hubqueue", RUN, f"yolov8n-{'b' * 12}"]


def test_two_disks_take_turns_at_one_path(box: Box, tmp_path: Path) -> None:
    first = started(box)
    box.path.rename(tmp_path / "first")
    box.path.mkdir()
    (box.path / ".hubqueue").touch()
    (tmp_path / "empty").mkdir()
    second = box.training(id="b" * 12)
    shutil.rmtree(tmp_path / "home" / "folders")  # as in another home, which has used only the second disk
    second.sent(second.start())

    assert "another folder is there" in reason(first.send(first.metrics("0")))
    second.sent(second.metrics("0"))


def test_a_link_to_the_folder_is_followed(box: Box, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    box.path.symlink_to(tmp_path / "real")

    started(box)

    assert (tmp_path / "real" / RUN / "run.json").exists()


def test_a_link_in_place_of_a_file_is_not_followed(box: Box, tmp_path: Path) -> None:
    training = started(box)
    secret = tmp_path / "secret"
    secret.write_text("mine")
    part = box.path / RUN / ".hubqueue.part"
    part.symlink_to(secret)

    found = training.send(training.checkpoint(b"x", epoch=0))

    assert isinstance(found, RetryLater)
    assert secret.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "metrics", "checkpoints", "checkpoints/epoch-0000"])
def test_nothing_is_written_or_deleted_through_a_link_to_another_folder(
    box: Box, tmp_path: Path, name: str
) -> None:
    training = started(box)
    other, link = tmp_path / "other", box.path / RUN / name
    (other / "epoch-0007").mkdir(parents=True)
    (other / "epoch-0007" / "mine").write_bytes(b"mine")
    (box.path / RUN / "uploading-last.json").write_text('{"checkpoint": "epoch-0007", "key": "of another"}')
    if link.exists():
        link.rename(tmp_path / "moved")
        shutil.copytree(tmp_path / "moved", other, dirs_exist_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(other)
    before = sorted(other.rglob("*"))

    found = [training.send(training.metrics("0")), training.send(training.checkpoint(b"x", epoch=0))]

    refused = [each for each in found if isinstance(each, RetryLater)]
    assert refused
    assert all("a symbolic link is in place of" in reason(each) for each in refused)
    assert sorted(other.rglob("*")) == before


def test_a_reader_follows_links_to_folders(box: Box, tmp_path: Path) -> None:
    training = started(box)
    training.sent(training.checkpoint(b"x", epoch=0))
    (box.path / RUN).rename(tmp_path / "archive")
    (box.path / RUN).symlink_to(tmp_path / "archive")

    reader = box.reader()
    (checkpoint,) = reader.checkpoints(RUN)

    assert b"".join(reader.blocks(checkpoint, checkpoint.files[0])) == b"x"


def test_the_umask_decides_who_may_read(box: Box) -> None:
    before = os.umask(0o027)
    try:
        training = started(box)
        training.sent(training.checkpoint(b"x", epoch=0))
    finally:
        os.umask(before)

    for each in box.path.rglob("*"):
        assert each.stat().st_mode & 0o777 == (0o750 if each.is_dir() else 0o640), each


# --- uploads


def test_an_upload_continues_from_the_bytes_that_are_there(box: Box) -> None:
    training = started(box)
    content = random_bytes(4 * BLOCK + 3)
    batch = training.checkpoint(content, epoch=1)
    folder = box.path / RUN / "checkpoints" / "epoch-0001"
    assert isinstance(training.send(batch, stopped_before(training, 2)), Aborted)
    part = folder / ".checkpoint.pt.part"
    before = part.stat()

    training.sent(batch)

    assert before.st_size == 2 * BLOCK
    assert (folder / "checkpoint.pt").read_bytes() == content
    assert (folder / "checkpoint.pt").stat().st_ino == before.st_ino


CONTENT = random_bytes(4 * BLOCK + 3, 1)


@pytest.mark.parametrize(
    "there", [b"", b"wrong", random_bytes(BLOCK, 9), random_bytes(9 * BLOCK), CONTENT[BLOCK:] + b"and more"]
)
def test_wrong_bytes_that_are_there_are_replaced(box: Box, there: bytes) -> None:
    training = started(box)
    batch = training.checkpoint(CONTENT, epoch=1)
    assert isinstance(training.send(batch, stopped_before(training, 1)), Aborted)
    folder = box.path / RUN / "checkpoints" / "epoch-0001"
    (folder / ".checkpoint.pt.part").write_bytes(CONTENT[:BLOCK] + there)

    training.sent(batch)

    assert (folder / "checkpoint.pt").read_bytes() == CONTENT
    assert sorted(each.name for each in folder.iterdir()) == ["checkpoint.pt", "manifest.json"]


def test_a_stop_is_obeyed_between_two_blocks(box: Box) -> None:
    training = started(box)
    batch = training.checkpoint(random_bytes(8 * BLOCK), epoch=1)

    found = training.send(batch, stopped_before(training, 3))

    assert found == Aborted("the worker stops")
    assert training.bytes[-1] == 3 * BLOCK


def test_an_altered_snapshot_never_becomes_a_file(box: Box) -> None:
    training = started(box)
    batch = training.checkpoint(random_bytes(2 * BLOCK), epoch=1)
    for name in training.snapshots:
        training.snapshots[name] = training.snapshots[name][:-1]

    found = training.send(batch)

    assert "the snapshot has" in reason(found)
    assert not (box.path / RUN / "checkpoints/epoch-0001/checkpoint.pt").exists()


def test_another_worker_that_still_writes_the_file_is_waited_for(box: Box) -> None:
    training = started(box)
    batch = training.checkpoint(random_bytes(3 * BLOCK), epoch=1)
    seen: list[Outcome] = []

    def beside(start: int) -> None:
        if start == BLOCK and not seen:
            seen.append(Aborted(""))
            seen[0] = training.send(batch)

    training.on_block = beside
    training.sent(batch)

    assert "another worker is writing this file" in reason(seen[0])


# --- what a disk refuses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB: ext4 in a file, else a tmpfs."""
    point, image = tmp_path / "mounted", tmp_path / "image"
    point.mkdir()
    commands = [
        ["mount", "-o", "loop", str(image), str(point)],
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(point)],
    ]
    with image.open("wb") as file:
        file.truncate(8 << 20)
    if shutil.which("mkfs.ext4"):
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
    mounted = any(
        subprocess.run(each, capture_output=True, check=False).returncode == 0
        for each in commands
        if shutil.which("mount")
    )
    if not mounted:
        pytest.skip("a file system cannot be mounted here")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def test_a_full_disk_is_waited_for_and_the_upload_continues(small_disk: Path, home: Path) -> None:
    home.mkdir(mode=0o700)
    box = Box(small_disk / "box", home=home, fsync=True)
    training = started(box)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3 * BLOCK))
    content = random_bytes(5 * BLOCK)
    batch, metrics = training.checkpoint(content, epoch=1), training.metrics("0")

    full = training.send(batch)
    with (small_disk / "rest").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    small = training.send(metrics)
    left = sorted(name for name in box.tree if "part" in name)
    ballast.unlink()
    (small_disk / "rest").unlink()
    training.sent(batch)
    training.sent(metrics)

    assert reason(full) == f"{box.path}: the disk is full; free space on the disk of the folder"
    assert reason(small) == reason(full)
    assert left == [f"{RUN}/checkpoints/epoch-0001/.checkpoint.pt.part"]
    assert (box.path / RUN / "checkpoints/epoch-0001/checkpoint.pt").read_bytes() == content
    assert len(list((box.path / RUN / "metrics").iterdir())) == 1


def test_a_read_only_disk_is_waited_for(small_disk: Path, home: Path) -> None:
    home.mkdir(mode=0o700)
    box = Box(small_disk / "box", home=home, fsync=True)
    training = started(box)
    batch = training.checkpoint(b"x", epoch=1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    found = training.send(batch)
    checked = training.transport.check() if training.transport else None
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    training.sent(batch)

    assert reason(found) == f"{box.path}: the disk is read-only; mount the disk of the folder writable"
    assert isinstance(checked, RetryLater) and checked.reason == reason(found)


def test_a_disk_that_is_unmounted_in_the_middle_is_not_written_to_below_its_mount_point(
    small_disk: Path, home: Path
) -> None:
    home.mkdir(mode=0o700)
    box = Box(small_disk, home=home)
    training = started(box)

    with Folder(box.settings).sending(training.run.remembered, quiet()) as objects:
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
        objects.create("another-run/run.json", b"{}")
        made = objects.read("another-run/run.json")
    below = list(small_disk.iterdir())
    found = training.send(training.metrics("0"))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small_disk)], check=True)  # for the fixture

    assert made == b"{}"  # on the disk, which is still held open
    assert below == []
    assert "it is another folder" in reason(found)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EIO, "the disk fails; check the disk of the folder"),
        (errno.EACCES, "permission denied; let this user write to the folder"),
        (errno.ESTALE, "the file server has another folder now; mount it again"),
        (errno.EINVAL, "a name has characters that this file system refuses"),
        (errno.ENAMETOOLONG, "a name is too long"),
        (errno.EDQUOT, "the quota of this user is used up"),
        (errno.ELOOP, "a symbolic link is in place of a file or a folder; move that link away"),
        (errno.EMFILE, "Too many open files; check the folder and its disk"),
    ],
)
def test_no_error_of_a_disk_is_an_entrys_fault(number: int, says: str, tmp_path: Path) -> None:
    from hubqueue.destinations.folder.trouble import explained
    from hubqueue.destinations.layout.store import StoreFailed

    with pytest.raises(StoreFailed) as failed, explained(tmp_path):
        raise OSError(number, os.strerror(number))

    assert says in reason(failed.value.outcome)


def test_a_file_system_without_links_still_never_replaces(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # the system's, as FAT and exFAT have none
    training = started(box)
    batch = training.sent(training.metrics("0"))
    before = box.tree

    training.sent(batch)
    with Root(box.path, syncs=False) as root:
        (box.path / "x").write_bytes(b"new")
        with pytest.raises(FileExistsError):
            root.link("x", f"{RUN}/run.json")

    assert {**before, "x": b"new"} == box.tree


# --- hubqueue check


def test_a_check_writes_and_leaves_nothing(box: Box) -> None:
    training = box.training()
    assert training.transport is not None

    first = training.transport.check()
    made_by_check = box.path.exists()
    training.sent(training.start())
    before = box.tree
    second = training.transport.check()

    assert (first, second) == (Delivered(), Delivered())
    assert not made_by_check
    assert box.tree == before


def test_a_check_names_the_folder_above_that_is_missing(box: Box, tmp_path: Path) -> None:
    (tmp_path / "disk").rmdir()
    training = box.training()
    assert training.transport is not None

    assert "does not exist" in reason(training.transport.check())


def stopped_before(training: Training, block: int) -> Attempt:
    """An attempt that is stopped before a block is written (from 0)."""
    stop = threading.Event()

    def on_block(start: int) -> None:
        if start == block * BLOCK:
            stop.set()

    training.on_block = on_block
    return Attempt(lambda: None, lambda _sent: None, stop)
