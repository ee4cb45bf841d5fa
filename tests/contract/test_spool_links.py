"""A further name for a snapshot: as good as a copy, and without its room."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from hubqueue.config.reader import SpoolSettings
from hubqueue.domain.entry import Snapshot
from hubqueue.domain.errors import SnapshotAltered, SnapshotMissing, SpoolFull
from hubqueue.outbox.spool.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", SpoolSettings(min_free_bytes=0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "step-120"
    (path / "optimizer").mkdir(parents=True)
    (path / "model.bin").write_bytes(os.urandom(1_500_000))
    (path / "optimizer" / "rank-0.bin").write_bytes(b"rank 0")
    (path / "empty").touch()
    return path


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system without hard links, such as exFAT."""

    def refused(*_given: object, **_named: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)


def file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    return path


def read(spool: Spool, snapshot: Snapshot) -> bytes:
    with closing(spool.open(snapshot)) as body:
        return b"".join(bytes(block) for block in body)


def test_a_further_name_outlives_the_first_one(spool: Spool, tmp_path: Path) -> None:
    first = spool.take(file(tmp_path, b"weights"), label="run-1-0")
    second = spool.share(first, label="run-2-0")
    room = spool.bytes_used()

    spool.remove(first.name)

    assert second.name.startswith("run-2-0-")
    assert (second.size, second.sha256) == (first.size, first.sha256)
    assert read(spool, second) == b"weights"
    assert room == spool.bytes_used() == 7
    spool.remove(second.name)
    assert spool.bytes_used() == 0


def test_a_folder_gets_a_further_name_with_every_file(spool: Spool, folder: Path) -> None:
    first = spool.take(folder, label="run-1-0", folders=True)
    room = spool.bytes_used()
    second = spool.share(first, label="run-2-0")
    assert spool.bytes_used() == room
    inodes = [{each.stat().st_ino for each in (spool.path / one.name).iterdir()} for one in (first, second)]
    assert inodes[0] == inodes[1]

    spool.remove(first.name)

    spool.verify(second)
    assert [each.path for each in spool.files(second)] == ["empty", "model.bin", "optimizer/rank-0.bin"]
    assert not list(spool.path.glob("*.part"))


@pytest.mark.usefixtures("no_links")
def test_without_links_a_folder_is_copied_with_every_file(spool: Spool, folder: Path) -> None:
    first = spool.take(folder, label="run-1-0", folders=True)
    second = spool.share(first, label="run-2-0")
    spool.remove(first.name)

    spool.verify(second)
    assert len(spool.files(second)) == 3


@pytest.mark.usefixtures("no_links")
def test_a_copy_needs_room_of_its_own(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolSettings(max_bytes=150_000, min_free_bytes=0))
    first = spool.take(file(tmp_path, b"w" * 100_000), label="run-1-0")

    with pytest.raises(SpoolFull):
        spool.share(first, label="run-2-0")

    assert [each.name for each in spool.path.iterdir()] == [first.name]


def test_a_link_needs_no_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolSettings(max_bytes=150_000, min_free_bytes=0))
    first = spool.take(file(tmp_path, b"w" * 100_000), label="run-1-0")

    for number in range(3):
        spool.share(first, label=f"run-{number}-0")

    assert spool.bytes_used() == 100_000


def test_a_name_for_a_snapshot_that_is_gone_is_an_error(spool: Spool, tmp_path: Path, folder: Path) -> None:
    for path in (file(tmp_path, b"weights"), folder):
        first = spool.take(path, label="x", folders=True)
        spool.remove(first.name)

        with pytest.raises(SnapshotMissing):
            spool.share(first, label="y")

    assert list(spool.path.iterdir()) == []


@pytest.mark.usefixtures("no_links")
def test_an_altered_snapshot_gets_no_copy(spool: Spool, tmp_path: Path) -> None:
    first = spool.take(file(tmp_path, b"weights"), label="x")
    (spool.path / first.name).write_bytes(b"WEIGHTS")
    if first.sha256 is None:
        pytest.skip("this file system shares blocks: the copy has no hash")

    with pytest.raises(SnapshotAltered):
        spool.share(first, label="y")

    assert len(list(spool.path.iterdir())) == 1


def test_a_new_name_is_not_swept_with_an_old_one(spool: Spool, tmp_path: Path) -> None:
    """The age counts from the last name that a file got, so that a copy that others need is not old."""
    first = spool.take(file(tmp_path, b"weights"), label="x")
    before = (spool.path / first.name).stat().st_ctime
    second = spool.share(first, label="y")

    gone = spool.sweep(lambda _names: (), older_than=timedelta(0), now=before)

    assert gone == ()
    assert read(spool, second) == b"weights"
