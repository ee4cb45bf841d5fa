"""Request bodies of a known length, read in large blocks and never held in memory. Pure but for the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import BinaryIO, Protocol

BLOCK = 1024 * 1024


class BodyChanged(Exception):
    """The file was not as long as announced, or not to be read: the request is broken off, never padded."""


class Body(Protocol):
    """Something to send: its length in bytes, and its blocks, from the start each time it is asked."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes | memoryview]: ...


class Bytes:
    """A body that is in memory already."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        view = memoryview(self._content)
        for start in range(0, len(view), BLOCK):
            yield view[start : start + BLOCK]


class File:
    """The bytes of a file of a known size, opened anew for each reading."""

    def __init__(self, size: int, open_file: Callable[[], BinaryIO]) -> None:
        self._size, self._open = size, open_file

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes | memoryview]:
        left, buffer = self._size, memoryview(bytearray(BLOCK))
        with _reading():
            opened = self._open()
        with closing(opened) as file:
            while left:
                with _reading():
                    count = file.readinto(buffer[: min(left, BLOCK)])  # type: ignore[attr-defined]
                if not count:
                    raise BodyChanged(f"the snapshot ends {left} bytes early")
                yield buffer[:count]
                left -= count
            with _reading():
                more = file.read(1)
            if more:
                raise BodyChanged("the snapshot is longer than it was")


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

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._head
        yield from self._file
        yield self._tail


@contextmanager
def _reading() -> Iterator[None]:
    """Trouble of the file is told as such: as an OSError it would pass for trouble of the network."""
    try:
        yield
    except OSError as error:
        raise BodyChanged(f"the snapshot cannot be read: {error.strerror}") from error


def form_boundary(idempotency_key: str) -> str:
    """A boundary that is the same for every attempt at a batch, so that a retry carries the same bytes."""
    return f"hubqueue-{idempotency_key}"
