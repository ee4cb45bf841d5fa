"""The hash of what is being written or sent, by a second thread: the disk and the network do not wait for the arithmetic.

Promises a memory of one block (of a few, for a body that is sent), and a hash of the very bytes: those that the file holds,
those that leave. Hashing gives up the interpreter's lock, so it costs the training a part of a processor, not its turn.
Refuses to hide trouble: what the thread met is raised by `digest`.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, Self

BLOCK = 1024 * 1024

At = Callable[[int, int], memoryview]
"""Some of the bytes at a place, at most so many; none when they cannot be had."""


class HashBehind:
    """The SHA-256 of bytes, as far as they are said to be `written`, got `at` their places. A context manager: its end is theirs."""

    def __init__(self, at: At) -> None:
        self._at = at
        self._hash = hashlib.sha256()
        self._written, self._hashed, self._whole, self._ended = 0, 0, False, False
        self._trouble: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = threading.Thread(
            target=self._work, name="hubqueue-hash", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None  # no more threads, or the interpreter ends: hashed by the caller, who waits

    def written(self, count: int) -> None:
        """So many bytes more are there."""
        with self._changed:
            self._written += count
            self._changed.notify()

    def wait(self, behind: int) -> None:
        """Wait until it is at most so many bytes behind; not less than a block."""
        if self._thread is None:
            self._go_on(self._written)
            return
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._written - self._hashed <= behind)

    def digest(self) -> str:
        """The digest of all, in hex, after the end. Raises the `OSError` that reading met."""
        if self._trouble is not None:
            raise self._trouble
        if self._hashed != self._written:
            raise OSError(errno.EIO, "the copy cannot be read back")
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._whole = True
            self._changed.notify()
        if self._thread is None:
            self._work()
        else:
            self._thread.join()

    def _work(self) -> None:
        try:
            while (limit := self._more()) > self._hashed and self._go_on(limit):
                pass
        except BaseException as trouble:
            self._trouble = trouble
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _more(self) -> int:
        """How far there is something to hash, once that is a block, or all there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._whole or self._written - self._hashed >= BLOCK)
            return self._written

    def _go_on(self, limit: int) -> bool:
        """Hash as far as that; whether it could be."""
        while self._hashed < limit:
            block = self._at(self._hashed, min(BLOCK, limit - self._hashed))
            if not block:
                return False  # `digest` tells
            self._hash.update(block)
            with self._changed:
                self._hashed += len(block)
                self._changed.notify()
        return True


def from_file(file: BinaryIO) -> At:
    """The bytes of a file, one after the other, through a buffer of one block."""
    buffer = memoryview(bytearray(BLOCK))
    return lambda _place, most: buffer[: file.readinto(buffer[:most])]  # type: ignore[attr-defined]


def from_ring(ring: memoryview) -> At:
    """The bytes that were written into a ring, and are not written over yet."""
    return lambda place, most: ring[place % len(ring) :][:most]
