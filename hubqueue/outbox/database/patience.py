"""How long a call waits for other writers: the configured time, or less where a thread has set a limit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hubqueue.domain.errors import OutboxUnavailable

_LIMITS = threading.local()


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """In this context each call of this thread waits at most `seconds` for other writers."""
    before, _LIMITS.seconds = limit(), seconds
    try:
        yield
    finally:
        _LIMITS.seconds = before


def limit() -> float | None:
    """The limit of this thread in seconds; None without one."""
    found: float | None = getattr(_LIMITS, "seconds", None)
    return found


@contextmanager
def alone(lock: threading.RLock) -> Iterator[None]:
    """Hold `lock`. Raises `OutboxUnavailable` when that takes longer than the limit of this thread."""
    seconds = limit()
    if not lock.acquire(timeout=-1 if seconds is None else seconds):
        hint = "save it again a moment later"
        raise OutboxUnavailable("another thread of this process is using the outbox", hint=hint)
    try:
        yield
    finally:
        lock.release()
