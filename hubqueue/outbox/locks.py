"""Locks that say which processes live: the kernel releases them with their process, however it ends.

Built on `filelock`, which handles Windows, POSIX and forks. Lock files are not deleted on release; a try to take
the lock shows whether a process holds it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from hubqueue.config.filesystem.ownership import open_plain
from hubqueue.config.home import open_private
from hubqueue.domain.errors import OutboxLocked, OutboxUnavailable

try:
    # Not where it is used: at the end of the interpreter an import may wait for a thread that is frozen.
    import fcntl

    _HAS_FLOCK = True
except ImportError:  # Windows
    _HAS_FLOCK = False

# A probe holds the lock for an instant: a process that finds the lock held tries again to be sure.
_PROBES = 3
_INSTANT = 0.001
_PROBED = 1.0
PATIENCE = 30.0
"""How long the start of a worker, or a command, waits for a lock, in seconds."""


class Lock:
    """One lock file. As a context manager it waits for the lock, at most half a minute."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _file_lock(path)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked

    def try_acquire(self) -> bool:
        """Take the lock unless another process holds it for longer than a probe does."""
        return self.acquire(_PROBED)

    def acquire(self, timeout: float) -> bool:
        """Take the lock, waiting at most `timeout` seconds."""
        if not _may_be_locked(self.path):
            hint = f"move it away: mv {self.path} {self.path}.not-a-lock"
            raise OutboxUnavailable(f"{self.path} is not a plain file", hint=hint)
        if not self.path.parent.is_dir():  # the library would make it, with the permissions of the umask
            raise _unusable(self.path, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
        try:
            if not self.path.exists():  # made here: `filelock` cannot where a file system has no permissions
                os.close(open_private(self.path, os.O_RDWR | os.O_CREAT))
            self._lock.acquire(timeout=timeout, poll_interval=0.01)
        except Timeout:
            return False
        except OSError as error:
            raise _unusable(self.path, error) from error
        return True

    def release(self) -> None:
        """Release the lock; the file stays."""
        self._lock.release()

    def __enter__(self) -> Self:
        if not self.acquire(PATIENCE):
            raise stayed_locked(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def stayed_locked(path: Path) -> OutboxLocked:
    """The error of a lock that another process did not release in time."""
    hint = "another hubqueue process seems to hang: look for a stopped one; hubqueue status shows the worker"
    return OutboxLocked(f"a lock is not released: {path}", hint=hint)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock. A missing file is not held, and is not created.

    Nor is anything but a plain file held: it cannot have been locked, and opening it could block.
    """
    pause = threading.Event()
    for _ in range(_PROBES):
        if not path.exists() or not _may_be_locked(path):
            return False
        if not _is_refused(path):
            return False
        pause.wait(_INSTANT)
    return True


def _is_refused(path: Path) -> bool:
    """Whether the lock is refused now. Makes no file and no folder, and needs no permission to write."""
    if not _HAS_FLOCK:
        return _is_refused_exclusively(path)
    try:
        descriptor = open_plain(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM):
            return False
        raise _unusable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise _unusable(path, error) from error
    finally:
        os.close(descriptor)
    return False


def _is_refused_exclusively(path: Path) -> bool:
    probe = _file_lock(path)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    except OSError as error:
        raise _unusable(path, error) from error
    probe.release()
    return False


def serving(folder: Path, destination: str) -> Path:
    """The lock of a worker that sends for a row of `destinations`."""
    return folder / f"serves-{_digest(destination)}.lock"


def waiting(folder: Path, destination: str) -> Path:
    """The lock of a worker that will send for a row of `destinations` as soon as there is a key."""
    return folder / f"waits-{_digest(destination)}.lock"


def _digest(name: str) -> str:
    # A name from a database may not be a valid file name.
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def forget(path: Path) -> None:
    """Delete the file of a lock that no process holds or will take again."""
    if not path.exists() or not _may_be_locked(path):
        return
    lock = _file_lock(path)
    try:
        lock.acquire(timeout=0)
        path.unlink(missing_ok=True)
    except (Timeout, OSError):
        return
    finally:
        if lock.is_locked:
            lock.release()


def _may_be_locked(path: Path) -> bool:
    """Whether the path is a plain file, or does not exist yet."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return True  # it does not exist yet, or taking the lock raises the reason


def _file_lock(path: Path) -> FileLock:
    # Never the soft fallback: its lock outlives the process, and so would report a dead one as living.
    return FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False, preserve_lock_file=True)


def _unusable(path: Path, error: OSError) -> OutboxUnavailable:
    hint = f"check that {path.parent} is a writable folder on a file system with locks"
    return OutboxUnavailable(f"cannot lock {path}: {error.strerror or error}", hint=hint)
