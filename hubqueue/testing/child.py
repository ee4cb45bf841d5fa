"""A worker in a process of its own, which is killed at a step of an attempt, or whose memory is measured.

The process is forked from a server that has loaded the package, so that it starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import NoReturn

from hubqueue.config.registry import BUILT_IN
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.entry import Kind
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.testing.doubles import FakeClock
from hubqueue.testing.watched import Step, Watched, opened
from hubqueue.worker.events import BatchDelivered, Fact
from hubqueue.worker.worker import Worker

_PATIENCE = 120.0
# What a process that is missing here would load itself; a module that is not installed is passed over.
_PRELOAD = [
    __name__,
    "hubqueue.destinations.wire.api",
    "hubqueue.destinations.wire.signed_url",
    "hubqueue.outbox.moves.enqueue",
    "hubqueue.outbox.moves.registry",
    "pysqlite3.dbapi2",
    *(each.partition(":")[0] for each in BUILT_IN.values()),
]
# Of what a step does many times (the blocks of a file), the process is killed at the first ones.
_MOST = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """What the process does: it sends all that is due in this home, `passed` seconds after the start of a `FakeClock`.

    `killed` has the steps at which earlier processes were killed: this one is killed at the first other one (None: never).
    `kill_after` is the number of bytes of a checkpoint after which it is killed when it has stored its progress.
    """

    home: Path
    environ: Mapping[str, str]
    passed: float
    killed: frozenset[str] | None = None
    kill_after: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """How the process ended: the step at which it was killed (None: it has sent everything), and the most memory, in bytes.

    `peak` is what Python has allocated at most while it sent a checkpoint.
    """

    killed_at: str | None
    peak: int


@dataclass(slots=True)
class _Progress:
    plan: Plan
    report: Connection
    peak: int = 0
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, step: Step) -> None:
        self.sent = max(self.sent, step.bytes)
        if self.plan.killed is not None:
            if step.number <= _MOST:
                self.perhaps_die(str(step))
        elif self.plan.kill_after is not None:
            if step.what == "progress" and self.sent > self.plan.kill_after:
                self.die(str(step))
        elif step.kind is Kind.CKPT:
            if step.what == "claimed":
                tracemalloc.start()
            elif step.what == "sent":
                self.peak = max(self.peak, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()

    def emit(self, fact: Fact) -> None:
        if isinstance(fact, BatchDelivered):
            self.perhaps_die(f"{fact.kind}, settled")

    def perhaps_die(self, step: str) -> None:
        if self.plan.killed is not None and step not in self.plan.killed:
            self.die(step)

    def die(self, step: str) -> None:
        with self.lock:
            self.report.send(Done(step, 0))
            _die()


def work(plan: Plan) -> Done:
    """Carry out a plan in a new process. Raises `AssertionError` if it ends in another way."""
    context = _context()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(plan, dict(os.environ), there), daemon=True)
    process.start()
    there.close()
    try:
        done = here.recv() if here.poll(_PATIENCE) else None
    except EOFError:
        done = None
    if done is None or done.killed_at is not None:
        process.kill()
    process.join(_PATIENCE)
    code = process.exitcode
    here.close()
    process.close()
    assert isinstance(done, Done), f"the process of the worker ended with {code}"
    return done


def _context() -> ForkServerContext | SpawnContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(_PRELOAD)
    return forking


def _main(plan: Plan, environ: Mapping[str, str], report: Connection) -> None:
    os.environ.clear()
    os.environ.update({**environ, **plan.environ})
    clock, progress = FakeClock(), _Progress(plan, report)
    clock.advance(plan.passed)
    with open_outbox(plan.home, environ=plan.environ, clock=clock) as outbox:
        worker = Worker(outbox, emit=progress.emit, dial=partial(_dial, progress))
        worker.start()
        while worker.step():
            assert worker.wait_free(_PATIENCE)
        worker.stop(timedelta(0))
    report.send(Done(None, progress.peak))


def _dial(progress: _Progress, outbox: Outbox, settings: DestinationSettings) -> Watched:
    return Watched(opened(outbox, settings), progress.note)


def _die() -> NoReturn:
    with suppress(AttributeError):  # where there is no such signal
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(137)
