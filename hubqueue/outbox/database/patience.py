"""How long a call waits for other writers: what the configuration says, or less where a thread has said so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hubqueue.domain.errors import OutboxUnavailable

_LIMITS = threading.local()


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """Within this, the calls of this thread wait for other writers no longer than so many seconds each."""
    before, _LIMITS.seconds = limit(), seconds
    try:
        yield
    finally:
        _LIMITS.seconds = before


def limit() -> float | None:
    """How long the calls of this thread wait at most; None where it has not said so."""
    found: float | None = getattr(_LIMITS, "seconds", None)
    return found


@contextmanager
def alone(lock: threading.RLock) -> Iterator[None]:
    """One thread of this process at a time. Raises `OutboxUnavailable` where this one may not wait that long."""
    seconds = limit()
    if not lock.acquire(timeout=-1 if seconds is None else seconds):
        hint = "save it again a moment later"
        raise OutboxUnavailable("another thread of this process is using the outbox", hint=hint)
    try:
        yield
    finally:
        lock.release()
