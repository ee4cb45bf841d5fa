"""What is wrong with a folder, for people: the reason of an attempt that is repeated, and a hint.

Promises that no error of a disk is an entry's fault: a full, read-only or missing disk is retried until it is back.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hubqueue.destinations.base import RetryLater
from hubqueue.destinations.layout.store import StoreFailed
from hubqueue.domain.redact import clean

_MOUNT = "mount its disk, or put the folder back"
# By the error: what it means, and what to do.
_KNOWN = {
    errno.ENOSPC: ("the disk is full", "free space on the disk of the folder"),
    errno.EROFS: ("the disk is read-only", "mount the disk of the folder writable"),
    errno.EACCES: ("permission denied", "let this user write to the folder"),
    errno.EPERM: ("permission denied", "let this user write to the folder"),
    errno.ENOENT: ("a folder is gone", _MOUNT),
    errno.ENOTDIR: ("a file has the name of a folder", "move that file away"),
    errno.EISDIR: ("a folder has the name of a file", "move that folder away"),
    errno.ELOOP: ("a symbolic link is in place of a file or a folder", "move that link away"),
    errno.EIO: ("the disk fails", "check the disk of the folder, or its cable or network"),
    errno.ENAMETOOLONG: ("a name is too long", "choose a folder with a shorter path, or another file system"),
    errno.EINVAL: ("a name has characters that this file system refuses", "choose another file system"),
    errno.EFBIG: (
        "the file is too large for this file system",
        "choose another file system: FAT allows 4 GiB",
    ),
}
for _name, _meaning in {
    "EDQUOT": ("the quota of this user is used up", "free space in the folder, or ask for more"),
    "ESTALE": ("the file server has another folder now", "mount it again"),
    "EHOSTDOWN": ("the file server does not respond", "check the network and the file server"),
    "ETIMEDOUT": ("the file server does not respond", "check the network and the file server"),
    "ENOTCONN": ("the file server is not connected", "mount it again"),
    "ENODEV": ("the disk is gone", _MOUNT),
    "ENXIO": ("the disk is gone", _MOUNT),
}.items():
    if hasattr(errno, _name):
        _KNOWN[getattr(errno, _name)] = _meaning


def failed(path: Path, reason: str, hint: str) -> StoreFailed:
    """The attempt is repeated later. The reason has the hint as well: a status shows only that."""
    what = f"{clean(str(path), limit=300)}: {reason}"
    failure = StoreFailed(RetryLater(f"{what}; {hint}"), hint=hint)
    failure.args = (what,)  # a reader shows the hint on its own line
    return failure


def away(path: Path) -> StoreFailed:
    """The folder, or its disk, is not at its path now."""
    return failed(path, "the folder is not there", _MOUNT)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into what a store raises."""
    try:
        yield
    except OSError as error:
        usual = (error.strerror or type(error).__name__, "check the folder and its disk")
        raise failed(path, *_KNOWN.get(error.errno or 0, usual)) from error
