"""A file of a checkpoint as the vendor's library reads it, and the body of a request that the library has made.

Promises that an altered file is never sent whole: its last bytes are withheld unless all of them are what was enqueued.
Needs a MiB, whatever the size of the file.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterable

from hubqueue.destinations.base import RetryLater, SeekableBlocks
from hubqueue.destinations.layout.store import Source, StoreFailed
from hubqueue.destinations.wire.body import BLOCK, BodyChanged


class SourceFile(io.BufferedIOBase):
    """The bytes of a source. It is opened at the first read, and again after `close_body`.

    `check` is called before each read. Reading raises what it and the source raise.
    """

    def __init__(self, source: Source, check: Callable[[], None]) -> None:
        super().__init__()
        self._source, self._check = source, check
        self._at = 0
        self._body: SeekableBlocks | None = None
        self._hashed, self._hash = 0, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        self._check()
        left = max(0, self._source.size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        if self._body is None:
            self._body = self._source.open()
        content = b"".join(bytes(each) for each in self._body.section(self._at, wanted))
        self._compare(content)
        self._at += wanted
        return content

    def close_body(self) -> None:
        """Close the file; it can still be read."""
        body, self._body = self._body, None
        if body is not None:
            body.close()

    def close(self) -> None:
        self.close_body()
        super().close()

    def _compare(self, content: bytes) -> None:
        """Hash what is read in order. Before the last bytes are returned, all must be those of the source."""
        if self._at == 0:
            self._hashed, self._hash = 0, hashlib.sha256()
        if self._at <= self._hashed <= self._at + len(content):
            self._hash.update(content[self._hashed - self._at :])
            self._hashed = self._at + len(content)
        if self._at + len(content) < self._source.size:
            return
        if self._hashed != self._source.size or self._hash.hexdigest() != self._source.sha256:
            for _ in self._source.blocks():
                pass  # raises the error of an altered snapshot
            raise StoreFailed(RetryLater("a file of the checkpoint changed while it was read"))


class Rising:
    """Adds up the bytes of several requests, each of which counts from 0."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report, self._before, self._last = report, 0, 0

    def __call__(self, sent: int) -> None:
        """Report what one of the requests has sent so far."""
        if sent < self._last:
            self._before += self._last
        self._last = sent
        self._report(self._before + sent)


class Streamed:
    """The body of a request of the library, of which it has announced the length. It can be sent once."""

    def __init__(self, size: int, stream: Iterable[bytes]) -> None:
        self._size, self._stream = size, stream
        self._sent = False

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Generator[bytes | memoryview, None, None]:
        if self._sent:
            raise BodyChanged("the library's request cannot be sent twice")
        self._sent, left = True, self._size
        for each in self._stream:
            view = memoryview(each)
            left -= len(view)
            if left < 0:
                raise BodyChanged("the library sends more than it has announced")
            for start in range(0, len(view), BLOCK):
                yield view[start : start + BLOCK]
        if left:
            raise BodyChanged(f"the library sends {left} bytes too few")
