"""A folder as a store of objects."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Attempt
from hubqueue.destinations.folder.objects import FolderObjects
from hubqueue.destinations.folder.presence import Presence, make
from hubqueue.destinations.folder.root import Root
from hubqueue.destinations.folder.settings import FolderSettings
from hubqueue.destinations.folder.trouble import away, explained, failed
from hubqueue.destinations.layout.store import Objects

_REMEMBERED = "folder"
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


class Folder:
    """One folder. Safe to use from several threads: each attempt opens it anew."""

    def __init__(self, settings: DestinationSettings) -> None:
        assert isinstance(settings, FolderSettings) and settings.path is not None
        self._path, self._syncs = settings.path, settings.fsync
        self._presence = Presence(settings.path, settings.home)

    @contextmanager
    def sending(self, remembered: Mapping[str, str | int], _attempt: Attempt) -> Iterator[Objects]:
        known = remembered.get(_REMEMBERED)
        if not self._presence.is_known(known):
            make(self._path)
        with self._opened() as root:
            yield FolderObjects(root, {_REMEMBERED: self._presence.prove(root, known)})

    @contextmanager
    def reading(self) -> Iterator[Objects]:
        with self._opened(follows=True) as root:
            self._presence.check(root)
            yield FolderObjects(root, {})

    def check(self) -> None:
        if not self._presence.is_known(None) and not os.path.lexists(self._path):
            self._check_parent(self._path.parent)
            return
        with self._opened() as root:
            self._presence.check(root)
            objects, name = FolderObjects(root, {}), f".hubqueue-check-{os.getpid()}"
            try:
                objects.replace(name, b"hubqueue check\n")
            finally:
                objects.delete(name)

    def close(self) -> None:
        """Nothing is kept open between attempts: the disk can be unmounted."""

    @contextmanager
    def _opened(self, *, follows: bool = False) -> Iterator[Root]:
        with explained(self._path):
            try:
                root = Root(self._path, syncs=self._syncs, follows=follows)
            except OSError as error:
                if error.errno in _ABSENT:
                    raise away(self._path) from error
                raise
        with root:
            yield root

    def _check_parent(self, parent: Path) -> None:
        """The folder is made at its first use: find out whether it can be."""
        if not parent.is_dir():
            raise failed(self._path, f"{parent} does not exist", "mount its disk, or make that folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise failed(self._path, f"it cannot be made in {parent}", "let this user write to that folder")
