"""The detached worker: started by a training process, alive after it, one for each address and account.

It is a process of its own session with its output in `worker.log`; keys reach it through its environment or
`credentials.toml`, never through its arguments.
"""

from __future__ import annotations

import os
import subprocess
import sys

from hubqueue.errors import WorkerError
from hubqueue.home import Home, open_private
from hubqueue.locks import is_held, serving


def worker_lives(home: Home, destination: str | None = None) -> bool:
    """Whether a worker of this home lives, in the foreground or not, that sends for a row of `destinations`, or any."""
    if destination is not None:
        return is_held(serving(home.locks, destination))
    return any(is_held(path) for path in home.locks.glob("worker-*.lock"))


def ensure_worker(home: Home, destination: str, *, config: str | None = None) -> bool:
    """Start a detached worker with this environment unless one lives that sends for a row of `destinations`.

    Whether one was started. Does not wait for it: one that finds another at work for all that it could do leaves at
    once. Raises `WorkerError` when no process can be started.
    """
    if worker_lives(home, destination):
        return False
    if not sys.executable:
        raise WorkerError(
            "this Python does not know its own executable", hint="start one by hand: hubqueue worker"
        )
    # -P: the folder a training script was started in must not shadow modules of the worker.
    command = [sys.executable, "-P", "-m", "hubqueue", "--home", str(home.path), "worker", "--detached"]
    environ = dict(os.environ)
    named = config or environ.get("HUBQUEUE_CONFIG")
    if named:  # a relative path would mean something else in the folder of the home
        environ["HUBQUEUE_CONFIG"] = os.path.abspath(named)
    if "PYTHONPATH" in environ:  # and so would these
        paths = environ["PYTHONPATH"].split(os.pathsep)
        environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths if path)
    try:
        log = open_private(home.worker_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home.path,
                env=environ,
                start_new_session=True,
                close_fds=True,
            )
        finally:
            os.close(log)
    except OSError as error:
        hint = "start one by hand: hubqueue worker"
        raise WorkerError(f"cannot start a worker: {error.strerror or error}", hint=hint) from error
    # Kept, and asked now and then, so that one that has ended does not stay behind as a zombie.
    _CHILDREN[:] = [each for each in (*_CHILDREN, child) if each.poll() is None]
    return True


_CHILDREN: list[subprocess.Popen[bytes]] = []
