"""The hash of a file that is being written, by a second thread: a copy waits for its disk, not for the arithmetic.

Promises a memory of one block, and a hash of what the file holds, read back out of it. Hashing gives up the
interpreter's lock, so it costs the training a part of a processor, not its turn. Refuses to hide trouble: what the thread
met is raised by `digest`.
"""

from __future__ import annotations

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
        self._written, self._whole = 0, False
        self._trouble: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="hubqueue-hash", daemon=True)
        self._thread.start()

    def written(self, count: int) -> None:
        """So many bytes more stand in the file."""
        with self._changed:
            self._written += count
            self._changed.notify()

    def digest(self) -> str:
        """The digest of the whole file, in hex, after its end. Raises the `OSError` that reading met."""
        if self._trouble is not None:
            raise self._trouble
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._whole = True
            self._changed.notify()
        self._thread.join()
        self._file.close()

    def _work(self) -> None:
        at, buffer = 0, memoryview(bytearray(BLOCK))
        try:
            while (limit := self._more(at)) > at:
                while at < limit:
                    count = self._file.readinto(buffer[: min(BLOCK, limit - at)])
                    if not count:
                        return  # cut by somebody else; its writer looks at the size
                    self._hash.update(buffer[:count])
                    at += count
        except BaseException as trouble:
            self._trouble = trouble

    def _more(self, at: int) -> int:
        """How far the file may be read, once that is further than `at` by a block, or all there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._whole or self._written - at >= BLOCK)
            return self._written
