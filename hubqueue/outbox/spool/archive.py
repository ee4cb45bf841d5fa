"""A checkpoint that is a folder, as one file: a tar, for a destination that takes one file.

Promises: the same files under the same paths give the same bytes. Names are sorted, and owners, modes and times are not
kept. The tar is written straight into the spool, hashed on the way: there is no second copy. The rules for what a folder
may contain are those of folder.py.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from hubqueue.config.home import open_private
from hubqueue.domain.snapshots.snapshot import ARCHIVE
from hubqueue.outbox.spool.blocks import read_block, write
from hubqueue.outbox.spool.folder import Changing, Found, Listed, is_unchanged, open_found
from hubqueue.outbox.spool.hashing import BLOCK, HashBehind, from_file
from hubqueue.outbox.spool.source import Written


class ArchiveSource(Listed):
    """A checkpoint that is a folder, to be saved as one tar."""

    suffix = ARCHIVE

    def _size(self) -> int:
        return _whole_records(sum(len(_header(each)) + _padded(each.size) for each in self._files))

    def write(self, part: Path) -> Written | None:
        target = open_private(part, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            with part.open("rb", buffering=0) as copy, HashBehind(from_file(copy)) as behind:
                total = 0
                for block in self._blocks():
                    write(target, block)
                    behind.written(len(block))
                    total += len(block)
                end = _whole_records(total) - total
                write(target, memoryview(bytes(end)))
                behind.written(end)
                os.fsync(target)
            if self._has_changed():
                return None
            copied = os.fstat(target)
        except Changing:
            return None
        finally:
            os.close(target)
        return Written(copied.st_size, copied.st_mtime_ns, behind.digest())

    def _blocks(self) -> Iterator[memoryview]:
        """The tar without its end. Raises `Changing` when a file is not as long as its header says."""
        buffer = memoryview(bytearray(BLOCK))
        for each in self._files:
            yield memoryview(_header(each))
            left = each.size
            with open_found(each) as file:
                while left:
                    count = read_block(file, buffer[: min(left, BLOCK)], each.real)
                    if not count:
                        raise Changing
                    left -= count
                    yield buffer[:count]
                if not is_unchanged(each, file):
                    raise Changing
            yield memoryview(bytes(_padded(each.size) - each.size))


def _header(each: Found) -> bytes:
    member = tarfile.TarInfo(each.path)
    member.size, member.mode = each.size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _whole_records(size: int) -> int:
    """The size of a tar with its end: two empty blocks, and whole records."""
    return -(-(size + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
