"""The detached worker: started by a training process, alive after it, one for each address and account.

It is a process of its own session with its output in `worker.log`; keys reach it through its environment or
`credentials.toml`, never through its arguments.
"""

from __future__ import annotations

from hubqueue.config.home import Home
from hubqueue.outbox.locks import is_held, serving, waiting
from hubqueue.worker import launch


def worker_lives(home: Home, destination: str | None = None) -> bool:
    """Whether a worker of this home lives, in the foreground or not, that takes care of a row of `destinations`, or any."""
    if destination is not None:
        return is_held(serving(home.locks, destination)) or is_held(waiting(home.locks, destination))
    return any(is_held(path) for path in home.locks.glob("worker-*.lock"))


def start_worker(home: Home, *, config: str | None = None) -> None:
    """Start a detached worker with this environment. Raises `WorkerError`."""
    launch.start(home, "", config)


def ensure_worker(home: Home, destination: str, *, config: str | None = None) -> bool:
    """Start a detached worker with this environment unless one lives that sends for a row of `destinations`.

    Whether one was started. Does not wait for it: one that finds another at work for all that it could do leaves at
    once. Raises `WorkerError` when no process can be started (once, where that cannot change).
    """
    if worker_lives(home, destination):
        return False
    return launch.start(home, destination, config)
