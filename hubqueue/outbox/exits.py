"""The exit codes of processes that ended without `finish`.

Python's own callbacks at the end of a process do not know its exit code; the C library does. A process that ends leaves a
report: the ids of its runs, and behind them the exit code, which the C library writes when the process exits. Nothing of
Python runs then. A process that dies in between leaves a report without a code. Only glibc can do this.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubqueue.config.home import open_private
from hubqueue.domain.errors import OutboxUnavailable
from hubqueue.outbox.locks import is_held

if TYPE_CHECKING:
    import ctypes

_UNBUFFERED = 2  # _IONBF of <stdio.h>
_LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Exit:
    """The report of one process that has ended. `code` is None when it died before it could exit."""

    path: Path
    runs: tuple[str, ...]
    code: int | None


def can_report() -> bool:
    """Whether the C library of this process can report an exit code."""
    return _library() is not None


def report(folder: Path, runs: Collection[str]) -> bool:
    """Have the exit code of this process reported, which is about to end. False when that is not possible."""
    library = _library()
    if library is None:
        return False
    import ctypes
    import fcntl

    path = _folder(folder) / f"{os.getpid()}-{secrets.token_hex(4)}.lock"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
    # Not a `Lock`: the interpreter would release that before the C library writes.
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, " ".join(runs).encode() + b"\n")
    library.fdopen.restype = ctypes.c_void_p
    stream = library.fdopen(descriptor, b"a")
    if not stream:
        os.close(descriptor)
        return False
    library.setvbuf(ctypes.c_void_p(stream), None, _UNBUFFERED, ctypes.c_size_t(0))
    # int fputc(int, FILE *) has the shape of a callback of on_exit, void f(int status, void *): it writes the status.
    written = library.on_exit(ctypes.cast(library.fputc, ctypes.c_void_p), ctypes.c_void_p(stream))
    return bool(written == 0)


def reported(folder: Path) -> Iterator[Exit]:
    """The reports of the processes that have ended."""
    if not _folder(folder).is_dir():
        return
    for path in sorted(_folder(folder).glob("*.lock")):
        with suppress(OSError, OutboxUnavailable):
            if not is_held(path):
                yield _read(path)


def forget(exit: Exit) -> None:
    """Delete a report that was taken into account."""
    with suppress(OSError):
        exit.path.unlink(missing_ok=True)


def _read(path: Path) -> Exit:
    descriptor = open_private(path, os.O_RDONLY)
    try:
        content = os.read(descriptor, _LONGEST)
    finally:
        os.close(descriptor)
    ids, _, code = content.partition(b"\n")
    runs = tuple(each for each in ids.decode("ascii", "replace").split() if each.isalnum())
    return Exit(path, runs, code[0] if len(code) == 1 else None)


def _folder(locks: Path) -> Path:
    return locks / "exits"


def _library() -> ctypes.CDLL | None:
    import ctypes  # a process that only reads reports does not need it

    try:
        library = ctypes.CDLL(None)
        return library if all(hasattr(library, name) for name in _NEEDED) else None
    except (OSError, TypeError):  # Windows, or a Python without a C library of its own
        return None


_NEEDED = ("on_exit", "fputc", "fdopen", "setvbuf")
