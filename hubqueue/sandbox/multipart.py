"""Read a multipart form while it arrives: fields into memory, the one file part to disk.

Promises: memory use does not depend on the file's size; an incomplete form raises and leaves nothing.
Refuses: more than one file part, long fields, anything but blanks after the closing boundary.
Format: RFC 7578 over RFC 2046.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import BinaryIO

from hubqueue.sandbox.archive import opened_privately

BLOCK = 1 << 20
_HEAD_LIMIT = 16 * 1024
_FIELD_LIMIT = 64 * 1024


class BadForm(ValueError):
    """The body is not the multipart form that its headers promise."""


@dataclass(slots=True)
class Form:
    """The parts of a form. `size` is that of the file part in bytes, `sha256` its hex digest."""

    fields: dict[str, str] = field(default_factory=dict)
    file_field: str | None = None
    filename: str | None = None
    size: int = 0
    sha256: str = ""


def boundary_of(content_type: str) -> bytes | None:
    """The boundary, or None if the type is not a multipart form with a boundary."""
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        return None
    return boundary.encode("latin-1") if 0 < len(boundary) <= 70 else None


def read_form(read: Callable[[int], bytes], boundary: bytes, path: Path) -> Form:
    """Read a whole form; `read(n)` returns at most n bytes, b"" at the end. The file part is written to `path`.

    Raises `BadForm`, and the exceptions of `read`; then `path` does not exist any more.
    """
    form = Form()
    try:
        _Parser(read, boundary, path, form).run()
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return form


class _Parser:
    def __init__(self, read: Callable[[int], bytes], boundary: bytes, path: Path, form: Form) -> None:
        self._read = read
        self._delimiter = b"\r\n--" + boundary
        self._path = path
        self._form = form
        # The first boundary has no line end before it; with one in front all boundaries look alike.
        self._buffer = bytearray(b"\r\n")

    def run(self) -> None:
        self._pass_through(None, limit=_HEAD_LIMIT)
        while not self._at_end():
            name, filename = self._part_head()
            if filename is None:
                self._field(name)
            else:
                self._file(name, filename)

    def _more(self) -> None:
        block = self._read(BLOCK)
        if not block:
            raise BadForm("the form ends before its closing boundary")
        self._buffer += block

    def _at_end(self) -> bool:
        while len(self._buffer) < 2:
            self._more()
        if self._buffer[:2] == b"--":
            del self._buffer[:2]
            while True:
                if self._buffer.strip():
                    raise BadForm("there are bytes after the closing boundary")
                self._buffer.clear()
                block = self._read(BLOCK)
                if not block:
                    return True
                self._buffer += block
        return False

    def _part_head(self) -> tuple[str, str | None]:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise BadForm("a part has no end of headers")
            self._more()
        lines = bytes(self._buffer[:end]).decode("utf-8", "replace").split("\r\n")
        del self._buffer[: end + 4]
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip().lower() == "content-disposition":
                found = dict(re.findall(r';\s*([a-z]+\*?)="((?:[^"\\]|\\.)*)"', value))
                if not value.strip().startswith("form-data") or "name" not in found:
                    break
                return found["name"], found.get("filename")
        raise BadForm("a part does not name its field")

    def _field(self, name: str) -> None:
        content = bytearray()
        self._pass_through(content.extend, limit=_FIELD_LIMIT)
        if name in self._form.fields:
            raise BadForm(f"the field {name!r} comes twice")
        self._form.fields[name] = content.decode("utf-8", "replace")

    def _file(self, name: str, filename: str) -> None:
        if self._form.file_field is not None:
            raise BadForm("there is more than one file part")
        self._form.file_field, self._form.filename = name, filename
        digest = hashlib.sha256()
        with open(self._path, "wb", opener=opened_privately) as file:
            self._form.size = self._pass_through(_both(file, digest.update), limit=None)
        self._form.sha256 = digest.hexdigest()

    def _pass_through(self, sink: Callable[[bytes], object] | None, *, limit: int | None) -> int:
        """Pass everything before the next boundary to `sink`, and skip the boundary. Returns the number of bytes."""
        total = 0
        while True:
            at = self._buffer.find(self._delimiter)
            # A boundary may have begun in the last bytes of the block: hold them back.
            ready = at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1)
            if ready:
                total += ready
                if limit is not None and total > limit:
                    raise BadForm("a field or a preamble is too long")
                if sink is not None:
                    sink(bytes(self._buffer[:ready]))
                del self._buffer[:ready]
            if at >= 0:
                del self._buffer[: len(self._delimiter)]
                return total
            self._more()


def _both(file: BinaryIO, update: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def take(block: bytes) -> None:
        file.write(block)
        update(block)

    return take
