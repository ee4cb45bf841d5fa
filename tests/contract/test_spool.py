"""The spool: a snapshot is the exact file, or its copy is clearly refused."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from stage import PATIENCE, environ_of, python

from hubqueue.config.reader import SpoolSettings
from hubqueue.domain.entry import Snapshot
from hubqueue.domain.errors import (
    CheckpointUnreadable,
    OutboxUnavailable,
    SnapshotAltered,
    SnapshotMissing,
    SpoolFull,
)
from hubqueue.domain.lifecycle import State
from hubqueue.outbox.outbox import open_outbox
from hubqueue.outbox.spool.ballast import Ballast
from hubqueue.outbox.spool.body import SnapshotBody
from hubqueue.outbox.spool.hashing import BLOCK, HashBehind, from_file
from hubqueue.outbox.spool.spool import Spool

ROOMY = SpoolSettings(min_free_bytes=0)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", ROOMY)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    path.write_bytes(os.urandom(5_000_000))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small real file system."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class SlowDisk:
    """A disk that deletes nothing before `go` is set. `asked` is set when a deletion begins."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk, unlink = SlowDisk(), os.unlink

    def wait(*given: Any, **named: Any) -> None:
        if threading.current_thread().name == "hubqueue-removal":
            disk.asked.set()
            disk.go.wait(60)
        unlink(*given, **named)

    monkeypatch.setattr(os, "unlink", wait)
    yield disk
    disk.go.set()


def test_a_snapshot_is_the_file_with_its_hash(spool: Spool, source: Path) -> None:
    snapshot = spool.take(source, label="run-1")

    content = _read(spool, snapshot)
    assert content == source.read_bytes()
    assert snapshot.size == len(content)
    assert snapshot.sha256 in (None, hashlib.sha256(content).hexdigest())
    assert snapshot.name.startswith("run-1-")
    spool.verify(snapshot)


def test_a_change_in_place_does_not_reach_the_snapshot(spool: Spool, source: Path) -> None:
    before = source.read_bytes()
    snapshot = spool.take(source, label="x")

    with source.open("r+b") as file:
        file.write(b"\0" * 1000)
        file.truncate(2000)

    spool.verify(snapshot)
    assert _read(spool, snapshot) == before


def test_a_file_that_grows_during_the_copy_is_refused(spool: Spool, source: Path) -> None:
    done = threading.Event()

    def grow() -> None:
        with source.open("ab") as file:
            for _ in range(20_000):
                file.write(b"x" * 4096)
                file.flush()
                if done.wait(0.0005):
                    return

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with pytest.raises(CheckpointUnreadable, match="still being written"):
            spool.take(source, label="x")
    finally:
        done.set()
        writer.join()

    assert list(spool.path.iterdir()) == []


def test_a_file_that_stops_growing_is_taken(spool: Spool, source: Path) -> None:
    done = threading.Event()

    def grow_a_little() -> None:
        with source.open("ab") as file:
            for _ in range(20):
                file.write(b"x" * 4096)
                file.flush()
                done.wait(0.005)

    writer = threading.Thread(target=grow_a_little)
    writer.start()
    snapshot = spool.take(source, label="x")
    writer.join()

    spool.verify(snapshot)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "empty"])
def test_anything_but_a_finished_file_is_refused(spool: Spool, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "empty":
        path.touch()

    with pytest.raises(CheckpointUnreadable) as refused:
        spool.take(path, label="x")

    assert refused.value.hint
    assert str(path) in str(refused.value)


def test_the_cap_counts_everything_in_the_spool(tmp_path: Path, source: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolSettings(max_bytes=11_000_000, min_free_bytes=0))
    spool.take(source, label="one")
    spool.take(source, label="two")

    with pytest.raises(SpoolFull, match=r"11\.0 MB"):
        spool.take(source, label="three")

    assert spool.bytes_used() == 10_000_000


def test_a_full_disk_leaves_no_partial_copy(small_disk: Path, source: Path) -> None:
    spool = Spool(small_disk / "spool", ROOMY)
    spool.path.mkdir()
    (small_disk / "filler").write_bytes(b"x" * 1_000_000)
    nearly = small_disk.parent / "nearly.pt"
    nearly.write_bytes(b"x" * 1_040_000)

    with pytest.raises(SpoolFull):
        spool.take(source, label="too large")
    with contextlib.suppress(SpoolFull):
        spool.take(nearly, label="fits once at most")
    with pytest.raises(SpoolFull):
        spool.take(nearly, label="does not fit twice")

    assert not [path for path in spool.path.iterdir() if path.name.endswith(".part")]


def test_the_ballast_makes_room_when_the_disk_is_full(small_disk: Path) -> None:
    ballast = Ballast(small_disk / "ballast", size=65536)
    assert ballast.create()
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "outbox").write_bytes(b"x" * 40_000)

    assert ballast.release()

    (small_disk / "outbox").write_bytes(b"x" * 40_000)
    assert not ballast.release()
    assert not ballast.create()


@pytest.mark.parametrize("damage", ["gone", "shorter", "other", "link"])
def test_a_missing_or_altered_snapshot_is_found(spool: Spool, source: Path, damage: str) -> None:
    snapshot = spool.take(source, label="x")
    path = spool.path / snapshot.name
    if damage in ("gone", "link"):
        path.unlink()
    if damage == "link":
        path.symlink_to(source)
    elif damage == "shorter":
        os.truncate(path, 100)
    elif damage == "other":
        path.write_bytes(os.urandom(snapshot.size))

    with pytest.raises((SnapshotMissing, SnapshotAltered)) as found:
        spool.verify(snapshot)

    assert found.value.hint


def test_a_copy_waits_for_a_deletion_that_frees_its_room(
    tmp_path: Path, source: Path, slow_disk: SlowDisk
) -> None:
    spool = Spool(tmp_path / "spool", SpoolSettings(max_bytes=11_000_000, min_free_bytes=0))
    old = spool.take(source, label="old")
    kept = spool.take(source, label="kept")
    spool.remove_behind([old.name])
    assert slow_disk.asked.wait(PATIENCE)

    threading.Timer(0.2, slow_disk.go.set).start()
    new = spool.take(source, label="new")

    assert {path.name for path in spool.path.iterdir()} == {kept.name, new.name}


def test_a_copy_with_enough_room_waits_for_no_deletion(
    spool: Spool, source: Path, slow_disk: SlowDisk
) -> None:
    old = spool.take(source, label="old")
    spool.remove_behind([old.name])
    assert slow_disk.asked.wait(PATIENCE)

    new = spool.take(source, label="new")

    assert {path.name for path in spool.path.iterdir()} == {old.name, new.name}
    slow_disk.go.set()


def test_a_deletion_that_frees_nothing_makes_no_room(
    tmp_path: Path, source: Path, slow_disk: SlowDisk
) -> None:
    spool = Spool(tmp_path / "spool", SpoolSettings(max_bytes=6_000_000, min_free_bytes=0))
    spool.take(source, label="kept")
    spool.remove_behind(["never-there.ckpt"])
    slow_disk.go.set()

    with pytest.raises(SpoolFull):
        spool.take(source, label="new")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_waits_for_no_deletion_of_its_parent(
    tmp_path: Path, source: Path, slow_disk: SlowDisk
) -> None:
    spool = Spool(tmp_path / "spool", SpoolSettings(max_bytes=6_000_000, min_free_bytes=0))
    old = spool.take(source, label="old")
    spool.remove_behind([old.name])
    assert slow_disk.asked.wait(PATIENCE)

    child = os.fork()
    if child == 0:
        try:
            spool.take(source, label="new")
        except SpoolFull:
            os._exit(7)
        finally:
            os._exit(1)
    deadline = time.monotonic() + PATIENCE
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    slow_disk.go.set()

    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 7
    assert ended[0], "the child hangs"


def test_where_no_thread_can_be_started_the_caller_deletes(
    spool: Spool, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    old = spool.take(source, label="old")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    spool.remove_behind([old.name])

    assert list(spool.path.iterdir()) == []


_SAVES = """
import atexit, os, sys, threading, hubqueue
unlink = os.unlink
def slow(*given, **named):
    threading.Event().wait(0.3)
    unlink(*given, **named)
os.unlink = slow
run = hubqueue.start_run("yolov8n.pt", worker="none", strict=True)
def save(*epochs):
    for epoch in epochs:
        run.save_checkpoint(sys.argv[1], epoch=epoch)
"""


@pytest.mark.parametrize("when", ["save(0, 1, 2)", "atexit.register(save, 0, 1, 2)"])
def test_the_end_of_a_process_leaves_no_superseded_snapshot(home: Path, source: Path, when: str) -> None:
    process = python(_SAVES + when, environ_of(home), str(source), fresh=True)
    process.communicate(timeout=60)

    assert process.returncode == 0
    assert len(list((home / "spool").glob("[!.]*"))) == 1


def test_a_snapshot_left_by_a_kill_is_swept(home: Path, source: Path) -> None:
    code = """
def dies(*given, **named):
    os.kill(os.getpid(), 9)
os.unlink = dies
save(0, 1)
threading.Event().wait(60)
"""
    environ = environ_of(home)
    process = python(_SAVES + code, environ, str(source))
    process.communicate(timeout=60)
    assert process.returncode == -9
    assert len(list((home / "spool").glob("[!.]*"))) == 2

    with open_outbox(home, environ=environ) as outbox:
        later = time.time() + 7200
        swept = outbox.spool.sweep(outbox.entries.snapshots_kept, older_than=timedelta(hours=1), now=later)
        (owed,) = [snapshot for _, snapshot in outbox.stats.snapshots(State.PENDING)]

    assert len(swept) == 1
    assert [path.name for path in (home / "spool").glob("[!.]*")] == [owed.name]


@pytest.mark.parametrize("offset", [0, 2_500_000, -1], ids=["first", "middle", "last"])
def test_the_last_block_of_an_altered_body_is_withheld(spool: Spool, source: Path, offset: int) -> None:
    snapshot = spool.take(source, label="x")
    _flip(spool.path / snapshot.name, offset)

    given: list[int] = []
    with closing(spool.open(snapshot)) as body, pytest.raises(SnapshotAltered, match="not what was enqueued"):
        given.extend(len(block) for block in body)

    assert given == [BLOCK] * (snapshot.size // BLOCK)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK])
def test_an_altered_body_of_one_block_is_found_before_it_is_sent(
    spool: Spool, source: Path, size: int
) -> None:
    source.write_bytes(os.urandom(size))
    snapshot = spool.take(source, label="x")
    spool.look_at(snapshot)
    _flip(spool.path / snapshot.name, -1)

    with pytest.raises(SnapshotAltered):
        spool.look_at(snapshot)


@pytest.mark.parametrize("damage", ["gone", "shorter", "longer"])
def test_a_large_body_that_is_gone_or_of_another_size_is_found_before_it_is_sent(
    spool: Spool, source: Path, damage: str
) -> None:
    snapshot = spool.take(source, label="x")
    path = spool.path / snapshot.name
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, snapshot.size + (1 if damage == "longer" else -1))

    with pytest.raises((SnapshotMissing, SnapshotAltered)):
        spool.look_at(snapshot)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK, 4 * BLOCK + 1, 9 * BLOCK + 7])
def test_a_body_of_any_size_is_read_completely(spool: Spool, source: Path, size: int) -> None:
    source.write_bytes(os.urandom(size))
    snapshot = spool.take(source, label="x")

    assert snapshot.sha256 is not None
    for each in (snapshot, dataclasses.replace(snapshot, sha256=None)):
        assert _read(spool, each) == source.read_bytes()


def test_a_body_without_a_hash_is_verified_by_its_time(spool: Spool, source: Path) -> None:
    """A reflink reads no bytes, so it has no hash."""
    snapshot = dataclasses.replace(spool.take(source, label="x"), sha256=None)
    spool.look_at(snapshot)
    body = spool.open(snapshot)
    _flip(spool.path / snapshot.name, -1)

    for check in (spool.look_at, spool.verify, lambda _snapshot: list(body)):
        with pytest.raises(SnapshotAltered):
            check(snapshot)
    body.close()


def test_a_half_read_body_keeps_no_thread_and_no_file(spool: Spool, source: Path) -> None:
    snapshot = spool.take(source, label="x")
    threads, files = _threads_and_files()

    with closing(spool.open(snapshot)) as body:
        next(body)
    spool.open(snapshot).close()

    # Threads and files of other tests may disappear; none may be added.
    threads_after, files_after = _threads_and_files()
    assert (threads_after - threads, files_after - files) == (set(), set())


@pytest.mark.parametrize("name", ["../outbox.db", "/etc/passwd", ".hidden.ckpt", "a/b.ckpt", "x.part", ""])
def test_a_name_from_the_database_stays_in_the_spool_folder(spool: Spool, name: str) -> None:
    with pytest.raises(SnapshotMissing):
        spool.open(Snapshot(name, 1, 0))
    with pytest.raises(SnapshotMissing):
        spool.remove(name)


def test_the_sweep_deletes_only_old_unknown_files(spool: Spool, source: Path) -> None:
    kept, orphan = spool.take(source, label="kept"), spool.take(source, label="orphan")
    (spool.path / "half-0.ckpt.part").write_bytes(b"x")
    (spool.path / "notes.txt").write_text("of a person")
    now = (spool.path / kept.name).stat().st_ctime

    assert spool.sweep(lambda names: {kept.name}, older_than=timedelta(hours=1), now=now) == ()
    gone = spool.sweep(lambda names: {kept.name}, older_than=timedelta(hours=1), now=now + 7200)

    assert set(gone) == {orphan.name, "half-0.ckpt.part"}
    assert {path.name for path in spool.path.iterdir()} == {kept.name, "notes.txt"}


def test_a_snapshot_that_was_swept_before_its_commit_is_taken_again(home: Path, source: Path) -> None:
    """A process that was suspended for an hour between the copy and the commit finds no copy."""
    code = """
import os, sys, hubqueue
from hubqueue.outbox.spool import spool
run = hubqueue.start_run("yolov8n.pt", worker="none", strict=True)
take, count = spool.Spool.take, []
def sleepy(self, source, **how):
    snapshot = take(self, source, **how)
    count.append(snapshot)
    if len(count) == 1:
        os.unlink(self.path / snapshot.name)
    return snapshot
spool.Spool.take = sleepy
run.save_checkpoint(sys.argv[1], epoch=0)
print(len(count), len(list(run.outbox.spool.path.glob('[!.]*'))), run.outbox.stats.owed().entries)
"""
    out, _ = python(code, environ_of(home), str(source)).communicate(timeout=60)

    assert out.split() == ["2", "1", "2"], out


def test_a_checkpoint_is_saved_and_read_where_no_thread_can_be_started(
    spool: Spool, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    snapshot = spool.take(source, label="run-1")

    assert snapshot.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert _read(spool, snapshot) == source.read_bytes()
    _flip(spool.path / snapshot.name, 0)
    with pytest.raises(SnapshotAltered):
        spool.verify(snapshot)


def test_a_copy_that_cannot_be_read_back_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(b"x" * 10)

    with (tmp_path / "copy").open("rb", buffering=0) as copy, HashBehind(from_file(copy)) as behind:
        behind.written(11)

    with pytest.raises(OSError, match="read back"):
        behind.digest()


def test_a_temporary_disk_error_buries_no_checkpoint(
    spool: Spool, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = spool.take(source, label="run-1")

    def fail(*_given: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("hubqueue.outbox.spool.spool.os.open", fail)
    with pytest.raises(OutboxUnavailable):
        spool.verify(snapshot)


def test_a_disk_error_during_a_read_is_not_a_network_error(source: Path) -> None:
    class Broken(io.FileIO):
        def readinto(self, _buffer: object) -> int:
            raise BrokenPipeError(32, "a bad disk")  # the one that the HTTP client would ignore

    size = source.stat().st_size
    body = SnapshotBody(Broken(source), Snapshot("x.ckpt", size, 0, "0" * 64))  # type: ignore[arg-type]

    with closing(body), pytest.raises(OutboxUnavailable, match=r"cannot read x\.ckpt: a bad disk"):
        next(body)


def _threads_and_files() -> tuple[set[threading.Thread], set[str]]:
    """The threads of this process, and the files of the spool that it has open."""
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return set(threading.enumerate()), {name for name in names if ".ckpt" in name}


def _read(spool: Spool, snapshot: Snapshot) -> bytes:
    with closing(spool.open(snapshot)) as body:
        return b"".join(bytes(block) for block in body)


def _flip(path: Path, offset: int) -> None:
    """Flip one bit and change nothing else of the file."""
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        (found,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([found ^ 1]))
