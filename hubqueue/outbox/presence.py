"""Which processes of a run live: each holds a lock file, which the kernel releases with its process.

The first process holds `run-ID.lock`, the only one that an older hubqueue looks at. The next ones hold `run-ID.1.lock`,
`run-ID.2.lock` and so on. The files stay and are used again: if a file were deleted, another process could lock the
deleted one and count as dead. A process holds one lock for a run, whatever the number of its `Run` objects.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubqueue.outbox.locks import Lock, is_held

# More processes than any run has. One that finds no free number has no lock, and its end is not noticed.
_MOST = 4096


@dataclass(slots=True)
class _Held:
    lock: Lock
    users: int


class _Own:
    """The locks of this process, by the first lock file of their run."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.held: dict[Path, _Held] = {}

    def after_fork(self) -> None:
        """Forget those of the parent: the child has none until it uses a run."""
        self.guard = threading.Lock()  # a thread of the parent may have had the old one
        self.held = {}


_OWN = _Own()


def enter(first: Path) -> bool:
    """Show that this process lives, until `leave` is called as often. False when another process is in the run already.

    `first` is the first lock file of the run. Raises `OutboxUnavailable` for a file that cannot be locked.
    """
    with _OWN.guard:
        held = _OWN.held.get(first)
        if held is not None and held.lock.path.exists():
            held.users += 1
            return True
        users = 1 + (held.users if held is not None else 0)
        lock = Lock(first)
        is_first = lock.try_acquire()
        if not is_first:
            free = map(Lock, (_numbered(first, number) for number in range(1, _MOST)))
            lock = next((each for each in free if each.acquire(0)), lock)
        _OWN.held[first] = _Held(lock, users)
        return is_first


def leave(first: Path) -> None:
    """Release the lock of this process after its last use."""
    with _OWN.guard:
        held = _OWN.held.get(first)
        if held is None:
            return
        held.users -= 1
        if not held.users:
            del _OWN.held[first]
            held.lock.release()


def lead(first: Path) -> None:
    """Hold the first lock in place of a numbered one, if it is free now: an older worker looks at no other."""
    with _OWN.guard:
        held, lock = _OWN.held.get(first), Lock(first)
        if held is not None and held.lock.path != first and lock.acquire(0):
            held.lock.release()
            held.lock = lock


def lives(first: Path) -> bool:
    """Whether a process of the run lives."""
    return any(map(is_held, _files(first)))


def others_live(first: Path) -> bool:
    """Whether a process of the run lives besides this one."""
    held = _OWN.held.get(first)
    mine = None if held is None else held.lock.path
    return any(is_held(path) for path in _files(first) if path != mine)


def _files(first: Path) -> Iterator[Path]:
    yield first
    for number in range(1, _MOST):
        path = _numbered(first, number)
        if not path.exists():
            return
        yield path


def _numbered(first: Path, number: int) -> Path:
    return first.with_name(f"{first.stem}.{number}{first.suffix}")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_OWN.after_fork)
