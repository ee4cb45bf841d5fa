"""The manifest of a checkpoint that is a folder: every file with its path, size and hash, as JSON.

    {"version": 1, "files": [{"path": "optimizer/rank-0.bin", "size": 1048576, "sha256": "9f86…"}]}

A path is relative to the folder, with `/` on every system. The files are in the order of their paths, and that order
numbers them in the spool, so that no path of a checkpoint ever becomes a path of this machine. Folders without files are
not kept. The SHA-256 of the manifest is that of its snapshot: it proves every file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from hubqueue.domain.snapshots.snapshot import Snapshot

MANIFEST = "manifest.json"
"""The name of the manifest in the snapshot of a folder."""
MOST_FILES = 100_000
"""The most files of a folder: its manifest must fit into memory."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """One file of a checkpoint: its path in the folder, and the `snapshot` that opens it, with its hash."""

    path: str
    snapshot: Snapshot

    @property
    def size(self) -> int:
        """In bytes; may be 0."""
        return self.snapshot.size


class _Blocks(Protocol):
    def __iter__(self) -> Iterator[bytes | memoryview]: ...

    def close(self) -> object: ...


def file_name(number: int) -> str:
    """The name in the snapshot of its file with this number."""
    return f"{number:08d}"


def manifest_text(files: Iterable[tuple[str, int, str]]) -> bytes:
    """The manifest of files in the order of their paths: path, size in bytes, SHA-256 in hex of each."""
    listed = [{"path": path, "size": size, "sha256": sha256} for path, size, sha256 in files]
    return json.dumps({"version": _VERSION, "files": listed}, ensure_ascii=False).encode()


def files_of(snapshot: Snapshot, open_body: Callable[[Snapshot], _Blocks]) -> tuple[SnapshotFile, ...]:
    """The files of a checkpoint, by its manifest; none where it is a file.

    Raises what `open_body` and its blocks raise.
    """
    if not snapshot.is_folder:
        return ()
    return _parsed(snapshot, _read(snapshot, open_body))


def parts_of(snapshot: Snapshot, open_body: Callable[[Snapshot], _Blocks]) -> tuple[SnapshotFile, ...]:
    """What to send of a checkpoint, in this order. The last part has no path: it is the file, or the manifest of a folder.

    A folder counts as delivered when its manifest is. Raises what `open_body` and its blocks raise.
    """
    if not snapshot.is_folder:
        return (SnapshotFile("", snapshot),)
    text = _read(snapshot, open_body)
    manifest = Snapshot(f"{snapshot.name}/{MANIFEST}", len(text), snapshot.mtime_ns, snapshot.sha256)
    return (*_parsed(snapshot, text), SnapshotFile("", manifest))


def _read(snapshot: Snapshot, open_body: Callable[[Snapshot], _Blocks]) -> bytes:
    with closing(open_body(snapshot)) as body:
        return b"".join(bytes(block) for block in body)


def _parsed(snapshot: Snapshot, text: bytes) -> tuple[SnapshotFile, ...]:
    return tuple(
        SnapshotFile(
            each["path"], Snapshot(f"{snapshot.name}/{file_name(number)}", each["size"], 0, each["sha256"])
        )
        for number, each in enumerate(json.loads(text)["files"])
    )
