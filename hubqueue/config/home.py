"""The home: the folder that holds the outbox, the spool, the locks, the keys and the log.

Files are made 0600 in a 0700 folder whatever the umask, and none is opened through a symbolic link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hubqueue.config.filesystem import mounts, ownership
from hubqueue.config.forms import unexpanded
from hubqueue.config.reader import Config, Reading, read
from hubqueue.domain.errors import ConfigError, OutboxUnavailable

# A file that a person has named and that is no readable file of settings: only the person can correct it. Every other
# error may be over a moment later.
_MISNAMED = (errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.EFBIG, errno.ENXIO)
# As Debian's policy has it: the home directory of a user without one. It must not exist.
_NOWHERE = Path("/nonexistent/hubqueue")
_WRITABLE = "choose a writable home: HUBQUEUE_HOME"
READ_ONLY = "make it writable for you, or choose another home: HUBQUEUE_HOME"
"""The hint for a home in which nothing can be saved."""


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one outbox. With a `problem` there is none: it is neither read nor created."""

    path: Path
    problem: str | None = None

    @classmethod
    def locate(
        cls, home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ
    ) -> Home:
        """The home: the argument, else HUBQUEUE_HOME, else the platform's user data folder.

        Raises `ConfigError` for a path with a variable in it that no shell has replaced.
        """
        chosen = home if home is not None else environ.get("HUBQUEUE_HOME") or None
        if chosen is None:
            from platformdirs import user_data_path

            # Without HOME, and where the system does not know the user: an error, or a path with a literal `~`.
            with suppress(RuntimeError):
                found = user_data_path("hubqueue", appauthor=False)
                if found.is_absolute():
                    return cls(found)
            return cls(_NOWHERE, "this user has no home directory")
        expanded = Path(os.path.expanduser(chosen))
        if expanded.parts[:1] == ("~",):
            return cls(_NOWHERE, "this user has no home directory")
        try:
            return cls(literal_path(chosen, "the home"))
        except OSError:
            return cls(_NOWHERE, "the working directory was deleted, and the home is a path within it")

    @property
    def outbox(self) -> Path:
        return self.path / "outbox.db"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def spool_note(self) -> Path:
        return self.path / "spool.json"

    @property
    def locks(self) -> Path:
        return self.path / "locks"

    @property
    def credentials(self) -> Path:
        return self.path / "credentials.toml"

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def worker_log(self) -> Path:
        return self.path / "worker.log"

    @property
    def ballast(self) -> Path:
        return self.path / "ballast"

    @property
    def read_only(self) -> bool:
        """Whether the home exists and this user can change nothing in it: by its permissions, or on a read-only disk."""
        return self.path.is_dir() and not (may_write(self.path) and may_write(self.outbox))

    def obstacle(self) -> OutboxUnavailable | None:
        """Why the home neither exists nor can be made at its path; None where it does or can."""
        if self.path.is_dir():
            return None
        there = next(each for each in (self.path, *self.path.parents) if os.path.lexists(each))
        if there.is_symlink() and not there.exists():
            why = f"{there} is a symbolic link to {os.readlink(there)}, which does not exist"
        elif not there.is_dir():
            why = f"{there} is not a folder"
        elif mounts.is_pseudo(type := mounts.type_of(there)):
            why = f"{there} is on {type}, where no folder can be made"
        elif not may_write(there):
            why = f"{there} is read-only, and there is no {self.path.relative_to(there)} in it"
        else:
            return None
        return OutboxUnavailable(f"the home {self.path} cannot exist: {why}", hint=_WRITABLE)

    def create(self) -> None:
        """Make the home and its folders, private. Raises `OutboxUnavailable`, also for a home that others may change."""
        self._refuse_nowhere()
        ownership.refuse_unsafe_path(self.path)
        if self.read_only:
            raise OutboxUnavailable(f"the home {self.path} is read-only", hint=READ_ONLY)
        made = [] if self.outbox.exists() else unsynced(self.path)
        make_private_folder(self.path, follow=True)
        for folder in (self.spool, self.locks):
            make_private_folder(folder)
        sync_names(made)

    def problems(self) -> list[tuple[str, str]]:
        """What is unsafe, but not refused: others may read the home, or replace it. A line and a hint each."""
        return list(ownership.warnings(self.path))

    def load_config(self, config: Path | None, environ: Mapping[str, str]) -> Config:
        """The settings: of the given file, else of HUBQUEUE_CONFIG, else of config.toml in the home, else the defaults.

        Raises `ConfigError` with every problem; a named file must exist. Raises `OutboxUnavailable` for a home or a
        file that others may change, and for a config.toml that cannot be read.
        """
        return self.read_config(config, environ).config

    def read_config(self, config: Path | None, environ: Mapping[str, str]) -> Reading:
        """The same, with where each setting comes from."""
        given = config or environ.get("HUBQUEUE_CONFIG") or None
        named = None if given is None else literal_path(given, "the configuration")
        if named is None:
            self._refuse_nowhere()
            self._refuse_strangers()
        chosen = named or self.config_file
        try:
            content, _ = ownership.read_trusted(chosen, named=named is not None)
            text = content.decode("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            if named is not None:
                hint = "name an existing file with --config or HUBQUEUE_CONFIG"
                raise ConfigError((f"there is no configuration {chosen}",), hint=hint) from None
            return self._owned(read("", environ, source="the environment"))
        except UnicodeDecodeError as error:
            problem = f"cannot read the configuration {chosen}: it is not UTF-8 text"
            raise ConfigError((problem,), hint="save it as UTF-8 text") from error
        except OSError as error:
            problem = f"cannot read the configuration {chosen}: {error.strerror}"
            if named is not None and error.errno in _MISNAMED:
                raise ConfigError((problem,), hint="name a readable file") from error
            hint = f"make it a readable file, or remove it: {chosen}"
            raise OutboxUnavailable(
                problem, hint=hint if named is None else "name a readable file"
            ) from error
        return self._owned(replace(read(text, environ, source=str(chosen)), file=chosen))

    def _owned(self, reading: Reading) -> Reading:
        """The same settings, as those of this home."""
        targets = reading.config.destinations
        owned = {name: replace(each, home=self.path) for name, each in targets.items()}
        return replace(reading, config=replace(reading.config, destinations=owned))

    def _refuse_nowhere(self) -> None:
        if self.problem:
            hint = "name a folder for hubqueue: HUBQUEUE_HOME, or set HOME"
            raise OutboxUnavailable(f"there is no home for hubqueue: {self.problem}", hint=hint)

    def _refuse_strangers(self) -> None:
        """Refuse a home that others may change, before any file in it is read."""
        ownership.refuse_unsafe_path(self.path)
        if self.path.is_dir():
            ownership.refuse_folder(self.path)

    def file_system(self) -> str:
        """The type of the file system the home is on, such as ext4 or nfs4; "unknown" if the system does not say."""
        return mounts.type_of(self.path)

    def is_network_file_system(self) -> bool:
        """Whether the home is on a network file system, where a write-ahead log is not safe."""
        return mounts.is_network(self.file_system())


def may_write(path: Path) -> bool:
    """Whether this user may change a file or folder, or make it: a missing one counts as writable."""
    effective = os.access in os.supports_effective_ids
    return not path.exists() or os.access(path, os.W_OK, effective_ids=effective)


def literal_path(given: str | os.PathLike[str], what: str) -> Path:
    """An absolute path, with `~` replaced. Raises `ConfigError` for one with a variable in it that no shell has replaced."""
    text = os.path.expanduser(os.fspath(given))
    if variable := unexpanded(text):
        problem = f"{what} {text} has {variable} in it, which was not replaced by its value"
        raise ConfigError(
            (problem,), hint="write the whole path; only a shell replaces variables, outside single quotes"
        )
    return Path(os.path.abspath(text))


def make_private_folder(path: Path, *, shared: bool = False, follow: bool = False) -> None:
    """Make a folder 0700 whatever the umask, and the missing ones above it.

    An existing folder stays as it is, unless others may change it. A symbolic link counts as a folder only with `follow`.
    A `shared` folder may belong to several users if it is sticky: then each can delete only its own files. Raises
    `OutboxUnavailable`.
    """
    try:
        for folder in reversed([path, *path.parents]):
            _make_missing(folder)
        if not path.is_dir() or (path.is_symlink() and not follow):
            raise OutboxUnavailable(f"{path} is not a folder", hint="choose another home: HUBQUEUE_HOME")
        if not (shared and path.stat().st_mode & stat.S_ISVTX):
            ownership.refuse_folder(path)
    except OSError as error:
        raise OutboxUnavailable(f"cannot make {path}: {error.strerror}", hint=_WRITABLE) from error


def _make_missing(folder: Path) -> None:
    if folder.is_dir():
        return
    with suppress(FileExistsError):  # another process was faster, or it is not a folder
        folder.mkdir(mode=0o700)
        # Against a strange umask. Some file systems cannot; then the folder is no more open than that.
        with suppress(OSError):
            folder.chmod(0o700)


def open_private(path: Path, flags: int) -> int:
    """Open a file of this user, never through a symbolic link, and return the descriptor. New files are made 0600.

    Raises OSError for what is not a plain file, without blocking, and for a file of another user.
    """
    made = flags & os.O_CREAT and not path.exists()
    descriptor = ownership.open_plain(path, flags | getattr(os, "O_NOFOLLOW", 0))
    if not ownership.is_ours(os.fstat(descriptor)):
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
    if made and hasattr(os, "fchmod"):
        with suppress(OSError):  # as for a folder
            os.fchmod(descriptor, 0o600)
    return descriptor


def sync_folder(path: Path) -> None:
    """Sync a folder's own entries (a new or renamed file) to the disk, where the file system can do that."""
    if os.name == "nt":
        return  # a folder cannot be opened there, and NTFS logs its own changes
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in mounts.CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def unsynced(path: Path) -> list[Path]:
    """This folder and those above it whose names may not be on the disk yet.

    The missing ones, and the deepest existing one: the process that made it may have died before syncing its name.
    """
    there = next(each for each in (path, *path.parents) if each.is_dir())
    return [each for each in (path, *path.parents) if each.is_relative_to(there)]


def sync_names(folders: Iterable[Path]) -> None:
    """Sync the names of folders to the disk, except where a parent may not be opened."""
    for folder in folders:
        with suppress(PermissionError):
            sync_folder(folder.parent)
