"""The spool: private copies of checkpoints, taken at enqueue.

Promises: what is sent is what was enqueued, never the file's later content; a snapshot is on the disk, with its
folder, before `take` returns; a missing one is found before a byte is sent, an altered one before the last block is
sent; a crash at any line leaves at most an orphan, which is swept. Refuses links, folders, devices, and files that are
still being written.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Callable, Collection
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from hubqueue.config.home import make_private_folder, open_private, sync_folder, sync_names, unsynced
from hubqueue.config.ownership import open_plain
from hubqueue.config.reader import SpoolSettings
from hubqueue.domain.entry import Snapshot
from hubqueue.domain.errors import (
    CheckpointUnreadable,
    OutboxUnavailable,
    SnapshotMissing,
    SpoolError,
    SpoolFull,
)
from hubqueue.domain.quantities import size as bytes_of
from hubqueue.outbox.spool.body import SnapshotBody
from hubqueue.outbox.spool.hashing import BLOCK as _BLOCK
from hubqueue.outbox.spool.hashing import HashBehind, from_file

_TRIES = 5
# With larger writes the page cache of Linux 6.18 tries large pages first: up to 4 s for a GiB instead of 0.5 s.
_WRITE = 128 * 1024
# EISDIR, EINVAL: the path is a folder or a pipe now. ENXIO: a socket.
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EINVAL}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
# ioctl FICLONE of Linux (btrfs, XFS, bcachefs): a copy that shares the blocks of the source, without reading them.
_FICLONE = 0x40049409
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.ckpt")
_PART = ".part"


class Spool:
    """The snapshots of one home."""

    def __init__(self, path: Path, settings: SpoolSettings) -> None:
        self.path = path
        self._settings = settings
        self._named = False  # whether the folder's own name is synced
        self._removals: list[threading.Thread] = []

    def take(self, source: str | os.PathLike[str], *, label: str) -> Snapshot:
        """Copy a checkpoint, durably. `label` starts the copy's name.

        Raises `CheckpointUnreadable` for a problem of the source, `SpoolFull` and `SpoolError` for one of the spool.
        """
        pause = threading.Event()
        with _open_source(source) as file:
            for attempt in range(_TRIES):
                snapshot = self._copy(file, source, label)
                if snapshot is not None:
                    return snapshot
                pause.wait(0.05 * 2**attempt)
        hint = "save it to another file first, and pass that one when it is complete"
        raise CheckpointUnreadable(f"{source} is still being written", hint=hint)

    def look_at(self, snapshot: Snapshot) -> None:
        """Check a snapshot before a byte is sent: all of a body of one block, the existence and size of a larger one.

        Raises as `open` and `verify` do.
        """
        if snapshot.size <= _BLOCK:
            self.verify(snapshot)
        else:
            self.open(snapshot).close()

    def open(self, snapshot: Snapshot) -> SnapshotBody:
        """The body of a snapshot, for reading; to be closed.

        Raises `SnapshotMissing`, `SnapshotAltered` when it has another size, `OutboxUnavailable` when the disk fails.
        """
        path = self._path_of(snapshot.name)
        try:
            file = os.fdopen(open_plain(path, os.O_RDONLY | _guards()), "rb", buffering=0)
            return SnapshotBody(file, snapshot)
        except OSError as error:
            if error.errno not in _GONE:
                # The file may still exist: no reason to give the checkpoint up.
                hint = f"check the disk of {self.path}"
                raise OutboxUnavailable(
                    f"cannot open {snapshot.name}: {error.strerror}", hint=hint
                ) from error
            hint = f"put the file back into {self.path}, or cancel its entry: hubqueue cancel"
            raise SnapshotMissing(
                f"{snapshot.name} is not in the spool: {error.strerror}", hint=hint
            ) from error

    def verify(self, snapshot: Snapshot) -> None:
        """Read a body, to make sure that it exists and is what was enqueued. Raises the errors of reading it."""
        with closing(self.open(snapshot)) as body:
            for _ in body:
                pass

    def exists(self, snapshot: Snapshot) -> bool:
        """Whether the body exists."""
        return self._path_of(snapshot.name).is_file()

    def remove(self, name: str) -> None:
        """Delete a snapshot. The sweep deletes one that cannot be deleted now."""
        _unlink(self._path_of(name))

    def remove_behind(self, names: Collection[str]) -> None:
        """Delete snapshots in a thread, so that the caller does not wait: a disk may need 0.3 s for a GiB.

        A copy that finds too little room waits for the thread, and so does the end of the process. A sweep deletes what
        a crash leaves.
        """
        paths = [self._path_of(name) for name in names]
        if not paths:
            return
        removal = threading.Thread(target=_unlink, args=paths, name="hubqueue-removal", daemon=False)
        try:
            if not threading.main_thread().is_alive():
                raise RuntimeError("the interpreter ends and does not wait for new threads")
            removal.start()
        except RuntimeError:
            _unlink(*paths)
        else:
            self._removals = [*(each for each in self._removals if each.is_alive()), removal]

    def sweep(
        self, kept: Callable[[Collection[str]], Collection[str]], *, older_than: timedelta, now: float
    ) -> tuple[str, ...]:
        """Delete unfinished copies, and snapshots that `kept` does not name, older than `older_than`.

        `now` is in seconds of the file system's clock; the age counts from the last rename. Returns the deleted names.
        Other files stay. A file that cannot be deleted does not stop the sweep.
        """
        limit = now - older_than.total_seconds()
        old = [each.name for each, found in self._files() if found.st_ctime < limit]
        whole = [name for name in old if _NAME.fullmatch(name)]
        needed = set(kept(whole)) if whole else set()
        gone = [name for name in old if name.endswith(_PART) or (name in whole and name not in needed)]
        return tuple(name for name in gone if _unlink(self.path / name))

    def bytes_used(self) -> int:
        """The bytes that snapshots and unfinished copies occupy on the disk: holes in a file do not count."""
        return sum(_occupied(found) for _, found in self._files())

    def free_bytes(self) -> int:
        """The free bytes on the spool's disk."""
        nearest = next(each for each in (self.path, *self.path.parents) if each.exists())
        return shutil.disk_usage(nearest).free

    def _copy(self, file: BinaryIO, source: object, label: str) -> Snapshot | None:
        """One try at a copy; None when the source changed under it."""
        before = os.fstat(file.fileno())
        if before.st_size == 0:
            raise CheckpointUnreadable(f"{source} is empty", hint="save the checkpoint before passing it on")
        self._check_room(before.st_size)
        name = f"{_safe(label)}-{secrets.token_hex(6)}.ckpt"
        part, final = self.path / (name + _PART), self.path / name
        try:
            self._make_folder()
            target = open_private(part, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                sha256 = None  # a clone reads no bytes, so there is no hash of it
                if _clone(file, target):
                    os.fsync(target)
                else:
                    sha256 = _copy_blocks(file, target, part, source, before.st_size)
                copied, after = os.fstat(target), os.fstat(file.fileno())
            finally:
                os.close(target)
            unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if not unchanged or copied.st_size != before.st_size:
                part.unlink()
                return None
            part.rename(final)
            sync_folder(self.path)
        except BaseException as error:
            part.unlink(missing_ok=True)
            final.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                hint = "free some space, or move the home to a larger disk: HUBQUEUE_HOME"
                raise SpoolFull(f"the disk has no room for a snapshot of {source}", hint=hint) from error
            if isinstance(error, OSError) and not isinstance(error, CheckpointUnreadable):
                raise SpoolError(
                    f"cannot write into {self.path}: {error.strerror}", hint="hubqueue check"
                ) from error
            raise
        return Snapshot(name, copied.st_size, copied.st_mtime_ns, sha256)

    def _make_folder(self) -> None:
        made = [] if self._named else unsynced(self.path)
        make_private_folder(self.path, shared=True)
        sync_names(made)
        self._named = True

    def _check_room(self, size: int) -> None:
        # Read first: a removal that ends during the check may free its room after it.
        removals = self._removals
        shortage = self._shortage(size)
        if shortage and removals:
            for each in removals:
                each.join()
            shortage = self._shortage(size)
        if shortage:
            raise shortage

    def _shortage(self, size: int) -> SpoolFull | None:
        used, cap = self.bytes_used(), self._settings.max_bytes
        if used + size > cap:
            hint = "wait for uploads, give some up (hubqueue cancel), or raise spool.max_bytes"
            return SpoolFull(
                f"a snapshot of {bytes_of(size)} does not fit: {bytes_of(used)} of {bytes_of(cap)} are used",
                hint=hint,
            )
        free, reserve = self.free_bytes(), self._settings.min_free_bytes
        if free - size < reserve:
            hint = "free some space, or lower spool.min_free_bytes"
            message = f"a snapshot of {bytes_of(size)} would leave less than {bytes_of(reserve)} of {bytes_of(free)} free"
            return SpoolFull(message, hint=hint)
        return None

    def _files(self) -> list[tuple[os.DirEntry[str], os.stat_result]]:
        """The spool's own files: plain, with a name of ours, owned by this user or the folder's owner (some servers rename users)."""
        found = []
        try:
            owners = {os.geteuid() if hasattr(os, "geteuid") else 0, self.path.stat().st_uid}
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if not _NAME.fullmatch(entry.name.removesuffix(_PART)):
                        continue
                    try:
                        found.append((entry, entry.stat(follow_symlinks=False)))
                    except OSError:
                        continue  # deleted meanwhile, or unreadable: no reason to stop
        except FileNotFoundError:
            return []
        return [
            (entry, each) for entry, each in found if stat.S_ISREG(each.st_mode) and each.st_uid in owners
        ]

    def _path_of(self, name: str) -> Path:
        # Names come from the database, which may have been edited: they must not lead out of the folder.
        if not _NAME.fullmatch(name):
            raise SnapshotMissing(f"{name!r} is not the name of a snapshot", hint="hubqueue check")
        return self.path / name


def _guards() -> int:
    return getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def _unlink(*paths: Path) -> bool:
    """Delete the files that can be deleted. Returns whether all are gone."""
    gone = True
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            gone = False  # the sweep tries again
    return gone


def _occupied(found: os.stat_result) -> int:
    blocks: int | None = getattr(found, "st_blocks", None)  # 0 where a file system does not report it
    return min(found.st_size, blocks * 512) if blocks else found.st_size


def _open_source(source: str | os.PathLike[str]) -> BinaryIO:
    hint = "pass the path of a finished checkpoint file"
    try:
        descriptor = open_plain(source, os.O_RDONLY | _guards())
    except IsADirectoryError as error:
        raise CheckpointUnreadable(f"{source} is a folder", hint=hint) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            hint = f"pass the real path: {os.path.realpath(source)}"
            raise CheckpointUnreadable(f"{source} is a symbolic link", hint=hint) from error
        if error.errno in (errno.EINVAL, errno.ENXIO):
            raise CheckpointUnreadable(f"{source} is not a plain file", hint=hint) from error
        raise CheckpointUnreadable(f"cannot read {source}: {error.strerror}", hint=hint) from error
    return os.fdopen(descriptor, "rb", buffering=0)


def _clone(file: BinaryIO, target: int) -> bool:
    """Share the blocks of the source where the file system supports it (a reflink). Returns whether it does."""
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, file.fileno())
    except (ImportError, OSError):
        return False
    return True


def _copy_blocks(file: BinaryIO, target: int, part: Path, source: object, size: int) -> str:
    """Copy at most `size` bytes, also of a source that grows, and sync them. Returns the SHA-256 (hex) of the copy."""
    buffer, left = memoryview(bytearray(_BLOCK)), size
    file.seek(0)
    with part.open("rb", buffering=0) as copy, HashBehind(from_file(copy)) as behind:
        while left:
            try:
                count = file.readinto(buffer[: min(left, _BLOCK)])  # type: ignore[attr-defined]
            except OSError as error:
                hint = "pass the path of a readable checkpoint file"
                raise CheckpointUnreadable(f"cannot read {source}: {error.strerror}", hint=hint) from error
            if not count:
                break  # the source shrank: the caller finds that the copy is short
            left -= count
            written = 0
            while written < count:
                written += os.write(target, buffer[written : min(count, written + _WRITE)])
            behind.written(count)
        # Disk and hash are both slow: the sync runs while the thread hashes.
        os.fsync(target)
    return behind.digest()


def _safe(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", label).lstrip("._-")[:80] or "checkpoint"
