"""The git repository of a training: its branch, commit and address, read from git's own files.

Promises: starts no program and runs nothing that a repository configures (no hook, no filter). Every read is bounded, and
opening never blocks. What cannot be read is left out. The formats are those of git's documentation: gitrepository-layout,
gitformat-pack (index version 2), git-config.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from hubqueue.config.filesystem.ownership import open_plain
from hubqueue.destinations.platform.machine.masking import shown_address, shown_text

# Bytes that are read at most. The branches are the first part of `packed-refs`, which is sorted by name.
_REF, _CONFIG, _PACKED_REFS, _OBJECT = 4096, 1 << 20, 8 << 20, 64 * 1024
_MOST_FOLDERS, _MOST_PACKS, _MOST_LINKS = 64, 64, 5
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SECTION = re.compile(r'\[\s*remote\s+"origin"\s*\]', re.IGNORECASE)
_SHOWN_HASH = 12
_FANOUT, _COMMIT = 8, 1
_TROUBLE = (OSError, ValueError, IndexError, struct.error, zlib.error, RuntimeError)


def repository(folder: Path | None = None) -> dict[str, str]:
    """`gitRepository`, `gitBranch`, `gitCommit` (12 characters) and `gitCommitMessage` (its first line), as far as known.

    Without `folder`: of the script that runs, if it is in a repository, else of the current folder.
    """
    for each in [folder] if folder is not None else _folders():
        with contextlib.suppress(*_TROUBLE):
            found = _find(each)
            if found is not None:
                return _facts(*found)
    return {}


def _folders() -> Iterator[Path]:
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if isinstance(script, str):
        path = Path(os.path.abspath(script))
        installed = {Path(sys.prefix), Path(sys.base_prefix), Path(os.path.expanduser("~/.local"))}
        # An installed command (`yolo`, `torchrun`) is not the training's own code.
        is_installed = path.parent.name in {"bin", "Scripts"} and path.parent.parent in installed
        if not is_installed and not {"site-packages", "dist-packages"} & set(path.parts):
            yield path.parent
    with contextlib.suppress(OSError):
        yield Path.cwd()


def _find(folder: Path) -> tuple[Path, Path] | None:
    """The folder of git for `folder`, and the one that its worktrees share; None outside a repository."""
    device = os.stat(folder).st_dev
    for each in [folder, *folder.parents][:_MOST_FOLDERS]:
        # As git does, stop at the border of a file system: above it an automounter may wait for the network.
        if os.stat(each).st_dev != device:
            return None
        own = each / ".git"
        with contextlib.suppress(*_TROUBLE):
            if not own.is_dir():
                words = _read(own, _REF)
                own = each / words.removeprefix("gitdir:").strip() if words.startswith("gitdir:") else own
            if (own / "HEAD").is_file():
                shared = own
                with contextlib.suppress(OSError):
                    shared = own / _read(own / "commondir", _REF)
                return own, shared
    return None


def _facts(own: Path, shared: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    with contextlib.suppress(*_TROUBLE):
        address = _origin(_read(shared / "config", _CONFIG))
        if address:
            found["gitRepository"] = shown_address(address)
    head = _read(own / "HEAD", _REF)
    if head.startswith("ref:"):
        branch = head.removeprefix("ref:").strip().removeprefix("refs/heads/")
        # The name of a repository that keeps its references in another format (reftable).
        if branch != ".invalid":
            found["gitBranch"] = shown_text(branch)
    with contextlib.suppress(*_TROUBLE):
        commit = _commit(own, shared, head)
        if commit is not None:
            found["gitCommit"] = commit[:_SHOWN_HASH]
            subject = _subject(shared / "objects", commit)
            if subject:
                found["gitCommitMessage"] = shown_text(subject)
    return found


def _commit(own: Path, shared: Path, head: str) -> str | None:
    """The commit of a HEAD, through symbolic references."""
    for _ in range(_MOST_LINKS):
        if not head.startswith("ref:"):
            return head if _HASH.fullmatch(head) else None
        name = head.removeprefix("ref:").strip()
        if not name.startswith("refs/") or ".." in name:
            return None  # it would name a file outside of the repository
        head = _reference(own, shared, name)
    return None


def _reference(own: Path, shared: Path, name: str) -> str:
    for folder in (own, shared):
        with contextlib.suppress(OSError):
            return _read(folder / name, _REF)
    content = b"\n" + _bytes(shared / "packed-refs", _PACKED_REFS)
    start, found, _ = content.partition(b" " + os.fsencode(name) + b"\n")
    return start[start.rindex(b"\n") + 1 :].decode("ascii") if found else ""


def _origin(config: str) -> str | None:
    """The first `url` of the remote `origin`."""
    is_origin = False
    for line in config.splitlines():
        text = line.strip()
        if text.startswith("["):
            section = _SECTION.match(text)
            is_origin = section is not None
            text = text[section.end() :].strip() if section else ""
        name, equals, value = text.partition("=")
        if is_origin and equals and name.strip().lower() == "url":
            return _value(value.strip())
    return None


def _value(text: str) -> str:
    """A value of git's configuration: without quotes, escapes and a comment after it."""
    kept, is_quoted, signs = "", False, iter(text)
    for sign in signs:
        if sign == "\\":
            kept += next(signs, "")
        elif sign == '"':
            is_quoted = not is_quoted
        elif sign in "#;" and not is_quoted:
            break
        else:
            kept += sign
    return kept.strip()


# The commit's message.


def _subject(objects: Path, commit: str) -> str | None:
    """The first line of a commit's message; None if the commit is stored in another form."""
    stores = [objects]
    with contextlib.suppress(OSError):
        stores += [objects / line for line in _read(objects / "info" / "alternates", _REF).splitlines()]
    for store in stores:
        with contextlib.suppress(*_TROUBLE):
            content = _loose(store, commit) or _packed(store, commit)
            if content is not None:
                message = content.partition(b"\n\n")[2].lstrip(b"\n")
                return message.partition(b"\n")[0].decode("utf-8", "replace").strip()
    return None


def _loose(store: Path, commit: str) -> bytes | None:
    try:
        stored = _bytes(store / commit[:2] / commit[2:], _OBJECT)
    except FileNotFoundError:
        return None
    kind, _, content = zlib.decompressobj().decompress(stored, _OBJECT).partition(b"\0")
    return content if kind.startswith(b"commit ") else None


def _packed(store: Path, commit: str) -> bytes | None:
    name = bytes.fromhex(commit)
    with os.scandir(store / "pack") as entries:
        packs = [each for each in entries if each.name.endswith(".idx")]
    packs.sort(key=lambda each: each.stat().st_mtime, reverse=True)
    for each in packs[:_MOST_PACKS]:
        with contextlib.suppress(*_TROUBLE), _opened(Path(each.path)) as index:
            place = _place(index, name)
            if place is not None:
                with _opened(Path(each.path).with_suffix(".pack")) as pack:
                    return _unpacked(_at(pack, place, _OBJECT))
    return None


def _place(index: int, name: bytes) -> int | None:
    """Where a pack has an object, in bytes; None if it has not."""
    size = len(name)
    if _at(index, 0, _FANOUT) != b"\xfftOc\0\0\0\x02":
        return None
    fanout = struct.unpack(">256I", _at(index, _FANOUT, 1024))
    low, high, total = fanout[name[0] - 1] if name[0] else 0, fanout[name[0]], fanout[255]
    names = _FANOUT + 1024
    while low < high:
        middle = (low + high) // 2
        found = _at(index, names + middle * size, size)
        if found == name:
            places = names + total * (size + 4)
            (place,) = struct.unpack(">I", _at(index, places + middle * 4, 4))
            if place >> 31:
                (place,) = struct.unpack(">Q", _at(index, places + total * 4 + (place & 0x7FFFFFFF) * 8, 8))
            return int(place)
        low, high = (middle + 1, high) if found < name else (low, middle)
    return None


def _unpacked(stored: bytes) -> bytes | None:
    """The content of a commit in a pack; None if it is stored as the difference to another one."""
    if stored[0] >> 4 & 7 != _COMMIT:
        return None
    start = next((at for at, octet in enumerate(stored) if not octet & 0x80), 0) + 1
    return zlib.decompressobj().decompress(stored[start:], _OBJECT)


def _read(path: Path, most: int) -> str:
    return _bytes(path, most).decode("utf-8", "replace").strip()


def _bytes(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file. Raises OSError for anything but a plain file."""
    with _opened(path) as descriptor:
        parts, left = [], most
        while left and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def _at(descriptor: int, offset: int, size: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = open_plain(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
