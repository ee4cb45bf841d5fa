"""The hash of a file that is being written, by a second thread: a copy waits for its disk, not for the arithmetic.

Promises a memory of one block, and a hash of what the file holds, read back out of it. Hashing gives up the
interpreter's lock, so it costs the training a part of a processor, not its turn. Refuses to hide trouble: what the thread
met is raised by `digest`.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

BLOCK = 1024 * 1024


class HashBehind:
    """The SHA-256 of a file, as far as its writer says that it is `written`. A context manager: its end is the file's."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._hash = hashlib.sha256()
        self._written, self._read, self._whole = 0, 0, False
        self._trouble: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = threading.Thread(
            target=self._work, name="hubqueue-hash", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None  # no more threads, or the interpreter ends: hashed at the end, by the caller

    def written(self, count: int) -> None:
        """So many bytes more stand in the file."""
        with self._changed:
            self._written += count
            self._changed.notify()

    def digest(self) -> str:
        """The digest of the whole file, in hex, after its end. Raises the `OSError` that reading met."""
        if self._trouble is not None:
            raise self._trouble
        if self._read != self._written:
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
        self._file.close()

    def _work(self) -> None:
        try:
            buffer = memoryview(bytearray(BLOCK))
            while (limit := self._more(self._read)) > self._read:
                while self._read < limit:
                    count = self._file.readinto(buffer[: min(BLOCK, limit - self._read)])
                    if not count:
                        return  # `digest` tells
                    self._hash.update(buffer[:count])
                    self._read += count
        except BaseException as trouble:
            self._trouble = trouble

    def _more(self, at: int) -> int:
        """How far the file may be read, once that is further than `at` by a block, or all there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._whole or self._written - at >= BLOCK)
            return self._written
