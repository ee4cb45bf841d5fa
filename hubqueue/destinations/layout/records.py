"""The JSON of the layout: of a run, of a checkpoint (its manifest), of what is newest, of an upload that is not whole yet.

Promises texts that are the same for every attempt, and readers that never raise: what is no valid record is None.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from hubqueue.destinations.base import Position
from hubqueue.domain.plain import json_object

VERSION = 1
"""The version of the layout, in `run.json` and in each manifest."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(microseconds: int) -> str:
    """A stored moment as text: ISO 8601, UTC, always with microseconds, so that texts sort as moments do."""
    found = _EPOCH + timedelta(microseconds=microseconds)
    return found.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def written(record: Mapping[str, Any]) -> bytes:
    """A record as text for people and programs."""
    return (json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()


def line(record: Mapping[str, Any]) -> bytes:
    """A record as one line."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class File:
    """A file of a checkpoint. `path` is its path in the checkpoint, `stored` the one in the checkpoint's folder here."""

    path: str
    stored: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint is. `key` is that of the batch that stored it, `saved_at` when it was saved.

    `kind` is last, best or final. `manifest_sha256` is the hash of a folder's manifest in the spool.
    """

    run: str
    key: str
    kind: str
    position: Position
    map: float
    saved_at: str
    files: tuple[File, ...]
    is_folder: bool = False
    manifest_sha256: str | None = None

    @property
    def text(self) -> bytes:
        """The content of `manifest.json`."""
        files = [
            {"path": each.path, "size": each.size, "sha256": each.sha256}
            | ({} if each.stored == each.path else {"stored": each.stored})
            for each in self.files
        ]
        named = self.position._asdict()
        folder = {"snapshot_sha256": self.manifest_sha256} if self.is_folder else {}
        return written(
            {"version": VERSION, "run": self.run, "kind": self.kind, **named, "map": self.map}
            | {"saved_at": self.saved_at, "key": self.key, "folder": self.is_folder, **folder, "files": files}
        )

    @classmethod
    def of(cls, content: bytes | None) -> Self | None:
        """The manifest in a text; None for anything else."""
        found = json_object(content)
        try:
            if found is None or found["version"] != VERSION:
                return None
            if not all(
                _is_inside(each[name])
                for each in found["files"]
                for name in ("path", "stored")
                if name in each
            ):
                return None
            files = tuple(
                File(
                    str(each["path"]),
                    str(each.get("stored", each["path"])),
                    int(each["size"]),
                    str(each["sha256"]),
                )
                for each in found["files"]
            )
            return cls(
                run=str(found["run"]),
                key=str(found["key"]),
                kind=str(found["kind"]),
                position=_position(found),
                map=float(found["map"]),
                saved_at=str(found["saved_at"]),
                files=files,
                is_folder=bool(found["folder"]),
                manifest_sha256=found.get("snapshot_sha256"),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def pointer(self, checkpoint: str) -> Pointer:
        """What names this manifest as the newest of its kind, in the folder `checkpoint`."""
        return Pointer(checkpoint, self.kind, self.position, self.map, self.saved_at)


@dataclass(frozen=True, slots=True)
class Pointer:
    """The content of `latest.json`, `best.json` and `final.json`: the newest checkpoint of a kind."""

    checkpoint: str
    kind: str
    position: Position
    map: float
    saved_at: str

    @property
    def text(self) -> bytes:
        """Its content."""
        named = {"checkpoint": self.checkpoint, "manifest": f"checkpoints/{self.checkpoint}/manifest.json"}
        facts = {"kind": self.kind, **self.position._asdict(), "map": self.map, "saved_at": self.saved_at}
        return written(named | facts)

    @classmethod
    def of(cls, content: bytes | None) -> Self | None:
        """The pointer in a text; None for anything else."""
        found = json_object(content)
        try:
            if found is None or not _is_inside(found["checkpoint"]):
                return None
            return cls(
                str(found["checkpoint"]),
                str(found["kind"]),
                _position(found),
                float(found["map"]),
                str(found["saved_at"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    def is_newer(self, other: Pointer | None) -> bool:
        """Whether this checkpoint replaces the other one as the newest of its kind.

        Saved later is newer. Between a last and a best one the best is newer only if its epoch or step is higher, too: a
        script may save its best checkpoint after the last one, and a training resumes from the last one.
        """
        if other is None:
            return True
        if self.kind == other.kind:
            return self.saved_at > other.saved_at
        best, last = (self, other) if self.kind == "best" else (other, self)
        best_is_newer = best.saved_at > last.saved_at and best.position.is_beyond(last.position)
        return (self is best) == best_is_newer


def newest(pointers: Iterable[Pointer], kind: str, named: Pointer | None = None) -> str | None:
    """The newest checkpoint of a kind: the one that is `named` as such, or one that is newer; None without one.

    The last one may be a best one (`Pointer.is_newer`).
    """
    kinds = ("last", "best") if kind == "last" else (kind,)
    found = named
    for each in sorted((each for each in pointers if each.kind in kinds), key=lambda each: each.saved_at):
        if each.is_newer(found):
            found = each
    return None if found is None else found.checkpoint


@dataclass(frozen=True, slots=True)
class Uploading:
    """Which checkpoint of a kind is being uploaded, by which batch: an object that exists until the manifest does."""

    checkpoint: str
    key: str

    @property
    def text(self) -> bytes:
        """Its content."""
        return written({"checkpoint": self.checkpoint, "key": self.key})

    @classmethod
    def of(cls, content: bytes | None) -> Self | None:
        """The record in a text; None for anything else."""
        found = json_object(content) or {}
        checkpoint, key = found.get("checkpoint"), found.get("key")
        if not isinstance(checkpoint, str) or not isinstance(key, str) or not _is_inside(checkpoint):
            return None
        return cls(checkpoint, key)


def same_files(manifest: Manifest, files: Sequence[File]) -> bool:
    """Whether a manifest lists exactly these files, with these hashes."""
    return [(each.path, each.size, each.sha256) for each in manifest.files] == [
        (each.path, each.size, each.sha256) for each in files
    ]


def _is_inside(path: str) -> bool:
    """Whether a path leads to a file below its folder: what was written by others may lead out of it."""
    return not any(part in ("", ".", "..") for part in path.split("/"))


def _position(found: Mapping[str, Any]) -> Position:
    epoch, step = found.get("epoch"), found.get("step")
    return Position(epoch if isinstance(epoch, int) else None, step if isinstance(step, int) else None)
