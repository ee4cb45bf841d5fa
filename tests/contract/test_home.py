"""The home, its locks and its keys."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from stage import environ_of, kill, python

from hubqueue.config.credentials import Credentials
from hubqueue.config.filesystem.mounts import type_of_mount
from hubqueue.config.home import Home, open_private
from hubqueue.destinations.hub.settings import HubSettings
from hubqueue.destinations.platform.settings import PlatformSettings
from hubqueue.domain.errors import ConfigError, CredentialsError, OutboxUnavailable
from hubqueue.outbox.locks import Lock, forget, is_held

HOLDER = """
import sys, threading
from pathlib import Path
from hubqueue.outbox.locks import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.try_acquire()
print("held", flush=True)
threading.Event().wait(100)
"""


@pytest.fixture
def open_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


def test_the_home_is_the_argument_or_the_variable_or_the_users_folder(tmp_path: Path) -> None:
    assert Home.locate(tmp_path / "a", {"HUBQUEUE_HOME": "/b"}).path == tmp_path / "a"
    assert Home.locate(None, {"HUBQUEUE_HOME": "/b"}).path == Path("/b")
    assert Home.locate(None, {}).path.name == "hubqueue"


@pytest.mark.usefixtures("open_umask")
def test_folders_and_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    home.create()
    os.close(open_private(home.worker_log, os.O_WRONLY | os.O_CREAT))

    for folder in (home.path, home.spool, home.locks):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(home.worker_log.stat().st_mode) == 0o600


def test_an_invalid_home_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")

    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link"):
        with pytest.raises(OutboxUnavailable) as refused:
            Home(path).create()
        assert refused.value.hint


def test_a_named_configuration_must_exist(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.load_config(None, {}).default_destination == "platform"
    with pytest.raises(ConfigError, match="there is no configuration"):
        home.load_config(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="there is no configuration"):
        home.load_config(None, {"HUBQUEUE_CONFIG": str(tmp_path / "none.toml")})

    (tmp_path / "config.toml").write_text("[rate_limits]\nmetrics = 9\n")
    assert home.load_config(None, {}).rate_limits.metrics.total_seconds() == 9


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/me/x", "ext4"),
        ("/mnt/nfs/x", "nfs4"),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfsx", "ext4"),
        ("/mnt/with blank/x", "fuse.sshfs"),
        ("/over/x", "tmpfs"),
    ],
)
def test_the_file_system_is_that_of_the_deepest_mount(path: str, expected: str) -> None:
    mounts = [
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        "30 22 0:40 / /mnt/nfs rw - nfs4 server:/x rw",
        r"31 22 0:41 / /mnt/with\040blank rw - fuse.sshfs me@host rw",
        "32 22 8:2 / /over rw - ext4 /dev/sdb rw",
        "33 22 0:42 / /over rw - tmpfs tmpfs rw",
        "a broken line",
    ]

    assert type_of_mount(path, mounts) == expected


def test_a_lock_is_held_by_one_and_seen_by_all(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    assert not is_held(path)
    assert not path.exists()
    first, second = Lock(path), Lock(path)

    assert first.try_acquire()
    assert is_held(path)
    assert not second.acquire(0.05)
    first.release()

    assert not is_held(path)
    assert second.try_acquire()
    second.release()
    forget(path)
    assert not path.exists()


def test_a_kill_frees_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    holder = python(HOLDER, environ_of(tmp_path), str(path))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert is_held(path)

    kill(holder)

    assert not is_held(path)


def test_a_held_lock_is_not_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    lock = Lock(path)
    assert lock.try_acquire()

    forget(path)

    assert path.exists()
    assert is_held(path)
    lock.release()


def test_the_child_of_a_fork_neither_keeps_nor_frees_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    lock = Lock(path)
    assert lock.try_acquire()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        del lock
        os.read(reader, 1)
        os._exit(0)

    assert is_held(path)
    lock.release()
    assert not is_held(path)

    os.write(writer, b"x")
    os.waitpid(child, 0)


def _environ(**keys: str) -> dict[str, str]:
    return keys


VENDOR = HubSettings("hub")
LAB = HubSettings("my-lab", url="https://lab.example.org")


def test_keys_come_from_the_environment_and_then_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "credentials.toml"
    environ = _environ(
        HUBQUEUE_KEY_HUB="own-key-of-hub", HUB_API_KEY="key-of-the-type", HUBQUEUE_KEY_MY_LAB="lab-key-1"
    )
    credentials = Credentials(path, environ)
    assert credentials.keys(VENDOR) == ("own-key-of-hub", "key-of-the-type")
    credentials.store(VENDOR, "stored-for-hub")
    credentials.store(LAB, "stored-for-lab")

    assert credentials.keys(VENDOR) == ("own-key-of-hub", "key-of-the-type", "stored-for-hub")
    assert credentials.keys(LAB) == ("lab-key-1", "stored-for-lab")
    assert Credentials(path, {}).keys(LAB) == ("stored-for-lab",)
    assert Credentials(path, {}).keys(HubSettings("none")) == ()
    credentials.forget("my-lab")
    assert Credentials(path, {}).keys(LAB) == ()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert credentials.problems() == ()
    assert "stored-for-hub" not in repr(credentials)


def test_a_stored_key_is_for_the_address_that_it_was_stored_for(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "credentials.toml", {})
    here, there = (HubSettings("hub", url=f"https://{name}.example.org/api") for name in ("a", "b"))
    credentials.store(here, "key-of-address-a")

    assert credentials.keys(there) == ()
    assert credentials.elsewhere(there) == "the stored key is for https://a.example.org"

    credentials.store(there, "key-of-address-b")
    assert credentials.keys(here) == ("key-of-address-a",)
    assert credentials.keys(there) == ("key-of-address-b",)


def test_the_variable_of_a_type_is_for_the_vendor_or_an_address_that_a_variable_names(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "credentials.toml", {"HUB_API_KEY": "key-of-the-type"})
    in_file = HubSettings("hub", url="https://a.example.org")

    assert credentials.keys(VENDOR) == ("key-of-the-type",)
    assert credentials.keys(dataclasses.replace(in_file, url_named=True)) == ("key-of-the-type",)
    assert credentials.keys(in_file) == ()
    assert "HUB_API_KEY is only for https://api.ultralytics.com" in (credentials.elsewhere(in_file) or "")


def test_two_destinations_of_one_type_never_share_a_key(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path / "credentials.toml", {"ULTRALYTICS_API_KEY": "key-of-mine"})
    mine, team = (PlatformSettings(name) for name in ("platform", "team"))
    credentials.store(team, "key-of-the-team")

    assert credentials.keys(mine) == ("key-of-mine",)
    assert credentials.keys(team) == ("key-of-the-team",)


def test_a_stored_key_of_an_older_hubqueue_is_for_the_vendor(tmp_path: Path) -> None:
    path = tmp_path / "credentials.toml"
    path.write_text('[hub]\nkey = "key-of-before"\n')
    path.chmod(0o600)
    credentials = Credentials(path, {})

    assert credentials.keys(VENDOR) == ("key-of-before",)
    assert credentials.keys(dataclasses.replace(VENDOR, url="https://a.example.org")) == ()

    credentials.store(VENDOR, "key-of-today")
    assert "key-of-before" not in path.read_text()
    assert credentials.keys(VENDOR) == ("key-of-today",)


def test_a_running_worker_sees_a_stored_key(tmp_path: Path) -> None:
    worker, login = (Credentials(tmp_path / "credentials.toml", {}) for _ in range(2))
    assert worker.keys(VENDOR) == ()

    login.store(VENDOR, "new-and-good")

    assert worker.keys(VENDOR) == ("new-and-good",)


@pytest.mark.parametrize(
    "key", ["", "two words", 'quo"te', "new\nline", "ключ", "back\\slash", "x" * 600, "short"]
)
def test_an_invalid_key_is_refused_without_repeating_it(tmp_path: Path, key: str) -> None:
    with pytest.raises(CredentialsError) as refused:
        Credentials(tmp_path / "credentials.toml", {}).store(VENDOR, key)

    assert not key or key not in str(refused.value)
    assert not (tmp_path / "credentials.toml").exists()


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda path: path.write_text('[hub]\nkey = "secret-key'), "TOML"),
        (lambda path: path.chmod(0o644), "others"),
    ],
)
def test_problems_of_the_file_are_reported(
    tmp_path: Path, spoil: Callable[[Path], object], word: str
) -> None:
    path = tmp_path / "credentials.toml"
    credentials = Credentials(path, {})
    credentials.store(VENDOR, "secret-key")

    spoil(path)

    ((problem, hint),) = Credentials(path, {}).problems()
    assert word in problem
    assert hint.startswith("chmod 600 " if word == "others" else "remove it and store the keys again: rm ")
    assert "secret-key" not in problem
