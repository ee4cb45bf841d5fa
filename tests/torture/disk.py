"""The disk of `disk.c`: build it, load it into a process, read its record, and make what a power cut leaves.

The model is as strict as POSIX: only synced data is certain. A write that was not synced may be there whole, in part (by
sectors of 512 bytes) or not at all, independent of earlier writes. A created, changed or removed name is uncertain
until its folder is synced.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
_HEADER = struct.Struct("=cIQQ")
_FOLDER = -1


def can_build() -> bool:
    """Whether this machine has what the disk needs (Linux and a C compiler)."""
    return os.uname().sysname == "Linux" and shutil.which("cc") is not None


def build(folder: Path) -> dict[str, str]:
    """Compile the disk. Returns the environment that loads it into a process."""
    library = folder / "disk.so"
    source = Path(__file__).with_name("disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


class Shim:
    """The disk that is loaded into this process."""

    def __init__(self, root: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._library.disk_calls.restype = ctypes.c_long
        self._library.disk_fail.argtypes = [ctypes.c_long] * 3
        self._library.disk_watch(os.fsencode(root))

    def record(self, path: Path) -> None:
        """Start recording every change of the disk."""
        self._library.disk_record(os.fsencode(path))

    def fail(self, at: int, error: int, *, for_good: bool = False) -> None:
        """Make the `at`-th call from now on fail with an errno; with 0 it writes only half of its data."""
        self._library.disk_fail(at, error, int(for_good))

    def calls(self) -> int:
        """The number of calls since `fail`."""
        return int(self._library.disk_calls())


@dataclass(frozen=True, slots=True)
class Change:
    """One call: (c)reate, (m)kdir, (w)rite, (t)runcate, (s)ync, (u)nlink, (r)ename."""

    what: str
    path: str
    offset: int
    data: bytes


def changes(record: Path) -> list[Change]:
    """The recorded changes, in order."""
    content, found, at = record.read_bytes(), [], 0
    while at < len(content):
        what, path_length, offset, length = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        path = os.fsdecode(content[at : at + path_length])
        at += path_length
        found.append(Change(what.decode(), path, offset, content[at : at + length]))
        at += length
    return found


@dataclass(slots=True)
class _File:
    synced: bytearray = field(default_factory=bytearray)
    waiting: list[Change] = field(default_factory=list)


class Disk:
    """The synced state of the disk, and the changes that wait for a sync."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._files: list[_File] = []
        self._now: dict[str, int] = {self._root: _FOLDER}
        self._synced = dict(self._now)
        # For each change of names: its folder, and the file of each name after it (None: no file).
        self._waiting: list[tuple[str, dict[str, int | None]]] = []

    def apply(self, change: Change) -> None:
        """Apply one call."""
        number = self._now.get(change.path)
        match change.what:
            case "c":
                self._files.append(_File())
                self._name({change.path: len(self._files) - 1})
            case "m":
                self._name({change.path: _FOLDER})
            case "u":
                self._name({change.path: None})
            case "r" if number == _FOLDER:
                # Of what is in it, the names that are synced move with it.
                old, new = change.path, os.fsdecode(change.data)
                inner = [path for path in self._synced if path.startswith(f"{old}/")]
                moved = {new + path.removeprefix(old): self._now.get(path) for path in inner}
                self._name({new: _FOLDER, old: None, **moved, **dict.fromkeys(inner)})
            case "r":
                self._name({os.fsdecode(change.data): number, change.path: None})
            case "s" if number == _FOLDER:
                for _, names in (each for each in self._waiting if each[0] == change.path):
                    _rename(self._synced, names)
                self._waiting = [each for each in self._waiting if each[0] != change.path]
            case "s" if number is not None:
                file = self._files[number]
                for each in file.waiting:
                    _write(file.synced, each)
                file.waiting.clear()
            case "w" | "t" if number is not None:
                self._files[number].waiting.append(change)

    def image(
        self, dice: random.Random, *, survives: float, torn: bool
    ) -> Iterator[tuple[str, bytes | None]]:
        """What a power cut at this moment leaves: paths with contents, folders (None) before their contents.

        `survives` is the probability of each change that was not synced; `torn` breaks surviving writes at sectors.
        """
        names = dict(self._synced)
        for _, changed in self._waiting:
            if dice.random() < survives:
                _rename(names, changed)
        there = {self._root}
        for path in sorted(names, key=lambda each: each.count("/")):
            if path != self._root and os.path.dirname(path) not in there:
                continue  # its folder did not survive
            number = names[path]
            if number == _FOLDER:
                there.add(path)
                yield path, None
            else:
                yield path, self._content(self._files[number], dice, survives, torn)

    def _content(self, file: _File, dice: random.Random, survives: float, torn: bool) -> bytes:
        content = bytearray(file.synced)
        for each in file.waiting:
            if dice.random() >= survives:
                continue
            if torn and each.what == "w" and dice.random() < 0.5:
                for start in range(0, len(each.data), SECTOR):
                    if dice.random() < 0.5:
                        part = each.data[start : start + SECTOR]
                        _write(content, Change("w", each.path, each.offset + start, part))
            else:
                _write(content, each)
        return bytes(content)

    def _name(self, names: dict[str, int | None]) -> None:
        _rename(self._now, names)
        self._waiting.append((os.path.dirname(next(iter(names))), names))


def _rename(table: dict[str, int], names: dict[str, int | None]) -> None:
    for path, number in names.items():
        if number is None:
            table.pop(path, None)
        else:
            table[path] = number


def _write(content: bytearray, change: Change) -> None:
    end = change.offset + len(change.data)
    if change.what == "t":
        del content[change.offset :]
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[change.offset : end] = change.data
