"""Who may change the files that we rely on. Files that another user could write or replace are refused.

Promises: opening never blocks (on a pipe, a device), every read has a limit, and each refusal has the command that
fixes it. Root is trusted, and so is the user's private group: a group with the user's name and no other member.
Changes nothing itself.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from hubqueue.config.filesystem import mounts
from hubqueue.domain.errors import OutboxUnavailable

LARGEST = 1 << 20
"""The largest file of settings that is read, in bytes."""

_ELSEWHERE = "choose another home: HUBQUEUE_HOME"
# Opening a pipe does not block, and a terminal does not become our controlling terminal.
_WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_HAS_OWNERS = hasattr(os, "geteuid")


def is_ours(found: os.stat_result) -> bool:
    """Whether a file belongs to this user, or to root."""
    return not _HAS_OWNERS or found.st_uid in (os.geteuid(), 0)


def open_plain(path: str | os.PathLike[str], flags: int, mode: int = 0o600) -> int:
    """Open a plain file without blocking, and return the descriptor. Raises OSError for anything else."""
    descriptor = os.open(path, flags | _WITHOUT_WAITING | getattr(os, "O_BINARY", 0), mode)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is not a plain file", str(path))


def read_small(path: Path, *, follow: bool = True) -> bytes:
    """The content of a small file. Raises OSError if it is missing, not a plain file, or larger than `LARGEST`."""
    content, _ = _read(path, follow=follow)
    return content


def read_trusted(path: Path, *, follow: bool = True, named: bool = False) -> tuple[bytes, os.stat_result]:
    """The content and the status of a small file that only this user (or root) can change.

    A file `named` by the user may belong to another user. Raises OSError as `read_small` does, and `OutboxUnavailable`
    with the command that fixes it.
    """
    content, found = _read(path, follow=follow)
    if not named and not is_ours(found):
        raise _of_another(path, found, f"remove it, or take it over: chown {_me()} {shlex.quote(str(path))}")
    if _others_write(path, found):
        raise _open_to_others(path, found)
    return content, found


def refuse_folder(path: Path) -> None:
    """Refuse a folder that belongs to another user, or that others may write. Raises `OutboxUnavailable`."""
    found = path.stat()
    if not is_ours(found):
        raise _of_another(
            path, found, f"{_ELSEWHERE}, or take it over: chown {_me()} {shlex.quote(str(path))}"
        )
    if _others_write(path, found):
        raise _open_to_others(path, found)


def refuse_unsafe_path(path: Path) -> None:
    """Refuse a path that another user could point to another folder, by a link or in a folder above it.

    Raises `OutboxUnavailable`.
    """
    if not _HAS_OWNERS:
        return
    for each, found in _steps(path):
        if stat.S_ISLNK(found.st_mode) and not is_ours(found):
            raise _of_another(
                each,
                found,
                f"use the folder it points to, if you trust it: HUBQUEUE_HOME={os.path.realpath(each)}",
            )
    real = Path(os.path.realpath(path))
    below: os.stat_result | None = None
    for each, found in _steps(real):
        is_above = each != real and stat.S_ISDIR(found.st_mode)
        if is_above and found.st_mode & stat.S_IWOTH and mounts.has_modes(each):
            quoted = shlex.quote(str(each))
            if not found.st_mode & stat.S_ISVTX:
                why = f"every user can write to {each} (mode {_mode(found)}), and so could replace {path}"
                raise OutboxUnavailable(why, hint=f"chmod o-w {quoted} (its owner can), or {_ELSEWHERE}")
            if below is not None and not is_ours(below):
                raise OutboxUnavailable(
                    f"{path} is in a folder of {_owner(below)} in {each}", hint=_ELSEWHERE
                )
        below = found


def warnings(path: Path) -> Iterator[tuple[str, str]]:
    """What is unsafe about a folder, but not refused: a line and its hint each."""
    if not _HAS_OWNERS or not path.is_dir():
        return
    found = path.stat()
    if not mounts.has_modes(path):
        yield (
            f"{path} is on {mounts.type_of(path)}, which has no permissions per file",
            _ELSEWHERE,
        )
    elif found.st_mode & 0o055:
        yield f"{path} can be read by others (mode {_mode(found)})", f"chmod go-rwx {shlex.quote(str(path))}"
    for each, above in _steps(Path(os.path.realpath(path)).parent):
        if not is_ours(above):
            yield f"{each}, above the home, belongs to {_owner(above)}, who could replace it", _ELSEWHERE


def _read(path: Path, *, follow: bool) -> tuple[bytes, os.stat_result]:
    guard = 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(open_plain(path, os.O_RDONLY | guard), "rb") as file:
        found = os.fstat(file.fileno())
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST >> 20} MiB", str(path))
    return content, found


def _steps(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The path and the folders above it; those that do not exist are left out."""
    for each in (path, *path.parents):
        try:
            yield each, each.lstat()
        except OSError:
            continue


def _others_write(path: Path, found: os.stat_result) -> bool:
    if not _HAS_OWNERS or not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    if not found.st_mode & stat.S_IWOTH and _is_private_group(found):
        return False
    return mounts.has_modes(path)


def _is_private_group(found: os.stat_result) -> bool:
    """Whether the group has this user as its only member, as on systems with a umask of 002.

    The group of root never counts: containers put any user into it.
    """
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    alone = group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}
    return found.st_gid == user.pw_gid != 0 and alone


def _of_another(path: Path, found: os.stat_result, hint: str) -> OutboxUnavailable:
    return OutboxUnavailable(f"{path} belongs to {_owner(found)}", hint=hint)


def _open_to_others(path: Path, found: os.stat_result) -> OutboxUnavailable:
    why = f"{path} can be changed by others (mode {_mode(found)})"
    return OutboxUnavailable(why, hint=f"chmod go-w {shlex.quote(str(path))}")


def _owner(found: os.stat_result) -> str:
    import pwd

    try:
        return f"another user, {pwd.getpwuid(found.st_uid).pw_name}"
    except KeyError:
        return f"another user, number {found.st_uid}"


def _me() -> int:
    return os.geteuid()


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"
