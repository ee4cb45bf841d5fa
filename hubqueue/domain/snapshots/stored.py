"""What a destination has of a run, as it reports it: for `pull` and `verify`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint at a destination. `size` is in bytes, `sha256` in hex (None: the destination has none).

    `path` is relative to the folder of the checkpoint, with `/`; a checkpoint of one file has one of them, with the
    file's name. `ref` is how the destination's reader finds it again, in a format of its own.
    """

    path: str
    size: int
    sha256: str | None
    ref: str = ""


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint that is whole at a destination: it has a manifest.

    `name` is unique in its run (`epoch-0012`, `step-00000120`). `epoch` and `step` are those of the training (None: not
    logged with it). `is_latest`, `is_best` and `is_final` say whether it is the newest of its kind. A training resumes from
    the latest one: the last one, or a best one that was saved later and is further; a final one only if there is no other.
    `map` is the mAP50-95, from 0 to 1. `manifest_sha256` is the hash of the manifest as it was enqueued (None for a checkpoint of one file).
    """

    name: str
    files: tuple[StoredFile, ...]
    epoch: int | None = None
    step: int | None = None
    is_folder: bool = False
    is_latest: bool = False
    is_best: bool = False
    is_final: bool = False
    map: float = 0.0
    manifest_sha256: str | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(each.size for each in self.files)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run at a destination. `name` is what `--run` takes; `id` is hubqueue's own id (None: not recorded there)."""

    name: str
    id: str | None = None
    model: str = ""
    state: str = ""
