"""An opened folder: every operation in it names what it wants relative to it.

Promises that all of them reach the same folder on the same disk, also when the disk is unmounted, or another one is
mounted, meanwhile: the folder is held open and names are resolved from there, where the system can do that. Promises that
nothing is written or deleted through a symbolic link in it: another user may have made it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from hubqueue.config.filesystem.mounts import CANNOT_LINK, CANNOT_SYNC
from hubqueue.config.filesystem.ownership import open_plain

_RELATIVE = os.open in os.supports_dir_fd and os.rename in os.supports_dir_fd
_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)


class Root:
    """A folder of this machine. Every method raises `OSError`; a name has `/` between its parts, "" is the folder.

    `follows`: links to folders in it are followed, for a reader. Otherwise they raise `ELOOP`.
    """

    def __init__(self, path: Path, *, syncs: bool, follows: bool = False) -> None:
        self.path, self._syncs, self._follows = path, syncs, follows
        self._at: int | None = os.open(path, os.O_RDONLY | _FOLDER) if _RELATIVE else None
        if self._at is None and not path.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._made: set[str] = {""}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._at is not None:
            os.close(self._at)

    def open(self, name: str, flags: int) -> int:
        """The descriptor of a plain file, never of what a link leads to. Others may read and write it as the umask says."""
        with self._above(name) as (here, last):
            if self._at is None:
                return open_plain(last, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
            guard = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(last, flags | guard, 0o666, **here)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), name)
        return descriptor

    def status(self, name: str) -> os.stat_result | None:
        """The status of a file or a folder; None if there is none."""
        try:
            with self._above(name) as (here, last):
                return os.stat(last, follow_symlinks=False, **here)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def make_folders(self, name: str) -> None:
        """Make a folder and those above it, durably."""
        if name in self._made:
            return
        parent = name.rpartition("/")[0]
        self.make_folders(parent)
        with suppress(FileExistsError), self._above(name) as (here, last):
            os.mkdir(last, **here)
            self.sync(parent)
        self._made.add(name)

    def link(self, name: str, to: str) -> None:
        """Give a file the name `to`, unless that exists (`FileExistsError`)."""
        try:
            with self._above(name) as (source, old), self._above(to) as (target, new):
                if self._at is None:
                    os.link(old, new)
                else:
                    at = {"src_dir_fd": source["dir_fd"], "dst_dir_fd": target["dir_fd"]}
                    os.link(old, new, **at, follow_symlinks=False)
        except OSError as error:
            if error.errno not in CANNOT_LINK:
                raise
            if self.status(to) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), to) from None
            self.rename(name, to)
        else:
            self.remove(name)

    def rename(self, name: str, to: str) -> None:
        """Rename a file, in place of one that exists."""
        with self._above(name) as (source, old), self._above(to) as (target, new):
            if self._at is None:
                os.replace(old, new)
            else:
                os.rename(old, new, src_dir_fd=source["dir_fd"], dst_dir_fd=target["dir_fd"])

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""
        with suppress(FileNotFoundError, NotADirectoryError), self._above(name) as (here, last):
            os.unlink(last, **here)

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it; nothing happens if there is none."""
        found = self.status(name)
        if found is None or not stat.S_ISDIR(found.st_mode):
            return  # a link is not followed
        for each, status in list(self.listed(name)):
            inner = f"{name}/{each}"
            if stat.S_ISDIR(status.st_mode):
                self.remove_folder(inner)
            else:
                self.remove(inner)
        with suppress(FileNotFoundError, NotADirectoryError), self._above(name) as (above, last):
            os.rmdir(last, **above)
        self._made.discard(name)

    def listed(self, name: str) -> Iterator[tuple[str, os.stat_result]]:
        """The names in a folder, each with its status; none if there is no folder."""
        try:
            with self._opened(name) as folder, os.scandir(folder) as entries:
                for each in entries:
                    with suppress(FileNotFoundError):  # removed meanwhile
                        yield each.name, each.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return

    def sync(self, name: str) -> None:
        """Write the names in a folder to the disk, if the settings ask for that and the file system can do it."""
        if not self._syncs or os.name == "nt":
            return
        with self._opened(name) as folder:
            assert isinstance(folder, int)
            try:
                os.fsync(folder)
            except OSError as error:
                if error.errno not in (*CANNOT_SYNC, errno.EACCES):
                    raise

    def sync_file(self, descriptor: int) -> None:
        """Write a file to the disk, if the settings ask for that."""
        if self._syncs:
            os.fsync(descriptor)

    @contextmanager
    def _opened(self, name: str) -> Iterator[int | str]:
        if os.name == "nt":
            with self._above(name) as (_, path):
                yield path
            return
        descriptor = self._entered(name)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _above(self, name: str) -> Iterator[tuple[dict[str, Any], str]]:
        """The opened folder of a file, as an option, and the name there; without that, no option and the path."""
        folder, _, last = name.rpartition("/")
        if self._at is None:
            self._refuse_links(folder)
            yield {}, os.path.join(self.path, name)
        elif not folder or self._follows:
            yield {"dir_fd": self._at}, name or "."
        else:
            descriptor = self._entered(folder)
            try:
                yield {"dir_fd": descriptor}, last
            finally:
                os.close(descriptor)

    def _entered(self, folder: str) -> int:
        """Open a folder, one part of its name after the other: each of them may be a link."""
        if self._at is None or self._follows:
            here = {} if self._at is None else {"dir_fd": self._at}
            self._refuse_links(folder)
            path = (folder or ".") if self._at is not None else os.path.join(self.path, folder)
            return os.open(path, os.O_RDONLY | _FOLDER, **here)
        descriptor = os.open(".", os.O_RDONLY | _FOLDER, dir_fd=self._at)
        for part in folder.split("/") if folder else ():
            above = descriptor
            try:
                descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | _FOLDER, dir_fd=above)
            except NotADirectoryError as error:
                if stat.S_ISLNK(os.stat(part, dir_fd=above, follow_symlinks=False).st_mode):
                    raise _is_a_link(folder) from error
                raise
            finally:
                os.close(above)
        return descriptor

    def _refuse_links(self, folder: str) -> None:
        """Raise `ELOOP` for a link, on a system that opens no folders."""
        parts = folder.split("/") if folder and not (self._follows or self._at is not None) else ()
        for depth in range(len(parts)):
            if os.path.islink(os.path.join(self.path, *parts[: depth + 1])):
                raise _is_a_link(folder)


def _is_a_link(name: str) -> OSError:
    return OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
