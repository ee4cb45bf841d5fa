"""The spool: private copies of checkpoints, taken at enqueue.

Promises: what is sent is what was enqueued, never the file's later content; a snapshot is on the disk, with its
folder, before `take` returns; a missing one is found before a byte is sent, an altered one before the last block is
sent; a crash at any line leaves at most an orphan, which is swept: a folder is there with all its files or not at all.
Refuses devices, and files that are still being written. Writes and deletes nothing while the spool is away.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

from hubqueue.config.filesystem.ownership import open_plain
from hubqueue.config.home import make_private_folder, sync_folder, sync_names, unsynced
from hubqueue.config.reader import SpoolSettings
from hubqueue.domain.errors import (
    CheckpointUnreadable,
    OutboxUnavailable,
    SnapshotMissing,
    SpoolAway,
    SpoolError,
    SpoolFull,
)
from hubqueue.domain.snapshots.manifest import MANIFEST, SnapshotFile, files_of
from hubqueue.domain.snapshots.snapshot import Snapshot
from hubqueue.outbox.spool.body import SnapshotBody, altered
from hubqueue.outbox.spool.folder import FolderSource
from hubqueue.outbox.spool.hashing import BLOCK as _BLOCK
from hubqueue.outbox.spool.links import link_or_copy, link_snapshot
from hubqueue.outbox.spool.presence import Presence
from hubqueue.outbox.spool.room import Room
from hubqueue.outbox.spool.source import FileSource, Path_, Source, is_folder
from hubqueue.outbox.spool.stored import NAME, PART, delete, stored_in

_TRIES = 5
# EISDIR, EINVAL: the path is a folder or a pipe now. ENXIO: a socket.
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EINVAL}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
# A file, or the manifest, in the snapshot of a folder.
_INNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.folder/([0-9]{8,}|manifest\.json)")


class Spool:
    """The snapshots of one home. Without `presence`, the folder counts as the spool always."""

    def __init__(self, path: Path, settings: SpoolSettings, presence: Presence | None = None) -> None:
        self.path = path
        self._room = Room(path, settings)
        self._presence = presence
        self._named = False  # whether the folder's own name is synced

    def take(self, source: Path_, *, label: str, folders: bool = False, archive: bool = False) -> Snapshot:
        """Copy a checkpoint, durably. `label` starts the copy's name. Symbolic links are followed.

        A folder is copied as it is if `folders`, and as one tar if `archive`. Raises `CheckpointUnreadable` for a problem
        of the source, `SpoolAway`, `SpoolFull` and `SpoolError` for one of the spool.
        """
        pause = threading.Event()
        with closing(self._source(source, folders=folders, archive=archive)) as found:
            for attempt in range(_TRIES):
                snapshot = self._copy(found, source, label)
                if snapshot is not None:
                    return snapshot
                pause.wait(0.05 * 2**attempt)
        hint = "save it under another name first, and pass that one when it is complete"
        raise CheckpointUnreadable(f"{source} is still being written", hint=hint)

    def share(self, snapshot: Snapshot, *, label: str) -> Snapshot:
        """Give a snapshot a further name, durably: a hard link, which occupies no room; a copy where there are none.

        Both are independent: the bytes stay until the last name is removed. Raises `SnapshotMissing`, `SnapshotAltered`,
        `SpoolAway`, and `SpoolFull` and `SpoolError` as `take` does.
        """
        source, name = self._path_of(snapshot.name), _new_name(label, snapshot.suffix)
        with self._writing(name, snapshot.name) as part:
            try:
                written = link_snapshot(
                    snapshot, source, part, before_copy=lambda: self._room.check(snapshot.size)
                )
            except (FileNotFoundError, CheckpointUnreadable) as error:
                cause = error if isinstance(error, FileNotFoundError) else error.__cause__
                raise self._failed(snapshot, cause) from error  # type: ignore[arg-type]
            self._keep(part, name)
        return Snapshot(name, *written)

    def away(self) -> SpoolAway | None:
        """Why the spool is not at its path now; None where it is."""
        return self._presence.trouble() if self._presence else None

    def is_alone(self) -> bool:
        """Whether no other outbox has snapshots in the folder."""
        return self._presence is None or self._presence.is_alone()

    def make(self) -> None:
        """Make the folder, and mark it as the only spool of this outbox, whatever is in it.

        Raises `OSError` and `OutboxUnavailable`.
        """
        self._make_folder()
        if self._presence:
            self._presence.mark(alone=True)

    def make_again(self) -> None:
        """Make a spool that is in the home, if it is away: it was deleted with the home, and nobody will put it back.

        Raises `OSError` and `OutboxUnavailable`.
        """
        if self._presence and self._presence.inside and self.away() is not None:
            self.make()

    def look_at(self, snapshot: Snapshot) -> None:
        """Check a snapshot before a byte is sent: all of one that fits into a block, the existence and size of a larger one.

        Raises as `open` and `verify` do.
        """
        if snapshot.size <= _BLOCK and not snapshot.is_folder:
            self.verify(snapshot)
            return
        self.open(snapshot).close()
        for each in self.files(snapshot):
            path = self._path_of(each.snapshot.name)
            try:
                size = path.lstat().st_size
            except OSError as error:
                raise self._failed(each.snapshot, error) from error
            if size != each.size:
                raise altered(each.snapshot.name)

    def open(self, snapshot: Snapshot) -> SnapshotBody:
        """The body of a snapshot, or the manifest of a folder, for reading; to be closed.

        Raises `SnapshotMissing`, `SnapshotAltered` when it has another size, `SpoolAway`, and `OutboxUnavailable` when the
        disk fails.
        """
        try:
            return self._open(snapshot)
        except OSError as error:
            failed = self._failed(snapshot, error)
            if isinstance(failed, SnapshotMissing):
                try:
                    return self._open(snapshot)  # the spool may have been away for that moment
                except OSError:
                    pass
            raise failed from error

    def files(self, snapshot: Snapshot) -> tuple[SnapshotFile, ...]:
        """The files of the snapshot of a folder, in the order of their paths; none of another one. Raises as `open` does."""
        return files_of(snapshot, self.open)

    def verify(self, snapshot: Snapshot) -> None:
        """Read a snapshot, to make sure that it exists and is what was enqueued. Raises the errors of reading it."""
        for each in (snapshot, *(one.snapshot for one in self.files(snapshot))):
            with closing(self.open(each)) as body:
                for _ in body:
                    pass

    def exists(self, snapshot: Snapshot) -> bool:
        """Whether the body exists; also where that cannot be known, because the spool is away."""
        path = self._path_of(snapshot.name)
        found = (path / MANIFEST).is_file() if snapshot.is_folder else path.is_file()
        return found or self.away() is not None

    def went_with_home(self, snapshot: Snapshot) -> bool:
        """Whether the body is not in the spool of a home that was deleted or replaced: it is not on a disk that may return."""
        inside = self._presence is None or self._presence.inside
        return not os.path.lexists(self._path_of(snapshot.name)) if inside else not self.exists(snapshot)

    def adopt(self, snapshot: Snapshot, folder: Path) -> bool:
        """Bring a snapshot of another spool into this one. Returns whether it is here now. Raises `OSError`."""
        target, source = self._path_of(snapshot.name), folder / snapshot.name
        if self.exists(snapshot):
            return True
        if source.is_symlink() or not (source.is_dir() if snapshot.is_folder else source.is_file()):
            return False
        self._make_folder()
        if self._presence:
            self._presence.mark()
        part = target.with_name(target.name + PART)
        delete(part)
        if snapshot.is_folder:
            shutil.copytree(source, part, symlinks=True, copy_function=link_or_copy)
            sync_folder(part)
        else:
            link_or_copy(source, part)
        part.rename(target)
        sync_folder(self.path)
        return True

    def remove(self, name: str) -> None:
        """Delete a snapshot. The sweep deletes one that cannot be deleted now."""
        delete(self._path_of(name))

    def remove_behind(self, names: Collection[str]) -> None:
        """Delete snapshots in a thread, so that the caller does not wait: a disk may need 0.3 s for a GiB.

        A copy that finds too little room waits for the thread, and so does the end of the process. A sweep deletes what
        a crash leaves.
        """
        paths = [self._path_of(name) for name in names]
        if paths:
            self._room.remove_behind(paths)

    def sweep(
        self, kept: Callable[[Collection[str]], Collection[str]], *, older_than: timedelta, now: float
    ) -> tuple[str, ...]:
        """Delete unfinished copies, and snapshots that `kept` does not name, older than `older_than`.

        `now` is in seconds of the file system's clock; the age counts from the last rename. Returns the deleted names.
        Other files stay. A file that cannot be deleted does not stop the sweep.
        """
        if self.away():
            return ()
        limit = now - older_than.total_seconds()
        old = [each.name for each in stored_in(self.path) if each.changed_at < limit]
        whole = [name for name in old if NAME.fullmatch(name)]
        needed = set(kept(whole)) if whole else set()
        gone = [name for name in old if name.endswith(PART) or (name in whole and name not in needed)]
        return tuple(name for name in gone if delete(self.path / name))

    def bytes_used(self) -> int:
        """The bytes that snapshots and unfinished copies occupy on the disk: holes in a file do not count."""
        return self._room.used()

    def free_bytes(self) -> int:
        """The free bytes on the spool's disk."""
        return self._room.free()

    def _source(self, path: Path_, *, folders: bool, archive: bool) -> Source:
        if not is_folder(path):
            return FileSource(path)
        if archive:
            from hubqueue.outbox.spool.archive import ArchiveSource  # loads `tarfile`

            return ArchiveSource(path, self.path)
        if folders:
            return FolderSource(path, self.path)
        hint = "save it as one .tar: archive=True (hubqueue enqueue checkpoint --archive), or pass a file"
        raise CheckpointUnreadable(f"{path} is a folder, and the destination takes one file", hint=hint)

    def _copy(self, source: Source, path: object, label: str) -> Snapshot | None:
        """One try at a copy; None when the source changed under it."""
        size = source.measure()
        if size is None:
            return None
        unmarked = self._presence is not None and self._presence.claim()
        self._room.check(size)
        name = _new_name(label, source.suffix)
        with self._writing(name, path) as part:
            self._make_folder()
            if unmarked and self._presence:
                self._presence.mark()
            written = source.write(part)
            if written is None:
                delete(part)
                return None
            self._keep(part, name)
        return Snapshot(name, *written)

    def _keep(self, part: Path, name: str) -> None:
        """Give what is written and synced its final name, durably."""
        part.rename(self.path / name)
        sync_folder(self.path)

    @contextmanager
    def _writing(self, name: str, path: object) -> Iterator[Path]:
        """The path for an unfinished copy of `path`. After an error nothing is left of it; one of the disk is a `SpoolError`."""
        part, final = self.path / (name + PART), self.path / name
        try:
            yield part
        except BaseException as error:
            delete(part, final)
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                hint = "free some space, or move the home to a larger disk: HUBQUEUE_HOME"
                raise SpoolFull(f"the disk has no room for a snapshot of {path}", hint=hint) from error
            if isinstance(error, OSError) and not isinstance(error, CheckpointUnreadable):
                raise SpoolError(
                    f"cannot write into {self.path}: {error.strerror}", hint="hubqueue check finds out why"
                ) from error
            raise

    def _make_folder(self) -> None:
        made = [] if self._named else unsynced(self.path)
        make_private_folder(self.path, shared=True, follow=True)
        sync_names(made)
        self._named = True

    def _open(self, snapshot: Snapshot) -> SnapshotBody:
        path = self._path_of(snapshot.name)
        if snapshot.is_folder:
            path /= MANIFEST
        file = os.fdopen(open_plain(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb", buffering=0)
        if snapshot.is_folder:
            found = os.fstat(file.fileno()).st_size
            snapshot = Snapshot(f"{snapshot.name}/{MANIFEST}", found, snapshot.mtime_ns, snapshot.sha256)
        return SnapshotBody(file, snapshot)

    def _failed(self, snapshot: Snapshot, error: OSError) -> OutboxUnavailable | SpoolError:
        """The error of a snapshot that cannot be opened."""
        if error.errno not in _GONE:
            # The file may still exist: no reason to give the checkpoint up.
            hint = f"check the disk of {self.path}"
            return OutboxUnavailable(f"cannot open {snapshot.name}: {error.strerror}", hint=hint)
        hint = f"put the file back into {self.path}, or cancel its entry: hubqueue cancel ENTRY"
        away = self.away() or (self._presence and self._presence.elsewhere(snapshot.name))
        return away or SnapshotMissing(f"{snapshot.name} is not in the spool: {error.strerror}", hint=hint)

    def _path_of(self, name: str) -> Path:
        # Names come from the database, which may have been edited: they must not lead out of the folder.
        if not (NAME.fullmatch(name) or _INNER.fullmatch(name)):
            raise SnapshotMissing(
                f"{name!r} is not the name of a snapshot", hint="hubqueue check finds out why"
            )
        return self.path / name


def _new_name(label: str, suffix: str) -> str:
    return f"{_safe(label)}-{secrets.token_hex(6)}{suffix}"


def _safe(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", label).lstrip("._-")[:80] or "checkpoint"
