"""The objects of a folder: each is written beside its name, synced to the disk, and renamed.

A large file that is being written is `.NAME.part` in the same folder. The next attempt continues from the bytes that are there,
after it has compared them with those of the snapshot. A small one is `.hubqueue.part`, written anew by each attempt: what a
kill leaves is replaced by the next small file of the folder.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from hubqueue.destinations.base import Attempt, RetryLater
from hubqueue.destinations.folder.root import Root
from hubqueue.destinations.folder.trouble import explained
from hubqueue.destinations.layout.store import LARGEST, Source, Stored, StoreFailed, obey

_BLOCK = 1024 * 1024
# In bytes: a large file is synced each time, so that a stop or a power cut costs little and the disk keeps up.
_SYNC_EVERY = 64 * _BLOCK
_PART = re.compile(r"\..*\.part", re.DOTALL)
# How often an unfinished file may be replaced by another process while it is opened.
_TRIES = 10
_BUSY = (errno.EAGAIN, errno.EACCES)


class FolderObjects:
    """The objects of one opened folder."""

    def __init__(self, root: Root, remember: Mapping[str, str | int]) -> None:
        self._root, self.remember = root, remember

    def create(self, name: str, content: bytes) -> bool:
        with explained(self._root.path):
            there = self._root.status(name)
            if there is not None:
                small = _small_part(name)
                if _is_same(there, self._root.status(small)):
                    self._root.remove(small)  # after a kill while it had two names
                return False
            with self._written(name, content) as part:
                try:
                    self._root.link(part, name)
                except FileExistsError:
                    self._root.remove(part)
                    return False
            return True

    def replace(self, name: str, content: bytes) -> None:
        with explained(self._root.path), self._written(name, content) as part:
            self._root.rename(part, name)

    def read(self, name: str) -> bytes | None:
        with explained(self._root.path):
            try:
                descriptor = self._root.open(name, os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError):
                return None
            with os.fdopen(descriptor, "rb") as file:
                # Python allocates all that it is asked for before it reads.
                return file.read(min(os.fstat(descriptor).st_size, LARGEST))

    def upload(self, name: str, source: Source, attempt: Attempt, progress: str | None) -> None:
        part, folder = _part(name), name.rpartition("/")[0]
        with explained(self._root.path):
            if self._is_there(name, source, attempt):
                self._root.remove(part)
                return
            self._root.make_folders(folder)
            descriptor = self._open_part(part)
        try:
            self._write(descriptor, part, source, attempt)
            with explained(self._root.path):
                self._root.rename(part, name)
                self._root.sync(folder)
        finally:
            os.close(descriptor)

    def stat(self, name: str, *, hashed: bool = False) -> Stored | None:
        with explained(self._root.path):
            found = self._root.status(name)
        if found is None or not stat.S_ISREG(found.st_mode):
            return None
        return Stored(name, found.st_size)

    def below(self, folder: str) -> Iterator[Stored]:
        with explained(self._root.path):
            found = list(self._root.listed(folder))
        for each, status in found:
            name = f"{folder}/{each}" if folder else each
            if stat.S_ISDIR(status.st_mode):
                yield from self.below(name)
            elif stat.S_ISREG(status.st_mode) and not _PART.fullmatch(each):
                yield Stored(name, status.st_size)

    def children(self, folder: str) -> list[str]:
        with explained(self._root.path):
            found = list(self._root.listed(folder))
        names = []
        for each, status in found:
            is_hidden = _PART.fullmatch(each) or (not folder and each.startswith("."))
            inner = f"{folder}/{each}" if folder else each
            if not is_hidden and not (stat.S_ISDIR(status.st_mode) and self._is_empty(inner)):
                names.append(each)
        return names

    def delete(self, name: str) -> None:
        with explained(self._root.path):
            self._root.remove(name)
            self._root.remove(_part(name))

    def discard(self, folder: str) -> None:
        with explained(self._root.path):
            self._root.remove_folder(folder)

    def blocks(self, name: str, start: int = 0) -> Iterator[bytes]:
        with explained(self._root.path):
            file = os.fdopen(self._root.open(name, os.O_RDONLY), "rb", buffering=0)
        with file:
            file.seek(start)
            while True:
                with explained(self._root.path):
                    block = file.read(_BLOCK)
                if not block:
                    return
                yield block

    def url(self, folder: str) -> str | None:
        return (self._root.path / folder).as_uri()

    # Writing.

    @contextmanager
    def _written(self, name: str, content: bytes) -> Iterator[str]:
        """A small file that is whole and synced, under its unfinished name; the names in its folder are synced at the end."""
        part, folder = _small_part(name), name.rpartition("/")[0]
        self._root.make_folders(folder)
        descriptor = self._open_part(part)
        try:
            os.ftruncate(descriptor, 0)
            _write_all(descriptor, content)
            self._root.sync_file(descriptor)
            yield part
            self._root.sync(folder)
        except OSError:
            with suppress(OSError):
                self._root.remove(part)
            raise
        finally:
            os.close(descriptor)

    def _open_part(self, part: str) -> int:
        """Open an unfinished file, locked: a worker that was suspended may be writing it still."""
        for _ in range(_TRIES):
            descriptor = self._root.open(part, os.O_RDWR | os.O_CREAT)
            try:
                self._lock(descriptor)
                found = os.fstat(descriptor)
                is_same = _is_same(found, self._root.status(part))
                if is_same and found.st_nlink <= 1:
                    return descriptor
                if is_same:
                    # After a kill between its two names: it is a whole object as well, and is not written to.
                    self._root.remove(part)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise StoreFailed(RetryLater(f"{self._root.path}: another worker is writing this file"))

    def _lock(self, descriptor: int) -> None:
        if os.name == "nt":
            return
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                raise StoreFailed(
                    RetryLater(f"{self._root.path}: another worker is writing this file")
                ) from error
            # Without locks: the lease of the lane is the first line of defence.

    def _write(self, descriptor: int, part: str, source: Source, attempt: Attempt) -> None:
        """Write what is missing of a file, in blocks, and sync it."""
        at, synced = 0, 0
        with explained(self._root.path):
            there = os.fstat(descriptor).st_size
        for block in source.blocks():
            obey(attempt)
            with explained(self._root.path):
                if at < there and not _has(descriptor, at, block[: there - at]):
                    os.ftruncate(descriptor, at)
                    there = at
                kept = min(max(there - at, 0), len(block))
                os.lseek(descriptor, at + kept, os.SEEK_SET)
                _write_all(descriptor, block[kept:])
            at += len(block)
            attempt.on_bytes(at)
            if at - synced >= _SYNC_EVERY:
                self._sync(descriptor, part)
                synced = at
        if at != source.size:
            raise StoreFailed(RetryLater(f"the snapshot has {at} bytes, not {source.size}"))
        with explained(self._root.path):
            os.ftruncate(descriptor, at)
        self._sync(descriptor, part)

    def _sync(self, descriptor: int, part: str) -> None:
        try:
            self._root.sync_file(descriptor)
        except OSError:
            # The system may forget what it could not write, and report no error for it again.
            with suppress(OSError):
                self._root.remove(part)
            with explained(self._root.path):
                raise

    def _is_there(self, name: str, source: Source, attempt: Attempt) -> bool:
        """Whether an earlier attempt has stored a file: its bytes are compared."""
        found = self._root.status(name)
        if found is None or found.st_size != source.size:
            return False
        at = 0
        with os.fdopen(self._root.open(name, os.O_RDONLY), "rb", buffering=0) as file:
            for block in source.blocks():
                obey(attempt)
                if not _has(file.fileno(), at, block):
                    return False
                at += len(block)
                attempt.on_bytes(at)
        return at == source.size

    def _is_empty(self, folder: str) -> bool:
        with explained(self._root.path):
            for each, status in self._root.listed(folder):
                is_object = stat.S_ISREG(status.st_mode) and not _PART.fullmatch(each)
                if is_object or (stat.S_ISDIR(status.st_mode) and not self._is_empty(f"{folder}/{each}")):
                    return False
        return True


def _part(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}.{last}.part"


def _small_part(name: str) -> str:
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}.hubqueue.part"


def _is_same(found: os.stat_result, other: os.stat_result | None) -> bool:
    return other is not None and (found.st_dev, found.st_ino) == (other.st_dev, other.st_ino)


def _has(descriptor: int, at: int, block: memoryview) -> bool:
    """Whether an open file has these bytes at an offset."""
    os.lseek(descriptor, at, os.SEEK_SET)
    while block:
        found = os.read(descriptor, len(block))
        if not found or block[: len(found)] != found:
            return False
        block = block[len(found) :]
    return True


def _write_all(descriptor: int, content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
