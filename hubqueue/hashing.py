"""The hash of bytes on their way, taken by a second thread: a copy waits for the disk, not for the arithmetic.

Promises a bounded memory, `BLOCKS` times `BLOCK`, and that what is hashed is what was taken, in its order. Hashing
gives up the interpreter's lock, so the thread costs the training a processor, not its turn.
"""

from __future__ import annotations

import hashlib
import queue
import threading

BLOCK = 2 * 1024 * 1024
BLOCKS = 4


class HashBehind:
    """A SHA-256 that runs behind its user: get a `buffer`, fill it, `take` it, and `end`."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._made = 0
        self._thread = threading.Thread(target=self._work, name="hubqueue-hash", daemon=True)
        self._thread.start()

    def buffer(self) -> memoryview:
        """A block to fill; waits for one that is hashed when all are under way."""
        if self._made < BLOCKS and self._free.empty():
            self._made += 1
            return memoryview(bytearray(BLOCK))
        return self._free.get()

    def take(self, filled: memoryview) -> None:
        """Hash this next. Its user may still read it, and gets its block back by `buffer`."""
        self._taken.put(filled)

    def end(self) -> str:
        """Wait for the rest; the digest, in hex."""
        self._taken.put(None)
        self._thread.join()
        return self._digest.hexdigest()

    def _work(self) -> None:
        while (filled := self._taken.get()) is not None:
            self._digest.update(filled)
            self._free.put(memoryview(filled.obj))
