"""Other users of the machine: files that they own or may write are refused, and their leftovers stop nothing."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from stage import environ_of, hubqueue

import hubqueue as package
from hubqueue.config.credentials import Credentials
from hubqueue.config.home import Home, open_private
from hubqueue.config.reader import SpoolSettings
from hubqueue.destinations.hub.settings import HubSettings
from hubqueue.destinations.ultralytics_settings import borrowed_key
from hubqueue.domain.errors import (
    CheckpointUnreadable,
    ConfigError,
    CredentialsError,
    OutboxUnavailable,
    SnapshotMissing,
)
from hubqueue.outbox.locks import Lock, is_held
from hubqueue.outbox.outbox import open_outbox
from hubqueue.outbox.spool.spool import Spool
from hubqueue.outbox.uploads import upload_of

STRANGER = 54321
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="plays another user")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    at = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has room for 100 characters only
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(at)


def _folder(path: Path) -> None:
    path.mkdir()


SPECIAL = pytest.mark.parametrize("put", [_fifo, _socket, _folder])


# --- whose home it is


@needs_root
@pytest.mark.parametrize("which", ["path", "spool", "locks"])
def test_a_folder_of_another_user_is_refused(home: Home, which: str) -> None:
    folder: Path = getattr(home, which)
    os.chown(folder, STRANGER, STRANGER)

    with pytest.raises(OutboxUnavailable, match=f"{folder} belongs to another user") as refused:
        home.create()

    assert refused.value.hint is not None and f"chown {os.geteuid()} {folder}" in refused.value.hint


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
@pytest.mark.parametrize("which", ["path", "locks"])
def test_a_folder_that_others_may_write_is_refused_with_the_command_that_fixes_it(
    home: Home, which: str, mode: int
) -> None:
    folder: Path = getattr(home, which)
    folder.chmod(mode)
    with pytest.raises(OutboxUnavailable, match="can be changed by others") as refused:
        home.create()

    assert refused.value.hint is not None
    subprocess.run(shlex.split(refused.value.hint), check=True)
    home.create()


@needs_root
def test_a_group_may_write_only_if_it_is_the_users_own(home: Home) -> None:
    os.chown(home.path, 0, STRANGER)
    home.path.chmod(0o770)

    with pytest.raises(OutboxUnavailable, match="can be changed by others"):
        home.create()


def test_a_home_that_others_may_only_read_is_used_with_a_warning(home: Home) -> None:
    assert home.problems() == []
    home.path.chmod(0o755)

    home.create()

    ((what, hint),) = home.problems()
    assert "can be read by others" in what
    subprocess.run(shlex.split(hint), check=True)
    assert home.problems() == []


@pytest.mark.usefixtures("open_umask")
def test_every_new_folder_is_private(tmp_path: Path) -> None:
    home = Home(tmp_path / "a" / "b" / "home")
    home.create()

    for folder in (tmp_path / "a", tmp_path / "a" / "b", home.path, home.spool, home.locks):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder


def test_a_home_below_a_folder_that_every_user_may_write_is_refused_unless_that_is_sticky(
    tmp_path: Path,
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(OutboxUnavailable, match="every user can write to") as refused:
        Home(shared / "deep" / "home").create()
    assert refused.value.hint is not None and f"chmod o-w {shared}" in refused.value.hint

    shared.chmod(0o1777)
    Home(shared / "deep" / "home").create()

    shared.chmod(0o775)
    Home(shared / "deep" / "home").create()


@needs_root
def test_a_folder_of_another_user_in_a_sticky_one_holds_no_home(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    trap = shared / "hubqueue"
    trap.mkdir()
    os.chown(trap, STRANGER, STRANGER)

    for home in (trap, trap / "home"):
        with pytest.raises(OutboxUnavailable, match="another user"):
            Home(home).create()


def test_a_link_to_our_own_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "large-disk")

    with open_outbox(tmp_path / "link", environ={}):
        pass

    assert (tmp_path / "large-disk" / "outbox.db").is_file()


@needs_root
def test_a_link_of_another_user_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "ours")
    os.lchown(link, STRANGER, STRANGER)

    for home in (link, link / "below"):
        with pytest.raises(OutboxUnavailable, match="belongs to another user"):
            Home(home).create()


@needs_root
@pytest.mark.parametrize("name", ["config.toml", "credentials.toml"])
def test_a_file_of_another_user_is_not_read(home: Home, name: str) -> None:
    file = home.path / name
    file.write_text('[hub]\nkey = "theirs"\n' if name.startswith("cred") else "[rate_limits]\nmetrics = 9\n")
    file.chmod(0o600)
    os.chown(file, STRANGER, STRANGER)

    with pytest.raises((OutboxUnavailable, CredentialsError), match="belongs to another user"):
        _read(home, name)


@pytest.mark.parametrize("name", ["config.toml", "credentials.toml"])
def test_a_file_that_others_may_write_is_not_read(home: Home, name: str) -> None:
    file = home.path / name
    file.write_text("")
    file.chmod(0o666)

    with pytest.raises((OutboxUnavailable, CredentialsError), match="can be changed by others") as refused:
        _read(home, name)

    assert refused.value.hint is not None
    subprocess.run(shlex.split(refused.value.hint), check=True)
    _read(home, name)


def test_a_named_configuration_that_others_may_write_is_not_read(home: Home, tmp_path: Path) -> None:
    named = tmp_path / "named.toml"
    named.write_text("")
    named.chmod(0o606)

    with pytest.raises(OutboxUnavailable, match="can be changed by others"):
        home.load_config(named, {})


def _read(home: Home, name: str) -> object:
    if name == "config.toml":
        return home.load_config(None, {})
    return Credentials(home.credentials, {}).keys(HubSettings("hub"))


@pytest.mark.parametrize("command", [("status",), ("worker", "--idle-exit", "0"), ("runs",), ("check",)])
def test_every_command_refuses_a_home_that_others_may_write(home: Home, command: tuple[str, ...]) -> None:
    home.path.chmod(0o777)

    done = hubqueue(environ_of(home.path), *command)

    assert done.returncode not in (0, 3)
    assert "can be changed by others" in done.stdout + done.stderr
    assert f"chmod go-w {home.path}" in done.stdout + done.stderr


def test_a_training_survives_a_home_that_others_may_write(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    home.path.chmod(0o777)

    with caplog.at_level(logging.WARNING):
        run = package.start_run("yolov8n.pt", home=home.path, worker="none")
    assert "can be changed by others" in caplog.text and f"chmod go-w {home.path}" in caplog.text
    assert caplog.text.count("can be changed by others") == 1
    run.log_metrics({"loss": 1.0}, epoch=0)
    assert not home.outbox.exists()

    with pytest.raises(OutboxUnavailable):
        package.start_run("yolov8n.pt", home=home.path, worker="none", strict=True)
    home.path.chmod(0o700)
    run.finish(timeout=5)


# --- something other than a file at the path of a file


@SPECIAL
@pytest.mark.parametrize(
    "name", ["outbox.db", "outbox.db-wal", "outbox.db-journal", "locks/migrate.lock", "config.toml"]
)
@pytest.mark.timeout(20)
def test_something_other_than_a_file_is_refused_without_blocking(
    home: Home, name: str, put: Callable[[Path], None]
) -> None:
    put(home.path / name)

    with pytest.raises((OutboxUnavailable, ConfigError)) as refused, open_outbox(home.path, environ={}):
        pass

    assert str(home.path / name) in str(refused.value) and refused.value.hint


@SPECIAL
@pytest.mark.timeout(20)
def test_an_outbox_works_when_its_helper_files_are_not_plain_files(
    home: Home, put: Callable[[Path], None]
) -> None:
    for name in (
        "outbox.db-turn",
        "locks/worker-9.lock",
        "locks/upload-1",
        "ballast",
        "outbox.db.damaged-20200101T000000",
    ):
        put(home.path / name)

    with open_outbox(home.path, environ={}):
        pass

    assert not is_held(home.locks / "worker-9.lock")
    assert upload_of(home, "1") is None


@SPECIAL
@pytest.mark.timeout(20)
def test_keys_are_read_from_plain_files_only(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / "credentials.toml")
    with pytest.raises(CredentialsError):
        Credentials(tmp_path / "credentials.toml", {})._load()

    (tmp_path / "Ultralytics").mkdir()
    put(tmp_path / "Ultralytics" / "settings.json")
    assert borrowed_key({"YOLO_CONFIG_DIR": str(tmp_path)}, of_platform=False) == ""


@pytest.mark.parametrize("text", ["x = " + "[" * 100_000, "#" * (2 << 20), "\xff\xfe"])
def test_keys_in_an_invalid_toml_file_are_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "credentials.toml"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(CredentialsError) as refused:
        Credentials(path, {})._load()

    assert len(str(refused.value)) < 300 and refused.value.hint


@pytest.mark.timeout(20)
@SPECIAL
def test_a_checkpoint_that_is_not_a_file_is_refused_without_blocking(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    put(tmp_path / "last.pt")

    with pytest.raises(CheckpointUnreadable):
        Spool(tmp_path / "spool", SpoolSettings(min_free_bytes=0)).take(tmp_path / "last.pt", label="x")


@pytest.mark.timeout(20)
@SPECIAL
def test_a_snapshot_that_is_not_a_file_is_missing(tmp_path: Path, put: Callable[[Path], None]) -> None:
    (tmp_path / "last.pt").write_bytes(b"x")
    spool = Spool(tmp_path / "spool", SpoolSettings(min_free_bytes=0))
    snapshot = spool.take(tmp_path / "last.pt", label="x")
    (spool.path / snapshot.name).unlink()
    put(spool.path / snapshot.name)

    with pytest.raises(SnapshotMissing):
        spool.open(snapshot)


@SPECIAL
@pytest.mark.timeout(20)
def test_only_a_plain_file_is_opened_as_a_private_one(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / "worker.log")

    with pytest.raises(OSError):
        open_private(tmp_path / "worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with pytest.raises(OutboxUnavailable):
        Lock(tmp_path / "worker.log").try_acquire()


# --- a spool that several users share


@needs_root
def test_only_our_own_snapshots_are_counted_and_swept(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    folder.chmod(0o1777)
    spool = Spool(folder, SpoolSettings(min_free_bytes=0, max_bytes=10_000))
    theirs = [folder / "big-000000000000.ckpt", folder / "old-000000000000.ckpt.part"]
    for path in theirs:
        with path.open("wb") as file:
            file.truncate(1 << 40)
        os.chown(path, STRANGER, STRANGER)
    (folder / "notes.txt").write_text("x" * 20_000)
    with (folder / "sparse-000000000000.ckpt.part").open("wb") as file:
        file.write(b"x")
        file.truncate(1 << 40)
    (tmp_path / "last.pt").write_bytes(b"x" * 5000)
    (folder / "sparse-000000000000.ckpt.part").stat()
    assert spool.bytes_used() <= 4096

    snapshot = spool.take(tmp_path / "last.pt", label="ours")
    swept = spool.sweep(lambda names: [], older_than=timedelta(0), now=time.time() + 60)

    assert set(swept) == {snapshot.name, "sparse-000000000000.ckpt.part"}
    assert all(path.exists() for path in theirs) and (folder / "notes.txt").exists()


@needs_root
def test_a_file_that_cannot_be_deleted_does_not_stop_the_sweep(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SpoolSettings(min_free_bytes=0))
    (tmp_path / "last.pt").write_bytes(b"x")
    names = [spool.take(tmp_path / "last.pt", label=label).name for label in "abc"]
    stuck = spool.path / names[1]
    if subprocess.run(["chattr", "+i", str(stuck)], check=False, capture_output=True).returncode:
        pytest.skip("this file system has no files that cannot be deleted")
    try:
        swept = spool.sweep(lambda _: [], older_than=timedelta(0), now=time.time() + 60)
    finally:
        subprocess.run(["chattr", "-i", str(stuck)], check=True)

    assert set(swept) == {names[0], names[2]}
