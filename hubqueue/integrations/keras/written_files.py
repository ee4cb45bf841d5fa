"""The checkpoints that callbacks of Keras write: found by their names and their times, since Keras has no hook after a save."""

from __future__ import annotations

import glob
import os
import string
from contextlib import suppress
from pathlib import Path
from typing import Any

from hubqueue.domain.errors import InvalidArgument
from hubqueue.integrations.cadence import Cadence


class WrittenFiles:
    """The checkpoints of one callback of Keras, or of one path.

    `record` is the name of the file in `folder` that names their run. `epoch` is the one in which the newest of them was written: None before the first. `is_saved`: that one was saved.
    """

    def __init__(self, given: Any) -> None:
        """Raises `InvalidArgument` for anything but a `ModelCheckpoint`, a `BackupAndRestore` and a path on this machine."""
        written = getattr(given, "backup_dir", None) or getattr(given, "filepath", given)
        if not isinstance(written, str | os.PathLike) or "://" in os.fspath(written):
            hint = "give a ModelCheckpoint, a BackupAndRestore, a path on this machine, or a list of these"
            raise InvalidArgument(
                f"HubqueueCallback cannot find the checkpoints of {type(given).__name__}", hint=hint
            )
        try:
            fields = list(string.Formatter().parse(os.fspath(written)))
        except ValueError as error:
            hint = "a brace that is no placeholder is written twice"
            raise InvalidArgument(
                f"invalid path of checkpoints {os.fspath(written)!r}: {error}", hint=hint
            ) from error
        self._pattern = "".join(
            glob.escape(text) + ("" if field is None else "*") for text, field, _, _ in fields
        )
        # Not in the folder of a backup: that one is a checkpoint, and Keras deletes it.
        path = Path("".join(text for text, _, _, _ in fields))
        self.folder, self.record = path.parent, f"{path.name}.hubqueue.json"
        self.is_best = bool(getattr(given, "save_best_only", False))
        self.begin()

    def begin(self) -> None:
        """A training begins: what an earlier one has written is not its checkpoint."""
        self.cadence, self.is_saved = Cadence(), True
        self.epoch: int | None = None
        self._seen = {each: _state(each) for each in self._found()}

    def unsaved(self, epoch: int) -> Path | None:
        """The newest checkpoint that is not saved yet. What has changed since the last call was written in this epoch."""
        before, self._seen = self._seen, {each: _state(each) for each in self._found()}
        newest = self.newest()
        if newest is not None and before.get(newest) != self._seen.get(newest):
            self.epoch, self.is_saved = epoch, False
        return None if self.is_saved else newest

    def newest(self) -> Path | None:
        """The checkpoint that was written last; None if there is none."""
        return max(self._found(), key=_state, default=None)

    def _found(self) -> list[Path]:
        return [each for each in map(Path, glob.glob(self._pattern)) if _state(each)]


def _state(path: Path) -> list[tuple[int, int, str]]:
    """What changes when a file, or a folder's file, is written: newest first. Empty for an empty folder."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    found = []
    for each in files:
        with suppress(OSError):  # deleted meanwhile
            state = each.stat()
            found.append((state.st_mtime_ns, state.st_size, str(each)))
    return sorted(found, reverse=True)
