"""A SQLite file that was deleted, moved or replaced while this process has it open.

Open handles still reach the old file and its write-ahead log, so their contents can be saved. Promises: a file that
exists at the path is never overwritten; the log of another process is neither deleted nor mixed with the own one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

from hubqueue.config.home import sync_folder
from hubqueue.outbox.database.sqlite import SIDE_FILES, identity

# Beside a database in WAL mode, as long as it is open.
_LOG_FILES = ("-wal", "-shm")
# SQLite's bytes for shared locks (os_unix.c), as `struct flock` on Linux.
_SHARED_BYTES = (0x40000002, 510)
_FLOCK = "hhqqi4x"


class Fate(StrEnum):
    """What happened to a database that was let go."""

    WRITTEN_AGAIN = "written again"
    """Its file was gone; all of it is in a new file at its path."""
    LOG_SAVED = "log saved"
    """Its log was gone; all of it is in the database."""
    LOG_LOST = "log lost"
    """Its log was gone and another one has begun: what the first one had is lost."""
    REPLACED = "replaced"
    """Another file is at its path, or it could not be written again."""


Sides = tuple[tuple[int, int] | None, ...]
"""The identities of the files beside a database in WAL mode."""


def logs(path: Path) -> tuple[str, ...]:
    """The paths of the write-ahead log beside a database. Texts: each write of a training looks at them."""
    return tuple(f"{path}{suffix}" for suffix in _LOG_FILES)


def sides(paths: tuple[str, ...]) -> Sides:
    """The files of a write-ahead log that exist now."""
    return tuple(identity(each) for each in paths)


def write_log_back(handle: Any, path: Path) -> bool:
    """Copy the write-ahead log that this handle has open into the database; False when others have begun a new log.

    A database with two logs would be damaged by that.
    """
    if has_new_log(path):
        return False
    busy, _, _ = handle.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
    return not busy


def has_new_log(path: Path) -> bool:
    """Whether there is a log at the path with something in it."""
    with suppress(OSError):
        return path.with_name(path.name + "-wal").stat().st_size > 0
    return False


def write_again(handle: Any, path: Path, driver: ModuleType) -> bool:
    """Write the whole database that a handle has open to its path; False when there is a file again."""
    copy = path.with_name(f"{path.name}.again-{os.getpid()}")
    try:
        os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o600))
        target = driver.connect(str(copy), isolation_level=None)
        try:
            handle.backup(target)
        finally:
            target.close()
        return _put_in_place(copy, path)
    finally:
        for suffix in ("", *SIDE_FILES):
            copy.with_name(copy.name + suffix).unlink(missing_ok=True)


@contextmanager
def log_kept(path: Path) -> Iterator[None]:
    """Within this block, a handle that is closed neither copies its log into the database nor deletes the log there.

    SQLite does both only when nobody else has the database open. A lock on an own descriptor looks like somebody else.
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (ImportError, OSError):
        yield
        return
    try:
        with suppress(OSError, AttributeError):  # only Linux has such locks
            lock = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, *_SHARED_BYTES, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        yield
    finally:
        os.close(descriptor)


def _put_in_place(copy: Path, path: Path) -> bool:
    with open(copy, "rb") as file:
        os.fsync(file.fileno())
    try:
        os.link(copy, path)  # unlike a rename, it never replaces a file
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        copy.rename(path)
    sync_folder(path.parent)
    return True
