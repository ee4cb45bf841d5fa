"""A further name for a snapshot: a hard link to its file, or to each file of a folder.

A snapshot is never changed after it was taken, so that a link is as good as a copy, and its bytes stay until the last name is
deleted. Where the file system has no links, it is a copy.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from hubqueue.config.filesystem.mounts import CANNOT_LINK
from hubqueue.config.home import sync_folder
from hubqueue.domain.snapshots.snapshot import Snapshot
from hubqueue.outbox.spool.body import altered
from hubqueue.outbox.spool.source import FileSource, Path_, Written

# A rule of the system may forbid it for one file.
_NO_LINK = {*CANNOT_LINK, errno.EACCES}


def link_snapshot(
    snapshot: Snapshot, source: Path, target: Path, *, before_copy: Callable[[], None]
) -> Written:
    """Give a snapshot a further name, whose own name is not synced yet; returns the proof for it.

    `before_copy` is called before bytes are copied, and may raise. Raises `OSError` for an error of the disk, and
    `SnapshotAltered`.
    """
    same = Written(snapshot.size, snapshot.mtime_ns, snapshot.sha256)
    if not snapshot.is_folder:
        if _is_linked(source, target):
            return same
        before_copy()
        copied = _copied(source, target)
        if copied.sha256 not in (None, snapshot.sha256) and snapshot.sha256 is not None:
            raise altered(source.name)
        return copied._replace(sha256=copied.sha256 or snapshot.sha256)
    names = sorted(os.listdir(source))  # fails before the folder is made, if it is gone
    target.mkdir(mode=0o700)
    copies = False
    for name in names:
        if copies or not _is_linked(source / name, target / name):
            if not copies:
                before_copy()
            copies = True
            _copied(source / name, target / name)  # the manifest proves it when it is sent
    sync_folder(target)
    return same


def link_or_copy(source: Path_, target: Path_) -> None:
    """A second name for a file; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        with open(target, "r+b") as copy:
            os.fsync(copy.fileno())


def _is_linked(source: Path, target: Path) -> bool:
    """Make a hard link; False where there can be none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except NotImplementedError:  # this system has no such option
        return False
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True


def _copied(source: Path, target: Path) -> Written:
    with closing(FileSource(source)) as file:
        written = file.write(target)
    if written is None:
        raise altered(source.name)
    return written
