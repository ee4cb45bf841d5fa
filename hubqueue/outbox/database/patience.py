"""How long a call waits for a lock: the configured time, or less where a thread has set a limit.

A lock that never comes (its holder is stopped, or a person has opened a transaction) costs a training one full wait: after
one in vain, the next ones are short until one succeeds.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from hubqueue.domain.errors import OutboxLocked

_LIMITS = threading.local()
# In seconds: a wait after one in vain.
_SHORT = 0.05
# The locks that the last wait of this process did not get.
_IN_VAIN: set[Hashable] = set()


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """In this context each call of this thread waits at most `seconds` for other writers."""
    before = limit()
    _LIMITS.seconds = seconds if before is None else min(before, seconds)
    try:
        yield
    finally:
        _LIMITS.seconds = before


def limit() -> float | None:
    """The limit of this thread in seconds; None without one.

    When the interpreter ends, other threads are frozen: a lock that one of them holds is never released.
    """
    found: float | None = getattr(_LIMITS, "seconds", None)
    return min(_SHORT, found or _SHORT) if sys.is_finalizing() else found


def seconds_for(lock: Hashable, usual: float) -> float:
    """How many seconds to wait for a lock for which the usual time is `usual`."""
    least = limit()
    seconds = usual if least is None else min(usual, least)
    return min(seconds, _SHORT) if lock in _IN_VAIN else seconds


def waited(lock: Hashable, *, in_vain: bool) -> None:
    """Note the result of a wait for a lock."""
    if in_vain:
        _IN_VAIN.add(lock)
    else:
        _IN_VAIN.discard(lock)


@contextmanager
def alone(lock: threading.RLock) -> Iterator[None]:
    """Hold `lock`. Raises `OutboxLocked` when that takes longer than the limit of this thread."""
    seconds = limit()
    if not lock.acquire(timeout=-1 if seconds is None else seconds):
        hint = "save it again a moment later"
        raise OutboxLocked("another thread of this process is using the outbox", hint=hint)
    try:
        yield
    finally:
        lock.release()
