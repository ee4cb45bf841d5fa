"""The home: the folder that holds the outbox, the spool, the locks, the keys and the log.

Files are made 0600 in a 0700 folder whatever the umask, and none is opened through a symbolic link.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hubqueue.config import Config, parse
from hubqueue.errors import ConfigError, OutboxUnavailable

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "lustre",
        "ceph",
        "gpfs",
        "beegfs",
        "9p",
        "afs",
        "glusterfs",
        "pvfs2",
        "orangefs",
        "panfs",
        "virtiofs",
    ]
)
_LOCAL_FUSE = frozenset({"fuseblk", "fuse.fuse-overlayfs"})


@dataclass(frozen=True, slots=True)
class Home:
    """Where one outbox lives."""

    path: Path

    @classmethod
    def locate(
        cls, home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ
    ) -> Home:
        """The home: the argument, else HUBQUEUE_HOME, else the platform's user data folder."""
        chosen = home if home is not None else environ.get("HUBQUEUE_HOME") or None
        if chosen is None:
            from platformdirs import user_data_path

            return cls(user_data_path("hubqueue", appauthor=False))
        return cls(Path(os.path.abspath(os.path.expanduser(chosen))))

    @property
    def outbox(self) -> Path:
        return self.path / "outbox.db"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

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

    def create(self) -> None:
        """Make the home and its folders, private. Raises `OutboxUnavailable`."""
        if self.path.is_symlink():
            hint = f"use the folder it points to: HUBQUEUE_HOME={os.path.realpath(self.path)}"
            raise OutboxUnavailable(f"the home {self.path} is a symbolic link", hint=hint)
        made = [] if self.outbox.exists() else unsynced(self.path)
        for folder in (self.path, self.spool, self.locks):
            make_private_folder(folder)
        sync_names(made)

    def load_config(self, config: Path | None, environ: Mapping[str, str]) -> Config:
        """The settings: of the file given, else of HUBQUEUE_CONFIG, else of config.toml here, else defaults.

        Raises `ConfigError` with every problem; a file that was named has to be there.
        """
        named = config or (Path(environ["HUBQUEUE_CONFIG"]) if environ.get("HUBQUEUE_CONFIG") else None)
        chosen = named or self.config_file
        try:
            text = chosen.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            if named is not None:
                hint = "name an existing file with --config or HUBQUEUE_CONFIG"
                raise ConfigError((f"there is no configuration {chosen}",), hint=hint) from None
            return parse("", environ, source="the environment")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError((f"cannot read the configuration {chosen}: {reason}",)) from error
        return parse(text, environ, source=str(chosen))

    def file_system(self) -> str:
        """The type of the file system the home is on, such as ext4 or nfs4; "unknown" where nobody tells."""
        try:
            mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            return "unknown"
        return type_of_mount(os.path.realpath(self.path), mounts)

    def is_network_file_system(self) -> bool:
        """Whether the home is on a network file system, where a write-ahead log is not safe."""
        found = self.file_system()
        return found in _NETWORK or (found.startswith("fuse") and found not in _LOCAL_FUSE)


def type_of_mount(path: str, mounts: Iterable[str]) -> str:
    """The file system type that a real path is on, by lines of /proc/self/mountinfo (proc(5))."""
    best, found = -1, "unknown"
    for line in mounts:
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = _unescape(fields[4])
        under = path == point or path.startswith(point.rstrip("/") + "/")
        if under and len(point) >= best:  # of two mounts at one place the later one is seen
            best, found = len(point), after.split(" ")[0]
    return found


def make_private_folder(path: Path) -> None:
    """Make a folder 0700 whatever the umask; one that is there stays as it is, if it is ours and a folder."""
    try:
        path.mkdir(mode=0o700, parents=True)
        path.chmod(0o700)
    except FileExistsError:
        if not path.is_dir() or path.is_symlink():
            raise OutboxUnavailable(
                f"{path} is not a folder", hint="choose another home: HUBQUEUE_HOME"
            ) from None
        if hasattr(os, "getuid") and path.stat().st_uid not in (os.getuid(), 0):
            hint = "choose a folder of your own: HUBQUEUE_HOME"
            raise OutboxUnavailable(f"{path} belongs to another user", hint=hint) from None
    except OSError as error:
        hint = "choose a writable home: HUBQUEUE_HOME"
        raise OutboxUnavailable(f"cannot make {path}: {error.strerror}", hint=hint) from error


def open_private(path: Path, flags: int) -> int:
    """Open a file of ours, made 0600 whatever the umask, never through a symbolic link; the descriptor."""
    guarded = flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    made = flags & os.O_CREAT and not path.exists()
    descriptor = os.open(path, guarded, 0o600)
    if made and hasattr(os, "fchmod"):
        os.fchmod(descriptor, 0o600)
    return descriptor


def sync_folder(path: Path) -> None:
    """Bring a folder's own entries (a new or renamed file) to the disk."""
    if os.name == "nt":
        return  # a folder cannot be opened there, and NTFS logs its own changes
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unsynced(path: Path) -> list[Path]:
    """The folders on the way to this one whose names may not be on the disk yet.

    Those that are missing, and the deepest one that is there: whoever made it may have died before its name was synced.
    """
    there = next(each for each in (path, *path.parents) if each.is_dir())
    return [each for each in (path, *path.parents) if each.is_relative_to(there)]


def sync_names(folders: Iterable[Path]) -> None:
    """Bring the names of folders to the disk, as far as their parents may be opened."""
    for folder in folders:
        with suppress(PermissionError):
            sync_folder(folder.parent)


def _unescape(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
