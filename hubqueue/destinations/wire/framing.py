"""Where an answer begins and ends: what RFC 9112 asks for, in the places where the standard library guesses.

Promises that an answer which is read to its end is the whole answer to this request: its head and its chunks are
as they should be and end as they should, and what a hub says before it (102 Processing, 103 Early Hints) is not
taken for it. Refuses to guess: `http.client` takes the end of the stream for the end of a head, drops what follows
a line that is no field, reads `+5` and `5_0` as lengths, and takes a 103 for the answer, so that the real one would
be that to the next request.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_BLANK = (b"\r\n", b"\n")
_STATUS = re.compile(rb"HTTP/1\.[0-9][ \t]+[0-9]{3}(?:[ \t][^\r\n]*)?\r?\n")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\x00]*\r?\n")
_FOLD = re.compile(rb"[ \t][^\r\n\x00]*\r?\n")
_CHUNK = re.compile(rb"[0-9A-Fa-f]{1,16}[ \t]*(?:;[^\r\n]*)?\r\n")
_LENGTH = re.compile(r"[0-9]{1,18}")


class AnswerCut(http.client.HTTPException):
    """The connection ended inside the answer."""


class AnswerBroken(http.client.HTTPException):
    """The answer cannot be told from what stands before or behind it."""


class _Witness:
    """A file that remembers the lines that were read from it, and trims the blanks that end a field."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.lines: list[bytes] = []

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self.inner.readline(limit)
        self.lines.append(line)
        return re.sub(rb"[ \t]+(\r?\n)\Z", rb"\1", line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class WholeAnswer(http.client.HTTPResponse):
    """An answer whose head and chunks must be, and end, as they should."""

    def begin(self) -> None:
        with self._witnessed() as witness:
            super().begin()
        _check_head(witness.lines)
        codings = self.headers.get_all("Transfer-Encoding", [])
        if codings and (len(codings) > 1 or not self.chunked):
            raise AnswerBroken("a transfer coding that nobody asked for")
        lengths = self.headers.get_all("Content-Length", [])
        if len(set(lengths)) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
            raise AnswerBroken("the answer contradicts itself about its length")

    # The rest belongs to http.client, whose names these are.

    def _read_status(self) -> tuple[str, int, str]:
        """Passes over what is said before the answer itself (RFC 9110, section 15.2)."""
        while True:
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if found[1] >= 200:
                return found
            if found[1] == 101:
                raise AnswerBroken("a switch of protocols that nobody asked for")
            http.client.parse_headers(self.fp)
            _check_head(self.fp.lines)  # type: ignore[attr-defined]
            self.fp.lines.clear()  # type: ignore[attr-defined]

    def _get_chunk_left(self) -> int | None:
        if self.chunk_left == 0:
            if self._safe_read(2) != b"\r\n":  # type: ignore[attr-defined]
                raise AnswerBroken("a chunk does not end where it should")
            self.chunk_left = None
        left: int | None = super()._get_chunk_left()  # type: ignore[misc]
        return left

    def _read_next_chunk_size(self) -> int:
        with self._witnessed() as witness:
            size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if not witness.lines[-1].endswith(b"\n"):
            raise AnswerCut("the answer ends inside the size of a chunk")
        if not _CHUNK.fullmatch(witness.lines[-1]):
            raise AnswerBroken("invalid size of a chunk")
        return size

    def _read_and_discard_trailer(self) -> None:
        with self._witnessed() as witness:
            super()._read_and_discard_trailer()  # type: ignore[misc]
        if witness.lines[-1] not in _BLANK:
            raise AnswerCut("the answer ends before its last blank line")

    @contextmanager
    def _witnessed(self) -> Iterator[_Witness]:
        witness = _Witness(self.fp)
        self.fp = witness  # type: ignore[assignment]
        try:
            yield witness
        finally:
            if self.fp is not None:  # None: the connection was closed meanwhile
                self.fp = witness.inner


def _check_head(lines: Sequence[bytes]) -> None:
    """A status line, fields, a blank line. Raises `AnswerCut` and `AnswerBroken`."""
    if lines[-1] not in _BLANK:
        raise AnswerCut("the answer ends inside its headers")
    if not _STATUS.fullmatch(lines[0]):
        raise AnswerBroken("invalid status line")
    for number, line in enumerate(lines[1:-1]):
        if not _FIELD.fullmatch(line) and not (number and _FOLD.fullmatch(line)):
            raise AnswerBroken("malformed header")
