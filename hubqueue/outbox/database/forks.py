"""Forks of a process that has databases open: no thread is using one at that moment, and the child gets new handles.

SQLite records its locks in the memory of the process. A child that inherits the record of a transaction which a thread
of its parent has open could never write again.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Protocol

# How long a fork waits for a thread that is using a database, in seconds.
_LOCK_TIMEOUT = 5.0


class Forked(Protocol):
    """What a fork needs of a database: the locks of the threads that use it, and new handles in the child."""

    def locks(self) -> tuple[Any, ...]: ...

    def after_fork(self) -> None: ...


_WATCHED: weakref.WeakSet[Any] = weakref.WeakSet()
_GATE = threading.Lock()
_HELD: list[Any] = []


def watch(each: Forked) -> None:
    """Protect it in every fork, until it is garbage-collected."""
    _WATCHED.add(each)


def _before() -> None:
    _GATE.acquire()
    for each in list(_WATCHED):
        _HELD.extend(lock for lock in each.locks() if lock.acquire(timeout=_LOCK_TIMEOUT))


def _in_parent() -> None:
    while _HELD:
        _HELD.pop().release()
    _GATE.release()


def _in_child() -> None:
    _HELD.clear()
    _GATE.release()
    for each in list(_WATCHED):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
