"""The detached worker: started by a training process, alive after it, at most one a home.

It is a process of its own session with its output in `worker.log`; keys reach it through its environment or
`credentials.toml`, never through its arguments.
"""

from __future__ import annotations

from hubqueue import launch
from hubqueue.home import Home
from hubqueue.locks import Lock, is_held


def detached_lock(home: Home) -> Lock:
    """The lock that makes a detached worker the only one of its home."""
    return Lock(home.locks / "detached.lock")


def worker_lives(home: Home) -> bool:
    """Whether any worker of this home lives, detached or in the foreground. Costs microseconds."""
    paths = (*home.locks.glob("worker-*.lock"), home.locks / "detached.lock")
    return any(is_held(path) for path in paths)


def ensure_worker(home: Home, *, config: str | None = None) -> bool:
    """Start a detached worker for this home unless one lives; whether one was started. Does not wait for it.

    Raises `WorkerError` when no process can be started (once, where that cannot change).
    """
    if worker_lives(home):
        return False
    return launch.start(home, config)
