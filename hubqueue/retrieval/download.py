"""A checkpoint, downloaded beside its final path and moved there as a whole.

    DIR/.epoch-0012.part/     what has arrived so far; a broken-off download continues there
    DIR/epoch-0012/           after one rename: all files with their sizes and SHA-256, synced to the disk
    DIR/epoch-0012.pt         the same for a checkpoint of one file

Promises: nothing is at the final path unless it is whole; nothing is written outside of these paths, whatever the
destination says; a file that exists is not replaced unless `replace` says so. Several processes may download the same
checkpoint to one folder: one of them does, and the others wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hubqueue.config.home import sync_folder
from hubqueue.domain.errors import HubqueueError, InvalidArgument, NotWritten, OutboxUnavailable
from hubqueue.domain.quantities import size
from hubqueue.domain.snapshots.stored import StoredCheckpoint, StoredFile
from hubqueue.outbox.locks import Lock, forget
from hubqueue.outbox.spool.blocks import sync_files
from hubqueue.retrieval.paths import local_name, problem_of
from hubqueue.retrieval.source import Source

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

Progress = Callable[[int, int, int], object]
"""Receives the number of bytes that are here, how many of them were here before, and how many there will be."""

_BLOCK = 1 << 20
# Seconds of one wait for the lock.
_LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Pulled:
    """A checkpoint that is whole at `path`. `resumed` bytes were here from an earlier download, `received` came now."""

    path: Path
    received: int
    resumed: int


class Download:
    """One checkpoint on its way into a folder."""

    def __init__(
        self,
        source: Source,
        checkpoint: StoredCheckpoint,
        folder: Path,
        *,
        replace: bool = False,
        progress: Progress = lambda _here, _before, _total: None,
    ) -> None:
        self._source, self._checkpoint, self._folder = source, checkpoint, folder
        self._replace, self._progress = replace, progress
        self._here = self._before = 0

    def run(self) -> Pulled:
        """Download it, and move it to its path. Whole files that are there already are not requested again.

        Raises `NotWhole`, `NotThere`, `NotWritten`, `DestinationUnavailable`, and `InvalidArgument` for a path where
        something else is.
        """
        self._refuse_invalid()
        path = self._folder / local_name(self._checkpoint)
        try:
            if (whole := self._already(path)) is not None:
                return whole
            self._folder.mkdir(parents=True, exist_ok=True)
            with _alone(self._folder / f".{self._checkpoint.name}.lock"):
                # Another process may have downloaded it meanwhile.
                return self._already(path) or self._download(path)
        except HubqueueError:
            raise  # some are also `OSError`s
        except OSError as error:
            raise self._not_written(error) from error

    def _already(self, path: Path) -> Pulled | None:
        if not os.path.lexists(path):
            return None
        if _is_whole(path, self._checkpoint):
            return Pulled(path, 0, self._checkpoint.size)
        if self._replace:
            return None
        raise _exists(path)

    def _download(self, path: Path) -> Pulled:
        part = self._folder / f".{self._checkpoint.name}.part"
        if part.is_symlink() or not part.is_dir():
            part.mkdir()  # raises for a link, or a file
        if _folds_case(part):
            self._refuse_invalid(folds_case=True)
        files = {self._path_of(each, part): each for each in self._checkpoint.files}
        _remove_others(part, files)
        self._refuse_full(part, files)
        for inner, file in files.items():
            inner.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(file, inner)
        sync_files(files)
        for folder, _, _ in os.walk(part, topdown=False):
            sync_folder(Path(folder))
        _move(part if self._checkpoint.is_folder else next(iter(files)), path, replace=self._replace)
        sync_folder(self._folder)
        if not self._checkpoint.is_folder:
            with contextlib.suppress(OSError):  # what counts is at its path
                part.rmdir()
        return Pulled(path, self._here - self._before, self._before)

    def _path_of(self, file: StoredFile, part: Path) -> Path:
        return part / (file.path if self._checkpoint.is_folder else local_name(self._checkpoint))

    def _fetch(self, file: StoredFile, path: Path) -> None:
        """Bring one file here whole, after the bytes that are here already."""
        with _open(path) as out:
            digest, here = _hash_of(out, file)
            self._note(here, before=here)
            whole = self._receive(file, out, digest, here)
            if not whole and here:  # what was here is of another version, or damaged
                self._note(-file.size, before=-here)
                whole = self._receive(file, out, hashlib.sha256(), 0)
            if not whole:
                out.truncate(0)
                why = "its SHA-256 is not that of the file that was saved"
                raise self._source.not_whole(self._checkpoint, file.path, why)

    def _receive(self, file: StoredFile, out: BinaryIO, digest: Hash, start: int) -> bool:
        """Write the rest of a file; whether the whole has its hash."""
        out.seek(start)
        out.truncate()
        if start < file.size:
            for block in self._source.blocks(self._checkpoint, file, start=start):
                out.write(block)
                digest.update(block)
                self._note(len(block))
        return file.sha256 is None or digest.hexdigest() == file.sha256

    def _note(self, count: int, *, before: int = 0) -> None:
        self._here += count
        self._before += before
        self._progress(self._here, self._before, self._checkpoint.size)

    def _refuse_invalid(self, *, folds_case: bool = False) -> None:
        why = problem_of(self._checkpoint, windows=os.name == "nt", folds_case=folds_case)
        if why is not None:
            raise self._source.not_whole(self._checkpoint, "", why)

    def _refuse_full(self, part: Path, files: Collection[Path]) -> None:
        here = sum(each.stat().st_size for each in files if each.exists())
        disk, missing = shutil.disk_usage(part), self._checkpoint.size - here
        if disk.total and missing > disk.free:  # some network disks report nothing
            what = f"{self._folder} has {size(disk.free)} of free space, the checkpoint needs {size(missing)}"
            raise NotWritten(what, hint="free space, or name another folder: --to")

    def _not_written(self, error: OSError) -> NotWritten:
        where = os.fsdecode(error.filename) if error.filename else str(self._folder)
        hint = "free space, or name another folder: --to; what has arrived is kept, and the same command continues"
        return NotWritten(f"cannot write {where}: {error.strerror or error}", hint=hint)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process downloads the same checkpoint to the same folder."""
    lock = Lock(path)
    with contextlib.suppress(OutboxUnavailable, NotImplementedError):  # a file system without locks
        while not lock.acquire(_LOOK):
            pass
    try:
        yield
    finally:
        if lock.held:
            lock.release()
            forget(path)


def _is_whole(path: Path, checkpoint: StoredCheckpoint) -> bool:
    """Whether exactly this checkpoint is at a path already."""
    if not checkpoint.is_folder:
        return _is_file(path, checkpoint.files[0])
    if path.is_symlink() or not path.is_dir():
        return False
    there = {Path(folder) / name for folder, _, names in os.walk(path) for name in names}
    wanted = {path / each.path: each for each in checkpoint.files}
    return there == wanted.keys() and all(_is_file(inner, each) for inner, each in wanted.items())


def _is_file(path: Path, file: StoredFile) -> bool:
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != file.size or file.sha256 is None:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256


def _open(path: Path) -> BinaryIO:
    """Open a file to be continued, or make it; never through a link."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), "r+b")


def _hash_of(out: BinaryIO, file: StoredFile) -> tuple[Hash, int]:
    """The hash of the bytes that are here, and their number; none if no hash would prove the whole afterwards."""
    digest, here = hashlib.sha256(), os.fstat(out.fileno()).st_size
    if file.sha256 is None or here > file.size:
        return digest, 0
    while block := out.read(_BLOCK):
        digest.update(block)
    return digest, here


def _folds_case(part: Path) -> bool:
    """Whether the file system of an existing folder does not distinguish `a` and `A`."""
    try:
        return part.samefile(part.with_name(part.name.swapcase()))
    except FileNotFoundError:
        return False


def _remove_others(part: Path, wanted: Collection[Path]) -> None:
    """Remove what an earlier download left that does not belong to this checkpoint."""
    folders = {above for each in wanted for above in each.parents}
    for folder, inner, names in os.walk(part, topdown=False):
        for path in (Path(folder) / each for each in names):
            if path not in wanted or not stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
        for path in (Path(folder) / each for each in inner):
            if path.is_symlink():
                path.unlink()
            elif path not in folders:
                path.rmdir()


def _move(made: Path, path: Path, *, replace: bool) -> None:
    """Give a whole file or folder its final path. Raises `InvalidArgument` where something else is, unless `replace`."""
    if replace and path.is_dir() and not path.is_symlink():
        aside = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        made.rename(path)
        shutil.rmtree(aside, ignore_errors=True)
    elif replace:
        if made.is_dir() and os.path.lexists(path):
            path.unlink()  # a folder cannot replace a file
        made.replace(path)
    elif made.is_dir():
        if os.path.lexists(path):
            raise _exists(path)
        made.rename(path)  # the system refuses to replace a file, or a folder that is not empty
    else:
        _link(made, path)


def _link(made: Path, path: Path) -> None:
    """Move a file to a path where nothing is: a rename would replace what has appeared there meanwhile."""
    try:
        path.hardlink_to(made)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise _exists(path) from None
        made.rename(path)
    else:
        made.unlink()


def _exists(path: Path) -> InvalidArgument:
    hint = "replace it with --force (force=True), or name another folder with --to"
    return InvalidArgument(f"{path} exists already, and is not this checkpoint", hint=hint)
