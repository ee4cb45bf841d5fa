"""A checkpoint that is a folder: its files, and how they are copied into one snapshot.

Promises: the copy has every file of the folder as it was at one moment, or there is no copy: a file that changes, appears
or disappears meanwhile is noticed. What has no content to send (a pipe, a device), and a link that leads out of the
folder, is refused by name. The snapshot is a folder with one level: numbered files, and the manifest that names them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from hubqueue.config.home import open_private, sync_folder
from hubqueue.domain.errors import CheckpointUnreadable
from hubqueue.domain.snapshots.manifest import MANIFEST, MOST_FILES, file_name, manifest_text
from hubqueue.domain.snapshots.snapshot import FOLDER
from hubqueue.outbox.spool.blocks import clone, copy_blocks, copy_small, digest_of, sync_files
from hubqueue.outbox.spool.hashing import BLOCK
from hubqueue.outbox.spool.source import Path_, Written, open_file, refuse_strangers_link

_WHOLE = "pass a folder with all of the checkpoint's files, and nothing else"
_SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_GONE = (errno.ENOENT, errno.ENOTDIR)


class Found(NamedTuple):
    """A file of a folder: its relative path with `/`, where its content is, and which file in which state that is."""

    path: str
    real: str
    size: int
    state: tuple[int, int, int]


class Changing(Exception):
    """The folder changed while it was read."""


class Listed(ABC):
    """A checkpoint that is a folder: its files, listed before a copy, and compared after it."""

    def __init__(self, path: Path_, spool: Path) -> None:
        self._path, self._spool = path, spool
        self._files: list[Found] = []

    def measure(self) -> int | None:
        try:
            self._files = list_files(self._path, self._spool)
        except Changing:
            return None
        return self._size()

    def close(self) -> None:
        """Forget the files; none is open between the calls."""
        self._files = []

    @abstractmethod
    def _size(self) -> int:
        """The bytes that a copy of these files needs."""

    def _has_changed(self) -> bool:
        """Whether the folder has other files by now, or in another state. Raises as `list_files`."""
        return self._files != list_files(self._path, self._spool)


class FolderSource(Listed):
    """A checkpoint that is a folder, for a destination that takes folders."""

    suffix = FOLDER

    def _size(self) -> int:
        if len(self._files) > MOST_FILES:
            hint = "save it as one .tar: archive=True (hubqueue enqueue checkpoint --archive)"
            raise CheckpointUnreadable(f"{self._path} has more than {MOST_FILES} files", hint=hint)
        return sum(each.size for each in self._files)

    def write(self, part: Path) -> Written | None:
        part.mkdir(mode=0o700)
        with suppress(OSError):  # a file system without modes
            part.chmod(0o700)  # whatever the umask
        try:
            hashes = [_copy(each, part / file_name(number)) for number, each in enumerate(self._files)]
            # A larger one is synced while it is hashed.
            small = [number for number, each in enumerate(self._files) if each.size <= BLOCK]
            sync_files([part / file_name(number) for number in small])
            if self._has_changed():
                return None
        except Changing:
            return None
        text = manifest_text(
            (each.path, each.size, sha256) for each, sha256 in zip(self._files, hashes, strict=True)
        )
        descriptor = open_private(part / MANIFEST, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
            written = os.fstat(descriptor)
        sync_folder(part)
        total = sum(each.size for each in self._files)
        return Written(total, written.st_mtime_ns, hashlib.sha256(text).hexdigest())


def list_files(root: Path_, spool: Path) -> list[Found]:
    """The files of a folder, in the order of their paths, hidden ones too. `spool` must not be in it.

    Raises `CheckpointUnreadable`, and `Changing` for a file that disappears meanwhile.
    """
    top = os.path.realpath(os.fsdecode(root))
    if os.path.join(os.path.realpath(spool), "").startswith(os.path.join(top, "")):
        raise CheckpointUnreadable(f"{root} contains the spool itself", hint=_WHOLE)
    with suppress(FileNotFoundError):  # reported below
        refuse_strangers_link(root, os.stat(root))
    found: list[Found] = []
    pending = [""]
    while pending:
        inner = pending.pop()
        try:
            with os.scandir(os.path.join(top, inner)) as entries:
                names = [entry.name for entry in entries]
        except OSError as error:
            if inner and error.errno in _GONE:
                raise Changing from error
            raise _unreadable(root, inner, error) from error
        for name in names:
            path = f"{inner}/{name}" if inner else name
            each = _found(root, top, path)
            if each is None:
                pending.append(path)
            else:
                found.append(each)
    if not found:
        raise CheckpointUnreadable(
            f"{root} is a folder without a file", hint="save the checkpoint before passing it on"
        )
    return sorted(found)


def open_found(each: Found) -> BinaryIO:
    """Open a file of a folder. Raises `Changing` where it is another one by now."""
    try:
        file = open_file(each.real)
    except CheckpointUnreadable as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (*_GONE, errno.EINVAL, errno.ELOOP):
            raise Changing from error
        raise
    if not is_unchanged(each, file):
        file.close()
        raise Changing
    return file


def is_unchanged(each: Found, file: BinaryIO) -> bool:
    """Whether an opened file is still as it was found."""
    return _state(os.fstat(file.fileno())) == each.state


def _found(root: Path_, top: str, path: str) -> Found | None:
    """A file; None for a folder. Refuses everything else."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise CheckpointUnreadable(
            f"{root} has a file whose name is not UTF-8: {path!a}", hint="rename this file"
        ) from error
    real = os.path.join(top, path)
    try:
        kept = os.lstat(real)
        if stat.S_ISLNK(kept.st_mode):
            real = _behind(root, top, path)
            kept = os.lstat(real)
    except OSError as error:
        if error.errno in _GONE:
            raise Changing from error
        raise _unreadable(root, path, error) from error
    mode = stat.S_IFMT(kept.st_mode)
    if mode == stat.S_IFDIR:
        return None
    if mode != stat.S_IFREG:
        raise CheckpointUnreadable(
            f"{root} has {_SPECIAL.get(mode, 'no plain file')} in it: {path!r}", hint=_WHOLE
        )
    return Found(path, real, kept.st_size, _state(kept))


def _behind(root: Path_, top: str, path: str) -> str:
    """The file in the folder that a link leads to."""
    link = os.path.join(top, path)
    try:
        target = os.path.realpath(link, strict=True)
    except OSError as error:
        if not os.path.islink(link):
            raise Changing from error
        what = "in a circle" if error.errno == errno.ELOOP else "to nothing"
        raise CheckpointUnreadable(
            f"{root} has a symbolic link in it that leads {what}: {path!r}", hint=_WHOLE
        ) from error
    if not target.startswith(os.path.join(top, "")):
        hint = "replace the link by the file, or pass the folder that has all files"
        raise CheckpointUnreadable(
            f"{root} has a symbolic link in it that leads out of the folder: {path!r}", hint=hint
        )
    if os.path.isdir(target):
        hint = "remove the link: the files behind it are in the folder already"
        raise CheckpointUnreadable(
            f"{root} has a symbolic link in it that leads to a folder: {path!r}", hint=hint
        )
    return target


def _copy(each: Found, target: Path) -> str:
    """Copy a file, synced if it is larger than a block. Returns the SHA-256 (hex) of the copy."""
    with open_found(each) as file:
        descriptor = open_private(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            if each.size <= BLOCK:
                sha256 = copy_small(file, descriptor, each.real, each.size)
            elif clone(file, descriptor):
                os.fsync(descriptor)
                sha256 = digest_of(target)
            else:
                sha256 = copy_blocks(file, descriptor, target, each.real, each.size)
            copied = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if copied != each.size or not is_unchanged(each, file):
            raise Changing
    return sha256


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(root: Path_, path: str, error: OSError) -> CheckpointUnreadable:
    where = f"{path!r} in {root}" if path else f"{root}"
    return CheckpointUnreadable(f"cannot read {where}: {error.strerror}", hint="make the folder readable")
