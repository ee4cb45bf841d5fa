"""Rows out of a damaged SQLite file: every leaf page of a table or an index is read, also where nothing points to it.

Format: sqlite.org/fileformat2.html, sections 1.6 (b-tree pages), 2.1 (records) and 4 (write-ahead log). Promises never
to fail on any bytes: unreadable rows are left out. The caller finds out which table a row belongs to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TABLE_LEAF, _INDEX_LEAF = 0x0D, 0x0A
_HEADER = 100
_SIZES = frozenset(1 << power for power in range(9, 17))
_USUAL_SIZE = 4096
_FIXED = (0, 1, 2, 3, 4, 6, 8)
_WAL_HEADER, _FRAME_HEADER = 32, 24
_MOST_COLUMNS = 64

Value = int | float | str | bytes | None


@dataclass(frozen=True, slots=True)
class Row:
    """A record as the file has it: its values in the order of the table's columns, and its rowid.

    A record of an index has no rowid of its own (None); its last value is that of the row it points to.
    """

    rowid: int | None
    values: tuple[Value, ...]


class _Unreadable(Exception):
    """These bytes are not a record."""


def rows(path: Path) -> Iterator[Row]:
    """Every row that can be read in a database file and in the write-ahead log beside it, page by page."""
    data = path.read_bytes()
    size = _page_size(data)
    pages = {number: data[number * size : (number + 1) * size] for number in range(-(-len(data) // size))}
    wal = path.with_name(path.name + "-wal")
    if wal.is_file():
        pages.update(_frames(wal.read_bytes(), size))
    for number in sorted(pages):
        yield from _rows_of(pages, number, size)


def _page_size(data: bytes) -> int:
    size = int.from_bytes(data[16:18], "big")
    size = 65536 if size == 1 else size
    return size if size in _SIZES else _USUAL_SIZE


def _frames(wal: bytes, size: int) -> dict[int, bytes]:
    """The newest copy of each page in a write-ahead log, by page (from 0).

    Frames of the log's current generation count, also after a damaged one, where SQLite stops reading.
    """
    found: dict[int, bytes] = {}
    salt = wal[_WAL_HEADER + 8 : _WAL_HEADER + 16]
    step = _FRAME_HEADER + size
    for start in range(_WAL_HEADER, len(wal) - step + 1, step):
        head = wal[start : start + _FRAME_HEADER]
        number = int.from_bytes(head[:4], "big")
        if head[8:16] == salt and 0 < number < 1 << 31:
            found[number - 1] = wal[start + _FRAME_HEADER : start + step]
    return found


def _rows_of(pages: dict[int, bytes], number: int, size: int) -> Iterator[Row]:
    page = pages[number]
    start = _HEADER if number == 0 else 0
    if len(page) < start + 8 or page[start] not in (_TABLE_LEAF, _INDEX_LEAF):
        return
    of_table = page[start] == _TABLE_LEAF
    count = int.from_bytes(page[start + 3 : start + 5], "big")
    for index in range(min(count, (size - start - 8) // 2)):
        at = int.from_bytes(page[start + 8 + 2 * index : start + 10 + 2 * index], "big")
        try:
            yield _row_at(pages, page, at, size, of_table=of_table)
        except (_Unreadable, struct.error, IndexError, UnicodeDecodeError):
            continue


def _row_at(pages: dict[int, bytes], page: bytes, at: int, size: int, *, of_table: bool) -> Row:
    length, at = _varint(page, at)
    rowid: int | None = None
    if of_table:
        rowid, at = _varint(page, at)
        rowid -= (1 << 64) if rowid >= 1 << 63 else 0
    if not 0 < length <= 1 << 28:
        raise _Unreadable
    local = _local(length, size, most=size - 35 if of_table else (size - 12) * 64 // 255 - 23)
    record = page[at : at + local]
    if local < length:
        first = int.from_bytes(page[at + local : at + local + 4], "big")
        record += _overflow(pages, first, length - local, size)
    if len(record) != length:
        raise _Unreadable
    return Row(rowid, _values(record))


def _local(length: int, size: int, *, most: int) -> int:
    """How much of a record is on its own page (section 1.6)."""
    if length <= most:
        return length
    least = (size - 12) * 32 // 255 - 23
    found = least + (length - least) % (size - 4)
    return found if found <= most else least


def _overflow(pages: dict[int, bytes], number: int, left: int, size: int) -> bytes:
    found, seen = b"", set()
    while left > 0:
        page = pages.get(number - 1)
        if page is None or number in seen or len(page) < size:
            raise _Unreadable
        seen.add(number)
        found += page[4 : 4 + min(left, size - 4)]
        left -= size - 4
        number = int.from_bytes(page[:4], "big")
    return found


def _values(record: bytes) -> tuple[Value, ...]:
    end, at = _varint(record, 0)
    kinds: list[int] = []
    while at < end:
        kind, at = _varint(record, at)
        kinds.append(kind)
    if at != end or len(kinds) > _MOST_COLUMNS:
        raise _Unreadable
    found: list[Value] = []
    for kind in kinds:
        width = _FIXED[kind] if kind <= 6 else 8 if kind == 7 else 0 if kind in (8, 9) else (kind - 12) // 2
        content = record[at : at + width]
        if len(content) != width or kind in (10, 11):
            raise _Unreadable
        found.append(_value(kind, content))
        at += width
    if at != len(record):
        raise _Unreadable  # a kind in the header is damaged: the checksum may be missing, so the values are unproven
    return tuple(found)


def _value(kind: int, content: bytes) -> Value:
    match kind:
        case 0:
            return None
        case 7:
            return float(struct.unpack(">d", content)[0])
        case 8 | 9:
            return kind - 8
        case _ if kind <= 6:
            return int.from_bytes(content, "big", signed=True)
        case _:
            return content.decode("utf-8") if kind % 2 else content


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count in range(9):
        byte = data[at + count]
        if count == 8:
            return (value << 8) | byte, at + 9
        value = (value << 7) | (byte & 0x7F)
        if byte < 0x80:
            return value, at + count + 1
    raise _Unreadable
