"""Whether the spool is at its path: a marker in its folder, named after the outbox.

Promises: while the spool is away as a whole (its disk is not mounted, its folder was moved or deleted), nothing is
written to its path, nothing is swept, and no snapshot counts as missing. A folder that this outbox has not marked yet
counts as its spool if it has a snapshot that the outbox owes, or if the outbox owes none and has marked no other folder
at this path. A note in the home keeps which folders were marked. Several outboxes may share one folder, and one outbox may
have several: after another `spool.path`, or where two processes have different ones.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from hubqueue.config.home import open_private, sync_folder
from hubqueue.domain.errors import SpoolAway

_PREFIX = ".hubqueue-"
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_HINT = "mount its disk, or put the folder back; if it is gone for good, start a new one: hubqueue check --new-spool"


class Presence:
    """Finds out whether a spool is at its path.

    `outbox_id` returns the id of the outbox, `owed` the names of the snapshots that it owes. `note` is a file in the home.
    `inside`: the folder is the one in the home, which is on the same disk: a new one may replace it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        outbox_id: Callable[[], str],
        owed: Callable[[], Collection[str]],
        note: Path,
        inside: bool,
    ) -> None:
        self._folder, self._outbox_id, self._owed = folder, outbox_id, owed
        self._note, self.inside = note, inside
        self._noted = False  # whether this process has seen its note

    def trouble(self) -> SpoolAway | None:
        """Why the spool is not at its path; None where it is, or where nothing depends on it. Changes nothing."""
        try:
            if self._has(self._marker):
                return None
            noted = _noted(self._note).get(os.path.realpath(self._folder))
            if noted is not None and self._has(noted):
                return None  # of the outbox that this one has replaced
            owed = self._owed()
            if any(self._has(name) for name in owed):
                return None
        except OSError as error:
            return SpoolAway(f"the spool {self._folder} cannot be read: {error.strerror}", hint=_HINT)
        if not owed and (noted is None or self.inside):
            return None
        return _away(self._folder)

    def elsewhere(self, name: str) -> SpoolAway | None:
        """Why a snapshot that is not in this spool may be in another one of this outbox; None where it is in none."""
        for path, marker in _noted(self._note).items():
            if path == os.path.realpath(self._folder):
                continue
            if os.path.lexists(os.path.join(path, name)):
                hint = f"set spool.path to that folder, or move the file to {self._folder}"
                return SpoolAway(f"{name} is in another spool: {path}", hint=hint)
            if not os.path.lexists(os.path.join(path, marker)):
                return _away(path)
        return None

    def claim(self) -> bool:
        """Check before a snapshot is written. Returns whether the folder must be marked. Raises `SpoolAway`."""
        try:
            if self._has(self._marker):
                return not self._noted
        except OSError:
            pass  # `trouble` reports it
        trouble = self.trouble()
        if trouble is not None and not (self._is_replaceable() and self._is_gone()):
            raise trouble
        return True

    def mark(self, *, alone: bool = False) -> None:
        """Mark the folder as a spool of this outbox, durably; as the only one if `alone`. Raises `OSError`."""
        path = self._folder / self._marker
        if not self._has(self._marker):
            with suppress(FileExistsError):
                descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                try:
                    os.write(descriptor, b"hubqueue recognizes its spool by this file. Do not delete it.\n")
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            sync_folder(self._folder)
        with suppress(OSError):  # without a note, the marker is still there
            before = _noted(self._note)
            noted = ({} if alone else before) | {os.path.realpath(self._folder): self._marker}
            if noted != before:
                _write(self._note, noted)
            self._noted = True

    def is_alone(self) -> bool:
        """Whether all snapshots in the folder are of this outbox: it is in its home, and no other one has marked it."""
        if not self.inside:
            return False
        with suppress(OSError):
            names = [name for name in os.listdir(self._folder) if name.startswith(_PREFIX)]
            return names in ([], [self._marker])
        return False

    @property
    def _marker(self) -> str:
        return _PREFIX + self._outbox_id()

    def _has(self, name: str) -> bool:
        """Whether the folder has this file. Raises `OSError` when that cannot be known."""
        try:
            os.lstat(self._folder / name)
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            raise
        return True

    def _is_replaceable(self) -> bool:
        """Whether a new spool may be made: in the home, or where the settings name another folder than before."""
        noted = _noted(self._note)
        return self.inside or (bool(noted) and os.path.realpath(self._folder) not in noted)

    def _is_gone(self) -> bool:
        try:
            return not self._has(self._marker)
        except OSError:
            return False


def set_aside(folder: Path, note: Path, target: Path) -> None:
    """Rename the spool of a damaged outbox, for the salvage. One that is away, or that is a mounted disk, stays.

    Then its marker stays, too, and the new outbox does not sweep what it does not know.
    """
    noted = _noted(note)
    marker = noted.pop(os.path.realpath(folder), None)
    if not folder.is_dir() or (marker is not None and not os.path.lexists(folder / marker)):
        return
    if marker is not None:
        _write(note, noted)
    with suppress(OSError):
        folder.rename(target)


def _away(folder: str | Path) -> SpoolAway:
    return SpoolAway(f"the spool is not at {folder}", hint=_HINT)


def _noted(note: Path) -> dict[str, str]:
    """The folders that were marked, each with its marker."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))["spools"]
        return {str(path): str(marker) for path, marker in found.items() if str(marker).startswith(_PREFIX)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(note: Path, noted: dict[str, str]) -> None:
    part = note.with_name(f"{note.name}.{secrets.token_hex(4)}.part")
    descriptor = open_private(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps({"spools": noted}) + "\n")
        file.flush()
        os.fsync(descriptor)
    part.replace(note)
    sync_folder(note.parent)
