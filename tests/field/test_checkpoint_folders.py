"""A checkpoint of many files: it arrives whole or not at all, and nothing of it is lost on the way (P12)."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from plugin_stage import (
    ID,
    SECRET,
    Collector,
    configure,
    install,
    plugin_environ,
    plugin_hubqueue,
    plugin_python,
)
from stage import (
    PATIENCE,
    end,
    environ_of,
    files_in,
    hubqueue,
    kill,
    platform_environ,
    python,
    start_worker,
    wait_until,
)
from torture.disk import Disk, build, can_build, changes

from hubqueue.config.reader import SpoolSettings
from hubqueue.domain.entry import Snapshot
from hubqueue.domain.errors import CheckpointUnreadable, SnapshotAltered, SnapshotMissing, SpoolFull
from hubqueue.domain.lifecycle import State
from hubqueue.outbox.outbox import open_outbox
from hubqueue.outbox.spool.spool import Spool
from hubqueue.sandbox import Sandbox

ROOMY = SpoolSettings(min_free_bytes=0)
TRAIN = """
import hubqueue, sys
run = hubqueue.start_run(sys.argv[1], worker="none")
print(run.save_checkpoint(sys.argv[2], epoch=3, archive=sys.argv[3:] == ["archive"]))
print("unsaved", run.finish(timeout=0).unsaved)
"""


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", ROOMY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint as distributed trainings write it: shards, a nested folder, an empty and a hidden file."""
    return make_folder(tmp_path / "step-120")


def make_folder(path: Path) -> Path:
    for name, content in {
        "model-00001.bin": os.urandom(3_000_000),
        "model-00002.bin": b"shard",
        "optimizer/rank 0/state.pt": os.urandom(5000),
        "done": b"",
        ".metadata": b"hidden",
    }.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def read(spool: Spool, snapshot: Snapshot) -> bytes:
    with closing(spool.open(snapshot)) as body:
        return b"".join(bytes(block) for block in body)


def take(spool: Spool, path: Path) -> dict[str, bytes]:
    """Save a folder, and read it back."""
    snapshot = spool.take(path, label="x", folders=True)
    return {each.path: read(spool, each.snapshot) for each in spool.files(snapshot)}


# --- what is saved


def test_a_folder_is_saved_with_every_file_and_its_hash(spool: Spool, folder: Path) -> None:
    content = files_in(folder)

    snapshot = spool.take(folder, label="run-1", folders=True)
    manifest = read(spool, snapshot)
    listed = json.loads(manifest)["files"]

    assert snapshot.size == sum(map(len, content.values()))
    assert snapshot.sha256 == hashlib.sha256(manifest).hexdigest()
    assert listed == [
        {"path": path, "size": len(content[path]), "sha256": hashlib.sha256(content[path]).hexdigest()}
        for path in sorted(content)
    ]
    assert {each.path: read(spool, each.snapshot) for each in spool.files(snapshot)} == content
    spool.look_at(snapshot)
    spool.verify(snapshot)
    assert spool.exists(snapshot)


def test_a_saved_folder_does_not_change_with_its_source(spool: Spool, folder: Path) -> None:
    content = files_in(folder)
    snapshot = spool.take(folder, label="x", folders=True)

    (folder / "model-00001.bin").write_bytes(b"the next step")
    (folder / "model-00002.bin").unlink()

    assert {each.path: read(spool, each.snapshot) for each in spool.files(snapshot)} == content


def test_the_copy_is_private_whatever_the_source(spool: Spool, folder: Path) -> None:
    (folder / "done").chmod(0o777)
    folder.chmod(0o777)

    snapshot = spool.take(folder, label="x", folders=True)

    kept = spool.path / snapshot.name
    assert {oct(each.stat().st_mode & 0o777) for each in kept.iterdir()} == {"0o600"}
    assert oct(kept.stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize(
    "name",
    [
        "with\nnewline",
        "back\\slash",
        "..almost",
        "ünï-日本.pt",
        "n" * 255,
        "manifest.json",
        "/".join(["deep"] * 200) + "/x",
        "UPPER/x",
        "upper/x",
        "__pycache__/a.pyc",
        "b.tmp",
    ],
    ids=lambda name: name[:12].encode("ascii", "replace").decode(),
)
def test_a_file_keeps_its_name(spool: Spool, tmp_path: Path, name: str) -> None:
    path = tmp_path / "ckpt" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")

    assert take(spool, tmp_path / "ckpt") == {name: b"x"}


@pytest.mark.parametrize("files", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_files_are_one_checkpoint(spool: Spool, tmp_path: Path, files: int) -> None:
    folder = tmp_path / "ckpt"
    folder.mkdir()
    for number in range(files):
        (folder / f"{number}.bin").write_bytes(b"%d" % number)

    snapshot = spool.take(folder, label="x", folders=True)

    assert len(spool.files(snapshot)) == files
    spool.look_at(snapshot)
    spool.remove(snapshot.name)
    assert list(spool.path.iterdir()) == []


def test_a_link_to_a_file_of_the_folder_is_saved_as_that_file(spool: Spool, folder: Path) -> None:
    (folder / "latest.bin").symlink_to("model-00002.bin")
    (folder / "optimizer" / "up").symlink_to("../latest.bin")

    saved = take(spool, folder)

    assert saved["latest.bin"] == saved["optimizer/up"] == b"shard"


def test_a_link_to_a_folder_can_be_passed(spool: Spool, folder: Path) -> None:
    (folder.parent / "latest").symlink_to(folder)

    assert take(spool, folder.parent / "latest") == files_in(folder)


# --- what is refused, by name


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(path))


REFUSED = {
    "out of the folder": lambda path: path.symlink_to("/etc/hostname"),
    "out of it by a relative path": lambda path: path.symlink_to("../secret.txt"),
    "dangling": lambda path: path.symlink_to("nothing"),
    "circle": lambda path: path.symlink_to("bad"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder inside": lambda path: path.symlink_to("optimizer"),
    "the folder itself": lambda path: path.symlink_to("."),
    "pipe": _pipe,
    "socket": _socket,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_content_of_its_own_is_refused_by_name(
    spool: Spool, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "secret.txt").write_text("not part of the checkpoint")
    monkeypatch.chdir(folder.parent)
    REFUSED[kind](folder / "bad")

    with pytest.raises(CheckpointUnreadable, match="'bad'") as refused:
        spool.take(folder, label="x", folders=True)

    assert refused.value.hint
    assert list(spool.path.glob("*")) == []


def test_a_name_that_is_not_utf8_is_refused(spool: Spool, folder: Path) -> None:
    (folder / os.fsdecode(b"caf\xe9.pt")).write_bytes(b"x")

    with pytest.raises(CheckpointUnreadable, match=r"not UTF-8.*caf") as refused:
        spool.take(folder, label="x", folders=True)

    str(refused.value).encode()  # a log can write it


@pytest.mark.parametrize("inside", [(), ("a/b", "c")])
def test_a_folder_without_a_file_is_refused(spool: Spool, tmp_path: Path, inside: tuple[str, ...]) -> None:
    (tmp_path / "empty").mkdir()
    for each in inside:
        (tmp_path / "empty" / each).mkdir(parents=True)

    with pytest.raises(CheckpointUnreadable, match="without a file") as refused:
        spool.take(tmp_path / "empty", label="x", folders=True)

    assert refused.value.hint


def test_a_folder_that_contains_the_spool_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointUnreadable, match="contains the spool"):
        Spool(folder / "home" / "spool", ROOMY).take(folder, label="x", folders=True)


@pytest.mark.parametrize("archive", [False, True])
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, folder: Path, archive: bool) -> None:
    spool = Spool(tmp_path / "spool", SpoolSettings(max_bytes=2_000_000, min_free_bytes=0))

    with pytest.raises(SpoolFull):
        spool.take(folder, label="x", folders=True, archive=archive)

    assert list(spool.path.glob("*")) == []


# --- a folder that is still being written


def _appear(folder: Path, number: int) -> None:
    (folder / f"new-{number}").write_bytes(b"x")


def _grow(folder: Path, number: int) -> None:
    with (folder / "model-00002.bin").open("ab") as file:
        file.write(b"x")


def _replace(folder: Path, number: int) -> None:
    (folder.parent / "next").write_bytes(b"%05d" % number)
    os.replace(folder.parent / "next", folder / "model-00002.bin")


def _vanish(folder: Path, number: int) -> None:
    (folder / "come-and-go").write_bytes(b"x")
    (folder / "come-and-go").unlink()
    _appear(folder, number)


# Both ways of saving look for changes with the same code: one kind of change shows that the second one does.
@pytest.mark.parametrize(
    ("change", "archive"),
    [
        *((change, False) for change in (_appear, _grow, _replace, _vanish)),
        (_grow, True),
        *(pytest.param(change, True, marks=pytest.mark.slow) for change in (_appear, _replace, _vanish)),
    ],
)
def test_a_folder_that_changes_under_the_copy_is_refused(
    spool: Spool, folder: Path, change: Any, archive: bool
) -> None:
    (folder / "large.bin").write_bytes(os.urandom(20_000_000))  # copied while the others change
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.wait(0.002):
            number += 1
            change(folder, number % 500 if change is _grow else number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(CheckpointUnreadable, match="still being written") as refused:
            spool.take(folder, label="x", folders=True, archive=archive)
    finally:
        done.set()
        writer.join()

    assert refused.value.hint
    assert list(spool.path.iterdir()) == []


def test_a_folder_that_is_complete_a_moment_later_is_taken(spool: Spool, folder: Path) -> None:
    done = threading.Event()

    def write() -> None:
        for number in range(20):
            _appear(folder, number)
            done.wait(0.005)

    writer = threading.Thread(target=write)
    writer.start()
    saved = take(spool, folder)
    writer.join()

    assert {name: saved[name] for name in saved} == {
        name: content for name, content in files_in(folder).items() if name in saved
    }


# --- what is in the spool


@pytest.mark.parametrize(
    "damage", ["a file is gone", "a file is shorter", "a bit", "the manifest", "no manifest"]
)
def test_a_damaged_copy_is_found(spool: Spool, folder: Path, damage: str) -> None:
    snapshot = spool.take(folder, label="x", folders=True)
    kept = spool.path / snapshot.name
    first = next(each for each in spool.files(snapshot) if each.size > 1_000_000)
    path = spool.path / first.snapshot.name
    if damage == "a file is gone":
        path.unlink()
    elif damage == "a file is shorter":
        os.truncate(path, 100)
    elif damage == "a bit":
        _flip(path, 2_000_000)
    elif damage == "the manifest":
        _flip(kept / "manifest.json", 20)
    else:
        (kept / "manifest.json").unlink()

    with pytest.raises((SnapshotMissing, SnapshotAltered)) as found:
        spool.verify(snapshot)
    if damage != "a bit":  # that one is found during the upload, before the last block
        with pytest.raises((SnapshotMissing, SnapshotAltered)):
            spool.look_at(snapshot)

    assert found.value.hint


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_saved_folder_counts_and_is_removed_as_a_whole(spool: Spool, folder: Path) -> None:
    kept, gone, orphan = (spool.take(folder, label=name, folders=True) for name in ("a", "b", "c"))
    half = spool.path / "half-000000000000.folder.part"
    half.mkdir()
    (half / "00000000").write_bytes(b"x" * 1000)
    assert (
        spool.bytes_used()
        == 3 * kept.size
        + sum((spool.path / each.name / "manifest.json").stat().st_size for each in (kept, gone, orphan))
        + 1000
    )

    spool.remove(gone.name)
    young = spool.sweep(lambda _: {kept.name}, older_than=timedelta(hours=1), now=time.time())
    old = spool.sweep(lambda _: {kept.name}, older_than=timedelta(hours=1), now=time.time() + 7200)

    assert (young, set(old)) == ((), {orphan.name, half.name})
    assert [each.name for each in spool.path.iterdir()] == [kept.name]
    spool.verify(kept)


def test_a_long_copy_is_not_swept_under_its_process(spool: Spool) -> None:
    """The folder was made long ago, but a file in it is being written."""
    half = spool.path / "half-000000000000.folder.part"
    half.mkdir(parents=True)
    (half / "00000000").write_bytes(b"x")
    made = half.stat().st_ctime
    threading.Event().wait(0.05)
    (half / "00000000").write_bytes(b"xx")

    swept = spool.sweep(lambda _: (), older_than=timedelta(0), now=made + 0.02)

    assert swept == ()


@pytest.mark.parametrize(
    "name", ["../x.folder", "a/b.folder", "x.folder/../y", "x.folder/00000000/z", ".folder"]
)
def test_a_name_from_the_database_stays_in_the_spool(spool: Spool, name: str) -> None:
    with pytest.raises(SnapshotMissing):
        spool.open(Snapshot(name, 1, 0, "0"))


def test_a_file_system_that_shares_blocks_gives_every_hash(
    spool: Spool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reflink reads no bytes of the source. Here the system call copies them instead."""
    shared: list[int] = []

    def ioctl(target: int, request: int, source: int) -> int:
        assert request == 0x40049409
        shared.append(os.copy_file_range(source, target, os.fstat(source).st_size, 0, 0))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    content = files_in(folder)
    snapshot = spool.take(folder, label="x", folders=True)

    assert shared == [3_000_000]  # a small file is read, because its hash is needed
    assert {each.path: each.snapshot.sha256 for each in spool.files(snapshot)} == {
        path: hashlib.sha256(each).hexdigest() for path, each in content.items()
    }
    spool.verify(snapshot)


def test_the_spool_of_a_damaged_outbox_gives_its_folders_to_the_new_one(
    spool: Spool, folder: Path, tmp_path: Path
) -> None:
    snapshot = spool.take(folder, label="x", folders=True)
    new = Spool(tmp_path / "new" / "spool", ROOMY)

    assert [new.adopt(snapshot, spool.path) for _ in range(2)] == [True, True]
    assert not new.adopt(dataclasses.replace(snapshot, name="gone-000000000000.folder"), spool.path)

    shutil.rmtree(spool.path)
    new.verify(snapshot)


# --- one file for a destination that takes one


def test_a_folder_becomes_one_tar_with_the_same_bytes_each_time(spool: Spool, folder: Path) -> None:
    content = files_in(folder)
    one = spool.take(folder, label="x", archive=True)
    os.utime(folder / "done", (1, 1))
    two = spool.take(folder, label="x", archive=True)

    tar = read(spool, one)
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        found = {each.name: members.extractfile(each).read() for each in members}  # type: ignore[union-attr]
        owners = {(each.uid, each.gid, each.uname, each.gname) for each in members}

    assert (found, list(found)) == (content, sorted(content))
    assert owners == {(0, 0, "", "")}
    assert (len(tar), hashlib.sha256(tar).hexdigest()) == (one.size, one.sha256) == (two.size, two.sha256)
    assert one.extension == ".tar"


def test_the_tar_is_one_that_tar_reads(spool: Spool, folder: Path, tmp_path: Path) -> None:
    (folder / ("long" * 60)).write_bytes(b"x")
    (folder / "ünï-日本").write_bytes(b"y")
    content = files_in(folder)
    snapshot = spool.take(folder, label="x", archive=True)
    (tmp_path / "out").mkdir()

    subprocess.run(["tar", "-xf", str(spool.path / snapshot.name), "-C", str(tmp_path / "out")], check=True)

    assert files_in(tmp_path / "out") == content


def test_a_hub_gets_a_folder_as_one_file(hub: Sandbox, home: Path, folder: Path) -> None:
    environ = environ_of(home, hub.url)

    out, _ = python(TRAIN, environ, "yolov8n.pt", str(folder), "archive").communicate(timeout=60)
    drained = hubqueue(environ, "drain", "--timeout", "60")

    assert (drained.returncode, "unsaved 0" in out) == (0, True), out
    (model,) = hub.models
    (saved,) = hub.checkpoints(model)
    with tarfile.open(saved.path) as members:
        assert members.getnames() == sorted(files_in(folder))


def test_platform_gets_a_folder_as_a_tar_by_name(hub: Sandbox, home: Path, folder: Path) -> None:
    environ = platform_environ(home, hub.url)

    out, _ = python(TRAIN, environ, "yolo26n.pt", str(folder), "archive").communicate(timeout=60)
    drained = hubqueue(environ, "drain", "--timeout", "60")

    assert (drained.returncode, "unsaved 0" in out) == (0, True), out
    (model,) = hub.runs
    (upload,) = hub.run(model).uploads
    assert upload.filename == "last.tar" and upload.promoted_at is not None and upload.path is not None
    with tarfile.open(upload.path) as members:
        assert members.getnames() == sorted(files_in(folder))


def test_a_file_is_not_archived(hub: Sandbox, home: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    environ = environ_of(home, hub.url)

    python(TRAIN, environ, "yolov8n.pt", str(tmp_path / "last.pt"), "archive").communicate(timeout=60)
    hubqueue(environ, "drain", "--timeout", "60")

    (model,) = hub.models
    (saved,) = hub.checkpoints(model)
    assert Path(saved.path).read_bytes() == b"weights"


def test_a_folder_for_a_hub_is_refused_at_once_and_counted(home: Path, folder: Path) -> None:
    environ = environ_of(home)

    out, _ = python(TRAIN, environ, "yolov8n.pt", str(folder)).communicate(timeout=60)
    shown = json.loads(hubqueue(environ, "status", "--json").stdout)

    assert "the destination takes one file (save it as one .tar: archive=True" in out
    assert "None\n" in out and "unsaved 1" in out
    assert "is a folder" in shown["runs"][0]["unsaved_why"]
    assert list((home / "spool").glob("[!.]*")) == []


def test_a_shell_saves_a_folder(home: Path, folder: Path) -> None:
    environ = environ_of(home)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    saving = ("enqueue", "checkpoint", "--run", run, "--epoch", "0", str(folder))

    refused = hubqueue(environ, *saving)
    saved = hubqueue(environ, *saving, "--archive")

    assert refused.returncode != 0 and "--archive" in refused.stderr
    assert (saved.returncode, "entry" in saved.stdout) == (0, True)


# --- all the way, to a destination that takes folders


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def lab(home: Path, tmp_path: Path, collector: Collector) -> dict[str, str]:
    """The environment of a training whose runs go to the destination of the page."""
    configure(home, collector.url)
    secrets = {"HUBQUEUE_KEY_LAB": ID, "HUBQUEUE_SECRET_LAB": SECRET}
    return plugin_environ(home, install(tmp_path / "site"), **secrets)


def test_a_folder_arrives_with_all_its_files_and_the_manifest_last(
    home: Path, tmp_path: Path, folder: Path, collector: Collector
) -> None:
    environ = lab(home, tmp_path, collector)
    content = files_in(folder)

    out, _ = plugin_python(TRAIN, environ, "resnet50.pt", str(folder)).communicate(timeout=60)
    drained = plugin_hubqueue(environ, "drain", "--timeout", "60")

    assert drained.returncode == 0, out + drained.stderr
    sent = [
        (unquote(path.partition("/checkpoints/last")[2]).lstrip("/"), headers["Idempotency-Key"], body)
        for path, headers, body in collector.requests
        if "/checkpoints/" in path
    ]
    *files, (last, _, manifest) = sent
    assert last == ""
    assert {path: body for path, _, body in files} == content
    assert {each["path"]: each["sha256"] for each in json.loads(manifest)["files"]} == {
        path: hashlib.sha256(body).hexdigest() for path, body in content.items()
    }
    assert len({key for _, key, _ in sent}) == len(sent)
    assert list((home / "spool").glob("[!.]*")) == []


def test_a_shell_sends_a_folder_as_it_is_where_that_is_taken(
    home: Path, tmp_path: Path, folder: Path, collector: Collector
) -> None:
    environ = lab(home, tmp_path, collector)
    run = plugin_hubqueue(environ, "enqueue", "run", "resnet50.pt", "--to", "lab").stdout.strip()

    saved = plugin_hubqueue(
        environ, "enqueue", "checkpoint", "--run", run, "--epoch", "0", "--best", str(folder)
    )
    plugin_hubqueue(environ, "drain", "--timeout", "60")

    assert saved.returncode == 0, saved.stderr
    assert {
        path.removeprefix("checkpoints/best/")
        for path in collector.taken
        if path.startswith("checkpoints/best/")
    } == set(files_in(folder))


def test_an_outage_in_the_middle_repeats_the_same_bytes_and_keys(
    home: Path, tmp_path: Path, folder: Path, collector: Collector
) -> None:
    environ = lab(home, tmp_path, collector)
    plugin_python(TRAIN, environ, "resnet50.pt", str(folder)).communicate(timeout=60)
    collector.fails_after = 3

    drained = plugin_hubqueue(environ, "drain", "--timeout", "60")

    assert drained.returncode == 0, drained.stderr
    sent: dict[str, set[tuple[str, bytes]]] = {}
    for path, headers, body in collector.requests:
        sent.setdefault(path, set()).add((headers["Idempotency-Key"], body))
    assert all(len(each) == 1 for each in sent.values())
    assert collector.failed == 1
    assert len(collector.taken) == 1 + len(files_in(folder)) + 1 + 1


def test_a_worker_killed_in_the_middle_delivers_the_folder_whole_later(
    home: Path, tmp_path: Path, folder: Path, collector: Collector
) -> None:
    environ = lab(home, tmp_path, collector)
    plugin_python(TRAIN, environ, "resnet50.pt", str(folder)).communicate(timeout=60)
    collector.waits_at = 3
    worker = start_worker(environ)
    assert collector.reached.wait(PATIENCE)
    kill(worker)
    assert "checkpoints/last" not in collector.taken
    collector.go_on.set()

    worker = start_worker(environ)
    wait_until(lambda: "end" in collector.taken and "checkpoints/last" in collector.taken)
    end(worker)

    taken = collector.taken
    manifest = json.loads(taken["checkpoints/last"])
    assert {each["path"]: each["sha256"] for each in manifest["files"]} == {
        path: hashlib.sha256(body).hexdigest() for path, body in files_in(folder).items()
    }
    assert {path: taken[f"checkpoints/last/{path}"] for path in files_in(folder)} == files_in(folder)


def test_a_file_that_was_altered_in_the_spool_is_never_whole_at_the_destination(
    home: Path, tmp_path: Path, folder: Path, collector: Collector
) -> None:
    environ = lab(home, tmp_path, collector)
    plugin_python(TRAIN, environ, "resnet50.pt", str(folder)).communicate(timeout=60)
    (kept,) = (home / "spool").glob("*.folder")
    large = max(kept.glob("0*"), key=lambda each: each.stat().st_size)
    _flip(large, 2_500_000)

    plugin_hubqueue(environ, "drain", "--timeout", "60")

    assert "checkpoints/last" not in collector.taken
    assert "checkpoints/last/model-00001.bin" not in collector.taken
    shown = plugin_hubqueue(environ, "entries", "--state", "dead").stdout
    assert "not what was enqueued" in shown
    assert kept.is_dir()  # a dead entry keeps its bytes


# --- a power cut at any moment

SAVED = """
import json, os, sys
from pathlib import Path
from torture.disk import Shim
from hubqueue.config.reader import SpoolSettings
from hubqueue.outbox.spool.spool import Spool
root, source = Path(sys.argv[1]), Path(sys.argv[2])
shim = Shim(root)
shim.record(Path(sys.argv[3]))
spool = Spool(root / "spool", SpoolSettings(min_free_bytes=0))
receipts = os.open(root / "receipts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
for number in range(3):
    snapshot = spool.take(source, label=str(number), folders=True)
    os.write(receipts, (json.dumps([snapshot.name, snapshot.size, 0, snapshot.sha256]) + "\\n").encode())
    if number == 1:
        spool.remove(snapshot.name)
"""


@pytest.mark.skipif(not can_build(), reason="needs Linux and a C compiler")
def test_a_power_cut_leaves_all_of_a_folder_or_nothing(tmp_path: Path) -> None:
    source, root, record = tmp_path / "ckpt", tmp_path / "disk", tmp_path / "record"
    (source / "b").mkdir(parents=True)
    root.mkdir()
    for name, size in {"a": 3000, "b/c": 5000, "empty": 0, "large": 1_100_000}.items():
        (source / name).write_bytes(os.urandom(size))
    environ = {**os.environ, **build(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SAVED, str(root), str(source), str(record)]
    subprocess.run(command, env=environ, check=True)

    dice, disk, receipts, whole = random.Random(1), Disk(root), b"", 0
    for change in changes(record):
        if change.path == str(root / "receipts"):
            receipts += change.data
        else:
            disk.apply(change)
        shutil.rmtree(tmp_path / "image", ignore_errors=True)
        survives, torn = dice.choice([(0.0, False), (1.0, False), (0.5, True)])
        for path, content in disk.image(dice, survives=survives, torn=torn):
            target = tmp_path / "image" / Path(path).relative_to(root)
            target.mkdir() if content is None else target.write_bytes(content)
        spool = Spool(tmp_path / "image" / "spool", ROOMY)
        saved = [Snapshot(*json.loads(line)) for line in receipts.splitlines()]
        for each in saved:
            if each.name.startswith("1-") and not spool.exists(each):
                continue  # it was removed
            spool.verify(each)
            whole += 1
        for path in spool.path.glob("*.folder"):
            manifest = json.loads((path / "manifest.json").read_bytes())
            hashes = [hashlib.sha256((path / f"{n:08d}").read_bytes()).hexdigest() for n in range(4)]
            assert [each["sha256"] for each in manifest["files"]] == hashes
    assert whole > 10


# --- killed at any moment

KILLED = """
import os, signal, sys, hubqueue
left = int(sys.argv[3])
def deadly(act):
    def step(*given, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return act(*given, **named)
    return step
run = hubqueue.start_run("resnet50.pt", worker="none", strict=True)
for name in ("fsync", "rename", "mkdir"):
    setattr(os, name, deadly(getattr(os, name)))
run.save_checkpoint(sys.argv[1], epoch=0, archive=sys.argv[2] == "archive")
print("alive")
os._exit(0)
"""


@pytest.mark.parametrize("how", ["folder", "archive"])
def test_a_kill_at_any_step_leaves_all_of_it_or_nothing(
    tmp_path: Path, collector: Collector, how: str
) -> None:
    folder = tmp_path / "ckpt"
    (folder / "b").mkdir(parents=True)
    for name in ("a", "b/c"):
        (folder / name).write_bytes(name.encode() * 1000)
    (folder / "large").write_bytes(os.urandom(1_500_000))
    home = tmp_path / "home"
    environ = lab(home, tmp_path, collector)
    (tmp_path / "defaults.toml").touch()  # this process has not the package of that destination
    for step in range(1, 200):
        process = plugin_python(KILLED, environ, str(folder), how, str(step))
        out, _ = process.communicate(timeout=60)
        with open_outbox(home, tmp_path / "defaults.toml", environ={}) as outbox:
            owed = [snapshot for _, snapshot in outbox.stats.snapshots(State.PENDING)]
            for each in owed:
                outbox.spool.verify(each)
            later = time.time() + 7200
            outbox.spool.sweep(outbox.entries.snapshots_kept, older_than=timedelta(hours=1), now=later)
            assert {each.name for each in (home / "spool").glob("[!.]*")} == {each.name for each in owed}
        if "alive" in out:
            assert len(owed) == 1
            break
        assert process.returncode == -9, out
        assert owed == []
    assert step > 3
