"""The hash of what is being written or sent, by a second thread: the disk and the network do not wait for the hash.

Promises a memory of one block (of a few, for a body that is sent), and a hash of exactly the bytes that are in the file or
that are sent. Hashing releases the interpreter's lock, so it costs the training processor time, not a wait. `digest` raises
the errors of the thread.
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
"""Called with an offset and a count: at most that many bytes from there; empty when they cannot be read."""


class HashBehind:
    """The SHA-256 of a stream: of the bytes that are `written` so far, read with `at`. A context manager; its exit ends the stream."""

    def __init__(self, at: At) -> None:
        self._at = at
        self._hash = hashlib.sha256()
        self._written, self._hashed, self._complete, self._ended = 0, 0, False, False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = threading.Thread(
            target=self._work, name="hubqueue-hash", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None  # no more threads, or the interpreter ends: the calling thread hashes

    def written(self, count: int) -> None:
        """`count` more bytes can be read."""
        with self._changed:
            self._written += count
            self._changed.notify()

    def wait(self, behind: int) -> None:
        """Wait until at most `behind` written bytes are not hashed yet; `behind` is at least a block."""
        if self._thread is None:
            self._hash_to(self._written)
            return
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._written - self._hashed <= behind)

    def digest(self) -> str:
        """The digest of the whole stream, in hex, after its end. Raises the error of the thread, `OSError` from reading."""
        if self._error is not None:
            raise self._error
        if self._hashed != self._written:
            raise OSError(errno.EIO, "the copy cannot be read back")
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._complete = True
            self._changed.notify()
        if self._thread is None:
            self._work()
        else:
            self._thread.join()

    def _work(self) -> None:
        try:
            while (limit := self._more()) > self._hashed and self._hash_to(limit):
                pass
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _more(self) -> int:
        """The offset up to which to hash. Waits for a full block, or for the end of the stream."""
        with self._changed:
            self._changed.wait_for(lambda: self._complete or self._written - self._hashed >= BLOCK)
            return self._written

    def _hash_to(self, limit: int) -> bool:
        """Hash up to the offset `limit`. Returns whether that was possible."""
        while self._hashed < limit:
            block = self._at(self._hashed, min(BLOCK, limit - self._hashed))
            if not block:
                return False  # `digest` raises
            self._hash.update(block)
            with self._changed:
                self._hashed += len(block)
                self._changed.notify()
        return True


def from_file(file: BinaryIO) -> At:
    """Reads a file sequentially, through a buffer of one block."""
    buffer = memoryview(bytearray(BLOCK))
    return lambda _offset, most: buffer[: file.readinto(buffer[:most])]  # type: ignore[attr-defined]


def from_ring(ring: memoryview) -> At:
    """Reads bytes of a ring buffer that are not overwritten yet."""
    return lambda offset, most: ring[offset % len(ring) :][:most]
