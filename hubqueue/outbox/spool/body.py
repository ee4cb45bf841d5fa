"""The body of a snapshot that is sent: read, hashed and returned block by block.

Promises that an altered body never arrives whole: the last block is withheld until the hash of all returned blocks proves
that they are what was enqueued. Promises a memory of a few blocks. A disk error is raised as an error of the storage: an
`OSError` would look like a network problem.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from typing import BinaryIO, Self

from hubqueue.domain.errors import OutboxUnavailable, SnapshotAltered
from hubqueue.domain.snapshots.snapshot import Snapshot
from hubqueue.outbox.spool.hashing import BLOCK, HashBehind, from_ring

# Blocks in memory: one that is read, one that is hashed, one that is sent, and a spare one.
_RING = 4


class SnapshotBody:
    """An opened snapshot: its blocks, each valid until the next one is read.

    Opening and reading raise `SnapshotAltered`, and `OutboxUnavailable` when the disk fails.
    """

    def __init__(self, file: BinaryIO, snapshot: Snapshot) -> None:
        self._file, self._snapshot = file, snapshot
        self._blocks = self._read()
        try:
            self._verify()
        except BaseException:
            file.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> memoryview:
        try:
            return next(self._blocks)
        except OSError as error:
            raise self._unreadable(error) from error

    def section(self, start: int, size: int) -> Iterator[memoryview]:
        """`size` bytes from the offset `start`, in blocks of at most 1 MiB. They are not compared with the hash of the whole."""
        buffer = memoryview(bytearray(min(size, BLOCK)))
        try:
            self._file.seek(start)
            while size:
                block = buffer[: min(size, BLOCK)]
                self._fill(block)
                size -= len(block)
                yield block
        except OSError as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        self._blocks.close()
        self._file.close()

    def _read(self) -> Generator[memoryview, None, None]:
        size, at = self._snapshot.size, 0
        if size <= BLOCK:  # a folder may have many small files: no thread, and no more memory than needed
            block = memoryview(bytearray(size))
            self._fill(block)
            self._verify(hashlib.sha256(block).hexdigest() if self._snapshot.sha256 else None)
            yield block
            return
        ring = memoryview(bytearray(_RING * BLOCK))
        hashing = HashBehind(from_ring(ring)) if self._snapshot.sha256 else None
        with hashing or nullcontext():
            while True:
                if hashing:
                    hashing.wait(len(ring) - BLOCK)
                block = ring[at % len(ring) :][: min(BLOCK, size - at)]
                self._fill(block)
                at += len(block)
                if hashing:
                    hashing.written(len(block))
                if at == size:
                    break
                yield block
        self._verify(hashing.digest() if hashing else None)
        yield block

    def _fill(self, block: memoryview) -> None:
        while block:
            count = self._file.readinto(block)  # type: ignore[attr-defined]
            if not count:
                raise altered(self._snapshot.name)
            block = block[count:]

    def _verify(self, digest: str | None = None) -> None:
        """Raise `SnapshotAltered` when the size or the hash differs, or the time of a file without a hash."""
        found, wanted = os.fstat(self._file.fileno()), self._snapshot
        same = found.st_size == wanted.size and digest in (None, wanted.sha256)
        if not same or (wanted.sha256 is None and found.st_mtime_ns != wanted.mtime_ns):
            raise altered(self._snapshot.name)

    def _unreadable(self, error: OSError) -> OutboxUnavailable:
        hint = f"check the disk of {self._file.name}"
        return OutboxUnavailable(f"cannot read {self._snapshot.name}: {error.strerror}", hint=hint)


def altered(name: str) -> SnapshotAltered:
    """The error of a snapshot that is not the file that was enqueued."""
    hint = "put the right file back, or cancel its entry: hubqueue cancel ENTRY"
    return SnapshotAltered(f"{name} in the spool is not what was enqueued", hint=hint)
