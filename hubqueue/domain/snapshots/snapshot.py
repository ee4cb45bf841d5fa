"""The snapshot of a checkpoint: what it is, and what its name says of it."""

from __future__ import annotations

from dataclasses import dataclass

FOLDER = ".folder"
"""How the name of a snapshot ends that is a folder."""

FILE = ".ckpt"
"""How the name of a snapshot ends that is a copy of a file."""

ARCHIVE = ".tar.ckpt"
"""How the name of a snapshot ends that is one file, made of a folder."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The private copy of a checkpoint, taken at enqueue.

    `name` is a file of the spool, `size` is in bytes, `mtime_ns` is the copy's own. `sha256` is hex, or None
    where the copy is a reflink (made without reading the bytes). The snapshot of a folder is a folder: then `size` is that
    of all its files, and `mtime_ns` and `sha256` are those of its manifest (see manifest.py).
    """

    name: str
    size: int
    mtime_ns: int
    sha256: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder with a manifest."""
        return self.name.endswith(FOLDER)

    @property
    def suffix(self) -> str:
        """How its name ends, which says what it is."""
        return next(each for each in (FOLDER, ARCHIVE, FILE) if self.name.endswith(each))

    @property
    def extension(self) -> str:
        """The extension of a file with its content: `.tar` for one made of a folder, else `.pt`."""
        return ".tar" if self.name.endswith(ARCHIVE) else ".pt"
