"""How a command ends: by a signal, handled on a thread, and by `hubqueue stop`.

A handler of Python's runs between two steps of the main thread, which may hold the very lock that the handler wants: an
`Event.set` in a handler stops for ever when it meets `Event.wait` there. So a handler only writes a byte.

A worker can live inside a training or a drain, under the same pid as these; so only a process of `hubqueue worker` holds
the lock that says that it may be stopped, and nothing else is ever sent a signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hubqueue.domain.quantities import plural
from hubqueue.outbox.locks import Lock, forget, is_held

if TYPE_CHECKING:
    from hubqueue.config.home import Home
    from hubqueue.outbox.outbox import Outbox

_PREFIX = "stoppable-"
_LOOK = 0.05
# How long a worker that has just been started may need until it can be stopped.
_START = 5.0


def on_end(act: Callable[[], object]) -> None:
    """Call `act` on a thread of its own for each SIGINT and SIGTERM that comes from now on."""
    heard, tell = os.pipe()
    os.set_blocking(tell, False)

    def listen() -> None:
        while os.read(heard, 1):
            act()

    def handle(_number: int, _frame: FrameType | None) -> None:
        os.write(tell, b"!")

    threading.Thread(target=listen, name="hubqueue-signals", daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


@contextlib.contextmanager
def stoppable(home: Home) -> Iterator[None]:
    """Say that this process may be ended by `hubqueue stop`."""
    for left_behind in home.locks.glob(f"{_PREFIX}*.lock"):
        forget(left_behind)
    lock = Lock(_lock(home, socket.gethostname(), os.getpid()))
    lock.try_acquire()
    try:
        yield
    finally:
        lock.release()
        forget(lock.path)


def stop_workers(outbox: Outbox, *, timeout: float, say: Callable[[str], object]) -> bool:
    """End the workers of this home on this machine, and say what was done; whether all have ended."""
    from hubqueue.worker.daemon import worker_lives

    host, pause = socket.gethostname(), threading.Event()
    deadline = time.monotonic() + _START
    while not (workers := _alive(outbox)) and worker_lives(outbox.home):
        if time.monotonic() > deadline:
            break
        pause.wait(_LOOK)  # it is just starting
    told: list[tuple[int, Path]] = []
    for name, pid, where in workers:
        if where != host:
            say(f"the worker with pid {pid} runs on {where}: stop it there")
        elif not is_held(_lock(outbox.home, where, pid)):
            say(f"pid {pid} is a drain or a training that sends by itself: left alone")
        else:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGTERM)
            told.append((pid, outbox.worker_lock(name)))
    deadline = time.monotonic() + timeout
    while (running := [each for each in told if is_held(each[1])]) and time.monotonic() < deadline:
        pause.wait(_LOOK)
    for pid, _ in running:
        say(f"the worker with pid {pid} is still ending; look again: hubqueue status")
    if len(told) > len(running):
        say(f"{plural(len(told) - len(running), 'worker')} stopped")
    if not workers:
        say("no worker is running")
    return not running


def _alive(outbox: Outbox) -> list[tuple[str, int, str]]:
    return [
        (row["id"], row["pid"], row["host"])
        for row in outbox.stats.workers()
        if is_held(outbox.worker_lock(row["id"]))
    ]


def _lock(home: Home, host: str, pid: int) -> Path:
    return home.locks / f"{_PREFIX}{host}-{pid}.lock"
