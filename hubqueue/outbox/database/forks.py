"""Forks of a process that has databases open: nobody is inside one at that moment, and the child gets new handles.

SQLite notes its locks in the memory of the process. A child that inherits the note of a transaction, which a thread of
its parent has open, could never write again.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Protocol

# How long a fork waits for a thread that is inside a database, in seconds.
_STILLNESS = 5.0


class Forked(Protocol):
    """What a fork has to spare: locks that are held while a thread is inside, and handles to be made new."""

    def locks(self) -> tuple[Any, ...]: ...

    def after_fork(self) -> None: ...


_LIVING: weakref.WeakSet[Any] = weakref.WeakSet()
_GATE = threading.Lock()
_HELD: list[Any] = []


def watch(each: Forked) -> None:
    """Keep it whole through forks, as long as it lives."""
    _LIVING.add(each)


def _before() -> None:
    _GATE.acquire()
    for each in list(_LIVING):
        _HELD.extend(lock for lock in each.locks() if lock.acquire(timeout=_STILLNESS))


def _in_parent() -> None:
    while _HELD:
        _HELD.pop().release()
    _GATE.release()


def _in_child() -> None:
    _HELD.clear()
    _GATE.release()
    for each in list(_LIVING):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
