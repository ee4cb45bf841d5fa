"""Commands that send: worker and drain."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hubqueue.cli.frame import ATTENTION, DONE, LEFT, Place, leave, pass_place, run_option
from hubqueue.cli.mistakes import Number
from hubqueue.cli.named import find_run, no_run
from hubqueue.cli.stopping import on_end
from hubqueue.cli.words import until
from hubqueue.domain.lifecycle import State
from hubqueue.domain.quantities import plural
from hubqueue.outbox.locks import is_held

# How many refused entries a drain names.
_SHOWN = 3
# How long a worker in the background may need to come up.
_START = 15.0

if TYPE_CHECKING:
    from hubqueue.cli.progress import Progress
    from hubqueue.config.home import Home
    from hubqueue.outbox.outbox import Outbox
    from hubqueue.worker.service import Service


@click.command()
@click.option(
    "--idle-exit",
    type=Number(min=0),
    metavar="SECONDS",
    help="Exit after SECONDS without work.",
)
@click.option("--detach", is_flag=True, help="Start it in the background, unless one is running, and return.")
@click.option(
    "--detached",
    is_flag=True,
    hidden=True,
    help="Started by a training process: the only one of its home, log in worker.log.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every attempt and every heartbeat.")
@pass_place
def worker(place: Place, idle_exit: float | None, detach: bool, detached: bool, verbose: bool) -> None:
    """Send what is waiting, in the foreground until Ctrl-C, for systemd, tmux or a container; logs to stderr.

    With --detach it runs in the background instead, logs to worker.log in the home, and exits when it is idle.
    SIGTERM and Ctrl-C end it in order: no new upload starts, a running one gets a short grace, the rest stays
    in the outbox.

    \b
    Examples:
      hubqueue worker
      hubqueue worker --detach
      hubqueue worker --idle-exit 600
    """
    if detach:
        _detach(place, idle_exit)
    from hubqueue.cli.stopping import stoppable
    from hubqueue.outbox.outbox import COURTESY
    from hubqueue.worker import log as journal
    from hubqueue.worker.service import Service, idle_for

    os.umask(0o077)
    place.home().create()  # before a lock or a log is written into it: what is no folder of ours is left alone
    level = logging.DEBUG if verbose else logging.INFO
    _log_to(place.home() if detached else None, level)
    with place.open(courtesy=COURTESY) as outbox, stoppable(outbox.home):
        if detached and idle_exit is None:
            idle_exit = outbox.config.worker.idle_exit.total_seconds()
        service = Service(outbox, emit=journal.write)
        _obey_signals(service)
        if idle_exit is None:
            service.run(only_one=detached)
        else:
            until = idle_for(outbox, service.worker, idle_exit)
            service.run(until=until, every=min(5.0, max(0.2, idle_exit / 4)), only_one=detached)


def _detach(place: Place, idle_exit: float | None) -> None:
    """Start a worker in the background, unless one is running."""
    from hubqueue.domain.errors import WorkerError
    from hubqueue.worker.daemon import start_worker
    from hubqueue.worker.routes import sendable

    if idle_exit is not None:
        raise click.UsageError(
            "--idle-exit is for a worker in the foreground; set worker.idle_exit in the configuration"
        )
    with place.open() as outbox:
        outbox.note_destinations()
        mine = sendable(outbox)
    if all(map(is_held, mine)):
        click.echo("a worker of this home is running already")
        leave(DONE)
    home = place.home()
    start_worker(home, config=place.config_option)
    deadline, pause = time.monotonic() + _START, threading.Event()
    while not all(map(is_held, mine)):
        if time.monotonic() > deadline:
            raise WorkerError("the worker did not come up", hint=f"see why: {home.worker_log}")
        pause.wait(0.02)
    click.echo(f"worker started, it logs to {home.worker_log}")
    leave(DONE)


@click.command()
@click.option(
    "--timeout",
    type=Number(min=0),
    metavar="SECONDS",
    help="Wait at most SECONDS for them to end [default: worker.grace and 10 s].",
)
@pass_place
def stop(place: Place, timeout: float | None) -> None:
    """End the workers of this home on this machine in order, as SIGTERM does. What is not sent stays in the outbox.

    A drain, and a training that sends by itself (worker="thread"), are left alone.

    \b
    Example:
      hubqueue stop
    """
    from hubqueue.cli.stopping import stop_workers

    if not place.has_outbox():
        click.echo("no worker is running")
        leave(DONE)
    with place.open() as outbox:
        grace = outbox.config.worker.grace.total_seconds()
        ended = stop_workers(outbox, timeout=grace + 10 if timeout is None else timeout, say=click.echo)
    leave(DONE if ended else ATTENTION)


@click.command()
@click.option(
    "--timeout", type=Number(min=0), metavar="SECONDS", help="Stop after SECONDS, whatever is left."
)
@run_option
@pass_place
def drain(place: Place, timeout: float | None, run_id: str | None) -> None:
    """Send what is waiting now, within the hub's rate limits, and wait until it is done.

    With --run it waits only for that run. Exits with 0 when everything is delivered, with 1 when the hub has refused
    entries, now or before (they are dead until `redrive` or `cancel`), and with 3 when something is left to send.
    Safe beside a worker.

    \b
    Examples:
      hubqueue drain
      hubqueue drain --timeout 300 || hubqueue status
    """
    from hubqueue.outbox.database.sqlite import asides
    from hubqueue.outbox.outbox import COURTESY
    from hubqueue.outbox.salvage import salvage
    from hubqueue.worker import log as journal
    from hubqueue.worker.service import Service, nothing_left

    if not place.has_outbox() and not asides(place.home().outbox):
        if run_id is not None:
            no_run(run_id)
        click.echo("nothing was enqueued here yet")
        leave(DONE)
    deadline = None if timeout is None else time.monotonic() + timeout
    with place.open(courtesy=COURTESY) as outbox, ExitStack() as until_the_end:
        _log_to(None, logging.ERROR)
        run_id = find_run(outbox, run_id)
        service = Service(outbox, emit=journal.write)
        progress = until_the_end.enter_context(_progress(outbox, service, run_id))
        _obey_signals(service)
        salvage(outbox)  # what is owed may be in a damaged one beside it
        progress.show(outbox.stats.owed(run_id))
        if outbox.stats.owed(run_id).entries:
            grace = None if deadline is None else timedelta(0)
            reason = service.run(
                until=nothing_left(
                    outbox, service.worker, run_id=run_id, deadline=deadline, told=progress.show
                ),
                every=0.1,
                grace=grace,
            )
        else:
            reason = "nothing to send"
        left = outbox.stats.owed(run_id)
        dead, unsaved = outbox.stats.dead(run_id), outbox.stats.unsaved(run_id)
        refused = outbox.stats.entries(state=State.DEAD, run_id=run_id, limit=_SHOWN) if dead else []
    if dead:
        click.echo(f"{plural(dead, 'entry was', 'entries were')} refused by the hub", err=True)
        for each in refused:
            where = f"entry {each['id']} of run {each['run_id']}, {each['kind']} {each['key']}"
            click.echo(f"  {where}: {each['reason']}", err=True)
        if dead > len(refused):
            click.echo(f"  and {dead - len(refused)} more", err=True)
        click.echo("hint: hubqueue entries --state dead", err=True)
    if unsaved:
        click.echo(f"{unsaved} could not be saved by the training, and are lost: hubqueue status", err=True)
    if left.entries:
        click.echo(f"{plural(left.entries, 'upload')} not sent: {reason}", err=True)
        click.echo("hint: hubqueue status shows why", err=True)
    elif not (dead or unsaved):
        click.echo(reason)
    leave(ATTENTION if dead or unsaved else LEFT if left.entries else DONE)


def _progress(outbox: Outbox, service: Service, run_id: str | None) -> Progress:
    from hubqueue.cli.progress import Progress, standstill
    from hubqueue.outbox.status import status
    from hubqueue.outbox.uploads import Upload, uploads

    def running() -> Iterator[tuple[str, Upload]]:
        return (each for each in uploads(outbox.home) if run_id in {None, each[0]})

    def why() -> str | None:
        shown = status(outbox, run_id=run_id)
        return standstill(
            shown, sending=service.worker.busy > 0, until=lambda moment: until(moment, datetime.now(UTC))
        )

    return Progress(sys.stderr, uploads=running, why=why)


def _obey_signals(service: Service) -> None:
    """The first signal ends the work in order, the second one at once."""

    on_end(lambda: service.stop(timedelta(0) if service.stopping else None))


def _log_to(home: Home | None, level: int) -> None:
    """Log to stderr, or to the home's worker.log, which is kept small."""
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
        """Made 0600, and never through a symbolic link."""

        def _open(self) -> TextIOWrapper:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            return open(open_private(Path(self.baseFilename), flags), "a", encoding="utf-8")

    try:
        return Private(home.worker_log, maxBytes=1_000_000, backupCount=2)
    except OSError as error:
        message = f"cannot write {home.worker_log}: {error.strerror or error}"
        raise WorkerError(message, hint="it must be a plain file; hubqueue check tells more") from error


class _Utc(logging.Formatter):
    converter = time.gmtime  # type: ignore[assignment]  # as the manual of logging has it
