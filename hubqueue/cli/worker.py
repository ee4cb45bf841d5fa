"""`hubqueue worker` and `hubqueue stop`.

A worker can also run inside a training or a drain, under their pid. So only a process of `hubqueue worker` holds the
lock that marks it as stoppable. `hubqueue stop` sends a signal to no other process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hubqueue.cli.arguments import HomeOptions, Seconds, pass_options
from hubqueue.cli.frame import ATTENTION, DONE, exit_with, on_signal
from hubqueue.domain.errors import ConfigError
from hubqueue.domain.quantities import plural
from hubqueue.outbox.locks import Lock, forget, is_held

if TYPE_CHECKING:
    from hubqueue.config.home import Home
    from hubqueue.outbox.outbox import Outbox
    from hubqueue.worker.service import Service

_LOCK_PREFIX = "stoppable-"
_POLL = 0.05
# Seconds until a background worker must hold its locks.
_START = 15.0
# Seconds until a worker that is just starting can be stopped.
_STOPPABLE = 5.0
# Seconds that workers get to exit if the configuration, which has their grace period, cannot be read.
_GRACE = 20.0


@click.command()
@click.option(
    "--idle-exit",
    type=Seconds(min=0),
    metavar="SECONDS",
    help="Exit after SECONDS without work.",
)
@click.option(
    "--detach", is_flag=True, help="Start a worker in the background, unless one is running, and return."
)
@click.option(
    "--detached",
    is_flag=True,
    hidden=True,
    help="Started by a training process: the only worker of its home, logs to worker.log.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every attempt and every heartbeat.")
@pass_options
def worker(
    options: HomeOptions, idle_exit: float | None, detach: bool, detached: bool, verbose: bool
) -> None:
    """Send what is waiting, until Ctrl-C.

    It runs in the foreground, for systemd, tmux or a container, and logs to stderr. With --detach it runs in the
    background instead, logs to worker.log in the home, and exits when it is idle.

    SIGTERM or Ctrl-C stops it: no new upload starts, a running upload gets a short grace period, and the rest stays
    in the outbox. A second signal stops it at once.

    \b
    Examples:
      hubqueue worker
      hubqueue worker --detach
      hubqueue worker --idle-exit 600
    """
    if detach:
        _detach(options, idle_exit)
    from hubqueue.outbox.outbox import COURTESY
    from hubqueue.worker import log as journal
    from hubqueue.worker.service import Service, idle_for

    os.umask(0o077)
    # Before the first lock or log is written: a folder that is not a hubqueue home must not be changed.
    options.home().create()
    level = logging.DEBUG if verbose else logging.INFO
    log_to(options.home() if detached else None, level)
    with options.open(courtesy=COURTESY) as outbox, _stoppable(outbox.home):
        if detached and idle_exit is None:
            idle_exit = outbox.config.worker.idle_exit.total_seconds()
        service = Service(outbox, emit=journal.write)
        stop_on_signal(service)
        if idle_exit is None:
            service.run(only_one=detached)
        else:
            until = idle_for(outbox, service.worker, idle_exit)
            service.run(until=until, every=min(5.0, max(0.2, idle_exit / 4)), only_one=detached)


def _detach(options: HomeOptions, idle_exit: float | None) -> None:
    """Start a worker in the background, unless one is running."""
    from hubqueue.domain.errors import WorkerError
    from hubqueue.worker.daemon import start_worker
    from hubqueue.worker.routes import sendable

    if idle_exit is not None:
        raise click.UsageError(
            "--idle-exit is for a worker in the foreground; set worker.idle_exit in the configuration"
        )
    with options.open() as outbox:
        outbox.note_destinations()
        mine = sendable(outbox)
    if all(map(is_held, mine)):
        click.echo("a worker of this home is already running")
        exit_with(DONE)
    home = options.home()
    start_worker(home, config=options.config_option)
    deadline, pause = time.monotonic() + _START, threading.Event()
    while not all(map(is_held, mine)):
        if time.monotonic() > deadline:
            raise WorkerError("the worker did not start", hint=f"its log shows why: {home.worker_log}")
        pause.wait(0.02)
    click.echo(f"worker started, it logs to {home.worker_log}")
    exit_with(DONE)


@click.command()
@click.option(
    "--timeout",
    type=Seconds(min=0),
    metavar="SECONDS",
    help="Wait at most SECONDS for them to exit [default: worker.grace plus 10 s].",
)
@pass_options
def stop(options: HomeOptions, timeout: float | None) -> None:
    """Stop the workers of this home on this machine.

    It sends SIGTERM and waits for them to exit. What is not sent stays in the outbox. A drain is not stopped, nor a
    training that sends from its own process (worker="thread").

    \b
    Example:
      hubqueue stop
    """
    try:
        has_outbox = options.has_outbox()
    except ConfigError:
        # The workers still have the configuration they started with: to stop them, their locks are enough.
        stopped = _stop_by_locks(options.home(), timeout=_GRACE if timeout is None else timeout)
        exit_with(DONE if stopped else ATTENTION)
    if not has_outbox:
        click.echo("no worker is running")
        exit_with(DONE)
    with options.open_to_read() as outbox:
        grace = outbox.config.worker.grace.total_seconds()
        stopped = _stop_workers(outbox, timeout=grace + 10 if timeout is None else timeout, say=click.echo)
    exit_with(DONE if stopped else ATTENTION)


@contextlib.contextmanager
def _stoppable(home: Home) -> Iterator[None]:
    """Mark this process as one that `hubqueue stop` may stop."""
    for left_behind in home.locks.glob(f"{_LOCK_PREFIX}*.lock"):
        forget(left_behind)
    lock = Lock(_stoppable_lock(home, socket.gethostname(), os.getpid()))
    lock.try_acquire()
    try:
        yield
    finally:
        lock.release()
        forget(lock.path)


def _stop_workers(outbox: Outbox, *, timeout: float, say: Callable[[str], object]) -> bool:
    """Stop the workers of this home on this machine, and report it; whether all have exited."""
    from hubqueue.worker.daemon import worker_lives

    host, pause = socket.gethostname(), threading.Event()
    deadline = time.monotonic() + _STOPPABLE
    while not (workers := _alive(outbox)) and worker_lives(outbox.home):
        if time.monotonic() > deadline:
            break
        pause.wait(_POLL)  # it is just starting
    signalled: list[tuple[int, Path]] = []
    for name, pid, where in workers:
        if where != host:
            say(f"the worker with pid {pid} runs on {where}: stop it there")
        elif not is_held(_stoppable_lock(outbox.home, where, pid)):
            say(f"pid {pid} is a drain or a training that sends from its own process: not stopped")
        else:
            with contextlib.suppress(ProcessLookupError):  # it has just exited
                os.kill(pid, signal.SIGTERM)
            signalled.append((pid, outbox.worker_lock(name)))
    running = _wait_for_exit(signalled, timeout)
    for pid, _ in running:
        say(f"the worker with pid {pid} is still stopping; check later: hubqueue status")
    if len(signalled) > len(running):
        say(f"{plural(len(signalled) - len(running), 'worker')} stopped")
    if not workers:
        say("no worker is running")
    return not running


def _stop_by_locks(home: Home, *, timeout: float) -> bool:
    """Stop the workers of this home on this machine that their locks name; whether all have exited."""
    begin = f"{_LOCK_PREFIX}{socket.gethostname()}-"
    numbers = (
        (path.name.removeprefix(begin).removesuffix(".lock"), path)
        for path in home.locks.glob(f"{begin}*.lock")
    )
    held = [(int(pid), path) for pid, path in numbers if pid.isdecimal() and is_held(path)]
    for pid, _ in held:
        with contextlib.suppress(ProcessLookupError):  # it has just exited
            os.kill(pid, signal.SIGTERM)
    running = _wait_for_exit(held, timeout)
    if running:
        click.echo("a worker is still stopping")
    click.echo(f"{plural(len(held) - len(running), 'worker')} stopped" if held else "no worker is running")
    return not running


def _wait_for_exit(signalled: list[tuple[int, Path]], timeout: float) -> list[tuple[int, Path]]:
    """Wait until the processes, each with a lock that it holds while it lives, have exited; those that have not."""
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while (running := [each for each in signalled if is_held(each[1])]) and time.monotonic() < deadline:
        pause.wait(_POLL)
    return running


def _alive(outbox: Outbox) -> list[tuple[str, int, str]]:
    return [
        (row["id"], row["pid"], row["host"])
        for row in outbox.stats.workers()
        if is_held(outbox.worker_lock(row["id"]))
    ]


def _stoppable_lock(home: Home, host: str, pid: int) -> Path:
    return home.locks / f"{_LOCK_PREFIX}{host}-{pid}.lock"


def stop_on_signal(service: Service) -> None:
    """Let the first signal stop the service within its grace period, and the second one at once."""
    on_signal(lambda: service.stop(timedelta(0) if service.stopping else None))


def log_to(home: Home | None, level: int) -> None:
    """Log to stderr, or to the home's worker.log, which is rotated."""
    handler = logging.StreamHandler() if home is None else _log_file(home)
    handler.setFormatter(_Utc("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ"))
    logger = logging.getLogger("hubqueue")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def _log_file(home: Home) -> logging.Handler:
    from logging.handlers import RotatingFileHandler

    from hubqueue.config.home import open_private
    from hubqueue.domain.errors import WorkerError

    class Private(RotatingFileHandler):
        """Created with mode 0600, and never opened through a symbolic link."""

        def _open(self) -> TextIOWrapper:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            descriptor = open_private(Path(self.baseFilename), flags)
            return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    try:
        return Private(home.worker_log, maxBytes=1_000_000, backupCount=2)
    except OSError as error:
        message = f"cannot write {home.worker_log}: {error.strerror or error}"
        raise WorkerError(message, hint="it must be a plain file; hubqueue check finds out why") from error


class _Utc(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]  # as the manual of logging has it
