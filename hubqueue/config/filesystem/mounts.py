"""What kind of file system a path is on: some have no safe write-ahead log, others no permission bits per file."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.ENOTTY)
"""How a file system says that it cannot sync the names in a folder (some of FUSE, SMB, exFAT)."""
CANNOT_LINK = (
    *(errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL),
    *(errno.EMLINK, errno.EXDEV),
)
"""How it says that it has no hard links, no further one of this file, or none to another disk."""
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
# Permission bits belong to the mount: chmod does not change them, and they say nothing about a single file.
_WITHOUT_MODES = frozenset(
    {"vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "cifs", "smb3", "smbfs", "9p", "drvfs", "vboxsf"}
)
# Of the kernel: no file can be made there.
_PSEUDO = frozenset({"proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "devpts"})


def type_of(path: Path) -> str:
    """The type of the file system a path is on, such as ext4 or nfs4; "unknown" if the system does not say."""
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return "unknown"
    return type_of_mount(os.path.realpath(path), mounts)


def is_network(type: str) -> bool:
    """Whether this is a network file system, where a write-ahead log is not safe."""
    return type in _NETWORK or (type.startswith("fuse") and type not in _LOCAL_FUSE)


def is_pseudo(type: str) -> bool:
    """Whether the files of this file system are made by the kernel only."""
    return type in _PSEUDO


def has_modes(path: Path) -> bool:
    """Whether the file system of a path has permission bits per file."""
    return type_of(path) not in _WITHOUT_MODES


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
        if under and len(point) >= best:  # a later mount at the same path hides the earlier one
            best, found = len(point), after.split(" ")[0]
    return found


def _unescape(point: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
