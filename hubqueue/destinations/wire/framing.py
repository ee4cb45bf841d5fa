"""Where a response begins and ends: the rules of RFC 9112, in the cases where the standard library guesses.

Promises that a response which is read to its end is the whole response to this request: its head and its chunks are
well-formed and complete, and an interim response (102 Processing, 103 Early Hints) does not count as the response.
Refuses to guess: `http.client` accepts the end of the stream as the end of a head, drops what follows an invalid field
line, reads `+5` and `5_0` as lengths, and returns a 103 as the response, so that the next request would get the real
one.
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


class ResponseCut(http.client.HTTPException):
    """The connection ended inside the response."""


class MalformedResponse(http.client.HTTPException):
    """The response violates the protocol, so where it begins or ends is uncertain."""


class _LineRecorder:
    """A file that records the lines read from it, and trims the blanks at the end of a field."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.lines: list[bytes] = []

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self.inner.readline(limit)
        self.lines.append(line)
        return re.sub(rb"[ \t]+(\r?\n)\Z", rb"\1", line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class WholeResponse(http.client.HTTPResponse):
    """A response whose head and chunks must be well-formed and complete."""

    def begin(self) -> None:
        with self._recorded() as recorder:
            super().begin()
        _check_head(recorder.lines)
        codings = self.headers.get_all("Transfer-Encoding", [])
        if codings and (len(codings) > 1 or not self.chunked):
            raise MalformedResponse("an unexpected transfer coding")
        lengths = self.headers.get_all("Content-Length", [])
        if len(set(lengths)) > 1 or not all(_LENGTH.fullmatch(length) for length in lengths):
            raise MalformedResponse("the response has contradictory lengths")

    # The names from here on are those of http.client.

    def _read_status(self) -> tuple[str, int, str]:
        """Skips interim responses (RFC 9110, section 15.2)."""
        while True:
            found: tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
            if found[1] >= 200:
                return found
            if found[1] == 101:
                raise MalformedResponse("an unexpected switch of protocols")
            http.client.parse_headers(self.fp)
            _check_head(self.fp.lines)  # type: ignore[attr-defined]
            self.fp.lines.clear()  # type: ignore[attr-defined]

    def _get_chunk_left(self) -> int | None:
        if self.chunk_left == 0:
            if self._safe_read(2) != b"\r\n":  # type: ignore[attr-defined]
                raise MalformedResponse("a chunk does not match its size")
            self.chunk_left = None
        left: int | None = super()._get_chunk_left()  # type: ignore[misc]
        return left

    def _read_next_chunk_size(self) -> int:
        with self._recorded() as recorder:
            size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if not recorder.lines[-1].endswith(b"\n"):
            raise ResponseCut("the response ends inside the size of a chunk")
        if not _CHUNK.fullmatch(recorder.lines[-1]):
            raise MalformedResponse("invalid chunk size")
        return size

    def _read_and_discard_trailer(self) -> None:
        with self._recorded() as recorder:
            super()._read_and_discard_trailer()  # type: ignore[misc]
        if recorder.lines[-1] not in _BLANK:
            raise ResponseCut("the response ends before its last blank line")

    @contextmanager
    def _recorded(self) -> Iterator[_LineRecorder]:
        recorder = _LineRecorder(self.fp)
        self.fp = recorder  # type: ignore[assignment]
        try:
            yield recorder
        finally:
            if self.fp is not None:  # None: the connection was closed meanwhile
                self.fp = recorder.inner


def _check_head(lines: Sequence[bytes]) -> None:
    """A status line, fields, a blank line. Raises `ResponseCut` and `MalformedResponse`."""
    if lines[-1] not in _BLANK:
        raise ResponseCut("the response ends inside its headers")
    if not _STATUS.fullmatch(lines[0]):
        raise MalformedResponse("invalid status line")
    for number, line in enumerate(lines[1:-1]):
        if not _FIELD.fullmatch(line) and not (number and _FOLD.fullmatch(line)):
            raise MalformedResponse("malformed header")
