"""What a snapshot is made of: an opened file, a folder, or the tar of a folder.

Promises: a file is copied from one descriptor, so a link that is switched or a file that is replaced during the copy
changes nothing: the copy is one of them. Opening never blocks, on a pipe or a device.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from hubqueue.config.filesystem.ownership import is_ours, open_plain
from hubqueue.config.home import open_private
from hubqueue.domain.errors import CheckpointUnreadable
from hubqueue.domain.snapshots.snapshot import FILE
from hubqueue.outbox.spool.blocks import clone, copy_blocks

Path_ = str | os.PathLike[str]
# As many links as Linux follows.
_MOST_LINKS = 40


class Written(NamedTuple):
    """A copy that is on the disk, apart from its name: its size in bytes, and the time and the SHA-256 of its proof."""

    size: int
    mtime_ns: int
    sha256: str | None


class Source(Protocol):
    """A checkpoint that can be copied. `suffix` is the end of the copy's name."""

    suffix: str

    def measure(self) -> int | None:
        """The bytes that a copy needs now; None when the checkpoint changes. Raises `CheckpointUnreadable`."""
        ...

    def write(self, part: Path) -> Written | None:
        """Write the copy, durably; None when the checkpoint changed since `measure`.

        Raises `CheckpointUnreadable` for an error of the checkpoint, `OSError` for one of the copy.
        """
        ...

    def close(self) -> None:
        """Release what is open."""
        ...


class FileSource:
    """A checkpoint that is one file, or leads to one by symbolic links."""

    suffix = FILE

    def __init__(self, path: Path_) -> None:
        self._path = path
        self._file = open_file(path)
        self._before = os.fstat(self._file.fileno())

    def measure(self) -> int | None:
        self._before = os.fstat(self._file.fileno())
        if self._before.st_size == 0:
            raise CheckpointUnreadable(
                f"{self._path} is empty", hint="save the checkpoint before passing it on"
            )
        return self._before.st_size

    def write(self, part: Path) -> Written | None:
        target = open_private(part, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            sha256 = None  # a clone reads no bytes, so there is no hash of it
            if clone(self._file, target):
                os.fsync(target)
            else:
                sha256 = copy_blocks(self._file, target, part, self._path, self._before.st_size)
            copied, after = os.fstat(target), os.fstat(self._file.fileno())
        finally:
            os.close(target)
        before = self._before
        unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
        if not unchanged or copied.st_size != before.st_size:
            return None
        return Written(copied.st_size, copied.st_mtime_ns, sha256)

    def close(self) -> None:
        self._file.close()


def is_folder(path: Path_) -> bool:
    """Whether a path is a folder, or leads to one by symbolic links."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False  # opening it as a file reports why


def open_file(path: Path_) -> BinaryIO:
    """Open a checkpoint for reading, at the end of its symbolic links. Raises `CheckpointUnreadable`."""
    hint = "pass the path of a finished checkpoint file"
    try:
        # Before opening: to open a device may already act on it.
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file")
        refuse_strangers_link(path, found)
        descriptor = open_plain(path, os.O_RDONLY)
    except CheckpointUnreadable:
        raise
    except ValueError as error:  # a NUL in the path
        raise CheckpointUnreadable(f"cannot read {path!r}: {error}", hint=hint) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointUnreadable(
                f"{path} is a symbolic link that leads in a circle", hint=hint
            ) from error
        if error.errno == errno.ENOENT and os.path.islink(path):
            why = f"{path} is a symbolic link to {os.readlink(path)}, which does not exist"
            raise CheckpointUnreadable(why, hint=hint) from error
        if error.errno in (errno.EINVAL, errno.ENXIO):
            raise CheckpointUnreadable(f"{path} is not a plain file", hint=hint) from error
        raise CheckpointUnreadable(f"cannot read {path}: {error.strerror}", hint=hint) from error
    return os.fdopen(descriptor, "rb", buffering=0)


def refuse_strangers_link(path: Path_, target: os.stat_result) -> None:
    """Refuse a link that another user has made to what is not theirs: it could send private files of this user."""
    if any(link.st_uid != target.st_uid and not is_ours(link) for link in _links(os.fsdecode(path))):
        why = f"{path} is a symbolic link of another user to what is not theirs"
        raise CheckpointUnreadable(why, hint="pass the path it leads to, if you trust it")


def _links(path: str) -> Iterator[os.stat_result]:
    """The symbolic links that a path leads through, from the last name of each path."""
    with suppress(OSError):
        for _ in range(_MOST_LINKS):
            found = os.lstat(path)
            if not stat.S_ISLNK(found.st_mode):
                return
            yield found
            path = os.path.join(os.path.dirname(path), os.readlink(path))
