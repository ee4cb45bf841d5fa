"""Request bodies of a known length, read in large blocks and never held in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Protocol

from hubqueue.config.declaration import Blocks

BLOCK = 1024 * 1024


class BodyChanged(Exception):
    """The file is not as long as announced: the request is aborted, never padded."""


class Body(Protocol):
    """Something to send: its length in bytes, and its blocks. Each iteration begins at the start."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Generator[bytes | memoryview, None, None]: ...  # noqa: PYI058 - it is closed, too


class Bytes:
    """A body in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content)

    def __iter__(self) -> Generator[bytes | memoryview, None, None]:
        view = memoryview(self._content)
        for start in range(0, len(view), BLOCK):
            yield view[start : start + BLOCK]


class File:
    """The blocks of a file of a known size, opened for each iteration."""

    def __init__(self, size: int, open_file: Callable[[], Blocks]) -> None:
        self._size, self._open = size, open_file

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Generator[bytes | memoryview, None, None]:
        left = self._size
        with closing(self._open()) as blocks:
            for block in blocks:
                left -= len(block)
                if left < 0:
                    raise BodyChanged("the snapshot is longer than it was")
                yield block
        if left:
            raise BodyChanged(f"the snapshot ends {left} bytes early")


class Multipart:
    """A form with fields and one file as its last part (RFC 7578)."""

    def __init__(
        self, fields: Sequence[tuple[str, str]], *, file_name: str, file: File, boundary: str
    ) -> None:
        head = []
        for name, value in fields:
            head.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n')
        head.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{file_name}"; filename="{file_name}"\r\n\r\n'
        )
        self._head = "".join(head).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._file = file
        self.content_type = f"multipart/form-data; boundary={boundary}"

    def __len__(self) -> int:
        return len(self._head) + len(self._file) + len(self._tail)

    def __iter__(self) -> Generator[bytes | memoryview, None, None]:  # noqa: PYI058 - as of any body
        yield self._head
        yield from self._file
        yield self._tail


def form_boundary(idempotency_key: str) -> str:
    """The boundary of a form. Every attempt at a batch has the same one, so that a retry carries the same bytes."""
    return f"hubqueue-{idempotency_key}"
