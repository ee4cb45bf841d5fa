"""Copies the bytes of one opened file: shared with the source where the file system can, else block by block.

Promises a hash of exactly the bytes that are in the copy, and a memory of a few blocks. An error of the source is a
`CheckpointUnreadable`, one of the copy an `OSError`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import BinaryIO

from hubqueue.domain.errors import CheckpointUnreadable
from hubqueue.outbox.spool.hashing import BLOCK, HashBehind, from_file

# With larger writes the page cache of Linux 6.18 tries large pages first: up to 4 s for a GiB instead of 0.5 s.
_WRITE = 128 * 1024
# How many files are synced at once: measured, 8 need a seventh of the time of 1.
_SYNCS = 8
# ioctl FICLONE of Linux (btrfs, XFS, bcachefs): a copy that shares the blocks of the source, without reading them.
_FICLONE = 0x40049409


def clone(file: BinaryIO, target: int) -> bool:
    """Share the blocks of the source where the file system supports it (a reflink). Returns whether it does."""
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, file.fileno())
    except (ImportError, OSError):
        return False
    return True


def copy_blocks(file: BinaryIO, target: int, part: Path, source: object, size: int) -> str:
    """Copy at most `size` bytes, also of a source that grows, and sync them. Returns the SHA-256 (hex) of the copy."""
    buffer, left = memoryview(bytearray(BLOCK)), size
    file.seek(0)
    with part.open("rb", buffering=0) as copy, HashBehind(from_file(copy)) as behind:
        while left:
            count = read_block(file, buffer[: min(left, BLOCK)], source)
            if not count:
                break  # the source shrank: the caller finds that the copy is short
            left -= count
            write(target, buffer[:count])
            behind.written(count)
        # Disk and hash are both slow: the sync runs while the thread hashes.
        os.fsync(target)
    return behind.digest()


def copy_small(file: BinaryIO, target: int, source: object, size: int) -> str:
    """Copy at most `size` bytes, no more than a block, and do not sync them. Returns their SHA-256 (hex)."""
    buffer, count = memoryview(bytearray(size)), 0
    while count < size and (more := read_block(file, buffer[count:], source)):
        count += more
    write(target, buffer[:count])
    return hashlib.sha256(buffer[:count]).hexdigest()


def read_block(file: BinaryIO, buffer: memoryview, source: object) -> int:
    """Read some bytes of a checkpoint. Returns how many; 0 at its end."""
    try:
        count: int = file.readinto(buffer)  # type: ignore[attr-defined]
    except OSError as error:
        hint = "pass the path of a readable checkpoint file"
        raise CheckpointUnreadable(f"cannot read {source}: {error.strerror}", hint=hint) from error
    return count


def write(target: int, block: memoryview) -> None:
    """Write a whole block."""
    written = 0
    while written < len(block):
        written += os.write(target, block[written : written + _WRITE])


def sync_files(paths: Collection[Path]) -> None:
    """Sync files to the disk, several at once: the file system then commits many together. Raises `OSError`."""
    waiting: SimpleQueue[Path] = SimpleQueue()
    for path in paths:
        waiting.put(path)
    failed: list[OSError] = []

    def sync() -> None:
        with suppress(Empty):
            while not failed:
                try:
                    with waiting.get_nowait().open("r+b") as file:
                        os.fsync(file.fileno())
                except OSError as error:
                    failed.append(error)

    threads = [
        threading.Thread(target=sync, name="hubqueue-sync", daemon=True)
        for _ in range(min(_SYNCS, len(paths)) - 1)
    ]
    started = []
    with suppress(RuntimeError):  # no more threads, or the interpreter ends: fewer sync the same files
        for thread in threads:
            thread.start()
            started.append(thread)
    sync()
    for thread in started:
        thread.join()
    if failed:
        raise failed[0]


def digest_of(path: Path) -> str:
    """The SHA-256 (hex) of a file of the spool."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
