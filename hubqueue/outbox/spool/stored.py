"""What lies in the spool folder: the snapshots and the unfinished copies, their room on the disk, and their deletion.

Only what has a name of ours and belongs to this user (or to the folder's owner: some servers rename users) counts, is
listed or is deleted.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hubqueue.domain.snapshots.snapshot import FOLDER

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(ckpt|folder)")
PART = ".part"


class Stored(NamedTuple):
    """A snapshot or an unfinished copy.

    `changed_at` is in seconds of the file system's clock: the last change of it, or of a file in it. `occupied` is in bytes
    on the disk: holes in a file do not count, and a file with several names counts for the first of them only.
    """

    name: str
    changed_at: float
    occupied: int


def stored_in(folder: Path) -> list[Stored]:
    """The snapshots and unfinished copies in a folder; none where it does not exist or cannot be read."""
    try:
        owners = {os.geteuid() if hasattr(os, "geteuid") else 0, folder.stat().st_uid}
        with os.scandir(folder) as entries:
            named = [entry for entry in entries if NAME.fullmatch(entry.name.removesuffix(PART))]
    except OSError:
        return []
    found, seen = [], set[tuple[int, int]]()
    for entry in named:
        with suppress(OSError):  # deleted meanwhile, or unreadable: no reason to stop
            each = entry.stat(follow_symlinks=False)
            if each.st_uid not in owners:
                continue
            if entry.name.removesuffix(PART).endswith(FOLDER):
                if stat.S_ISDIR(each.st_mode):
                    inner = [each, *_inner(entry.path)]
                    newest = max(one.st_ctime for one in inner)
                    occupied = sum(_occupied(one, seen) for one in inner[1:])
                    found.append(Stored(entry.name, newest, occupied))
            elif stat.S_ISREG(each.st_mode):
                found.append(Stored(entry.name, each.st_ctime, _occupied(each, seen)))
    return found


def delete(*paths: Path) -> bool:
    """Delete the snapshots that can be deleted. Returns whether all are gone.

    A folder is renamed first: after a crash there is never a snapshot with a part of its files.
    """
    gone = True
    for path in paths:
        try:
            if path.name.removesuffix(PART).endswith(FOLDER):
                gone = _delete_folder(path) and gone
            else:
                path.unlink(missing_ok=True)
        except OSError:
            gone = False  # the sweep tries again
    return gone


def _delete_folder(path: Path) -> bool:
    doomed = path if path.name.endswith(PART) else path.with_name(path.name + PART)
    if doomed != path:
        try:
            path.rename(doomed)
        except FileNotFoundError:
            return True
    shutil.rmtree(doomed, ignore_errors=True)
    return not doomed.exists()


def _inner(folder: str) -> Iterator[os.stat_result]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                yield entry.stat(follow_symlinks=False)


def _occupied(found: os.stat_result, seen: set[tuple[int, int]]) -> int:
    if found.st_nlink > 1:
        if (found.st_dev, found.st_ino) in seen:
            return 0
        seen.add((found.st_dev, found.st_ino))
    blocks: int | None = getattr(found, "st_blocks", None)  # 0 where a file system does not report it
    return min(found.st_size, blocks * 512) if blocks else found.st_size
