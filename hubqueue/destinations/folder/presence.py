"""Whether the folder at a path is the one that was used before: a marker in it, and notes in the home.

Promises that nothing is written to the mount point of a disk that is away, or to another disk at the same path. A run
continues only in the folder with the marker that it began with. A new run begins in a folder that this home has used
before; where it has used none at this path, in any folder, which is then marked. A person who wants another folder at the path
makes an empty marker in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from hubqueue.config.home import open_private, sync_folder
from hubqueue.destinations.folder.objects import FolderObjects
from hubqueue.destinations.folder.root import Root
from hubqueue.destinations.folder.trouble import explained, failed
from hubqueue.destinations.layout.records import written
from hubqueue.destinations.layout.store import StoreFailed
from hubqueue.domain.plain import json_object

MARKER = ".hubqueue"
_ABOUT = "hubqueue recognizes this folder by this file. Do not delete it."
_NOTES = "folders"
_LARGEST = 1 << 16
_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


class Presence:
    """The markers that were used at one path. `home` keeps the notes (None: there are none)."""

    def __init__(self, path: Path, home: Path | None) -> None:
        self._path = path
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        self._note = None if home is None else home / _NOTES / f"{name}.json"

    def is_known(self, remembered: object) -> bool:
        """Whether the path was used before: then its folder is never made."""
        return remembered is not None or bool(self._noted())

    def prove(self, root: Root, remembered: object) -> str:
        """The id of the opened folder, which is marked at its first use. Raises `StoreFailed` if it is another one."""
        known = [str(remembered)] if remembered is not None else self._noted()
        found = self._marked(root)
        if found is None:
            if known:
                raise self._unmarked()
            found = self._mark(root)
        if not found:
            found = known[-1] if known else str(uuid.uuid4())
            FolderObjects(root, {}).replace(MARKER, _marker(found))
        if known and found not in known:
            hint = f"mount the right disk; to continue in this folder, empty its file {MARKER}"
            raise failed(self._path, "another folder is there", hint)
        if found not in self._noted():
            FolderObjects(root, {}).create(MARKER, _marker(found))  # a kill may have left traces of it
            self._keep(found)
        return found

    def check(self, root: Root) -> None:
        """Raise `StoreFailed` if the opened folder is not one that was used before. Changes nothing."""
        known, found = self._noted(), self._marked(root)
        if known and found is None:
            raise self._unmarked()

    def _unmarked(self) -> StoreFailed:
        hint = f"mount its disk; to continue in this folder, make an empty file {MARKER} in it"
        return failed(self._path, f"it is another folder, without the file {MARKER}", hint)

    def _marked(self, root: Root) -> str | None:
        """The id in the marker; empty for a marker without one, None if there is no marker."""
        content = FolderObjects(root, {}).read(MARKER)
        if content is None:
            return None
        found = (json_object(content) or {}).get("id")
        return found if isinstance(found, str) and _ID.fullmatch(found) else ""

    def _mark(self, root: Root) -> str:
        made = str(uuid.uuid4())
        if FolderObjects(root, {}).create(MARKER, _marker(made)):
            return made
        return self._marked(root) or ""  # another process was first

    def _noted(self) -> list[str]:
        if self._note is None:
            return []
        try:
            with os.fdopen(open_private(self._note, os.O_RDONLY), "rb") as file:
                found = (json_object(file.read(_LARGEST)) or {}).get("ids")
        except OSError:
            return []
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []

    def _keep(self, id: str) -> None:
        """Note an id; without a note the marker in the folder is there all the same."""
        if self._note is None:
            return
        ids = self._noted()
        part = self._note.with_name(f"{self._note.name}.{uuid.uuid4().hex[:8]}.part")
        with suppress(OSError):
            self._note.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = open_private(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps({"path": str(self._path), "ids": [*ids, id]}).encode())
                file.flush()
                os.fsync(descriptor)
            part.replace(self._note)


def make(path: Path) -> None:
    """Make the folder at its first use. Raises `StoreFailed` if the folder above it does not exist."""
    with explained(path):
        try:
            path.mkdir()
            sync_folder(path.parent)
        except FileExistsError:
            return
        except FileNotFoundError:
            raise failed(
                path, f"{path.parent} does not exist", "mount its disk, or make that folder"
            ) from None


def _marker(id: str) -> bytes:
    return written({"about": _ABOUT, "id": id})
