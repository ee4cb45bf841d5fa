"""A worker in a process of its own, which is killed at a step of an attempt, or whose memory is measured."""

from __future__ import annotations

import os
import signal
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.entry import Kind
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.testing.doubles import FakeClock
from hubqueue.testing.watched import Step, Watched, opened
from hubqueue.worker.events import BatchDelivered, Fact
from hubqueue.worker.worker import Worker

_PATIENCE = 120.0
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

    @property
    def measures(self) -> bool:
        """Whether the process lives, and its memory is measured."""
        return self.killed is None and self.kill_after is None


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
    report: Callable[[Done], None]
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

    def die(self, step: str) -> NoReturn:
        with self.lock:
            self.report(Done(step, 0))
            with suppress(AttributeError):  # where there is no such signal
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(137)


def carry_out(plan: Plan, report: Callable[[Done], None]) -> None:
    """Do this in the process that may be killed. `report` is called once, before its end."""
    clock, progress = FakeClock(), _Progress(plan, report)
    clock.advance(plan.passed)
    with open_outbox(plan.home, environ=plan.environ, clock=clock) as outbox:
        worker = Worker(outbox, emit=progress.emit, dial=partial(_dial, progress))
        worker.start()
        while worker.step():
            assert worker.wait_free(_PATIENCE)
        worker.stop(timedelta(0))
    report(Done(None, progress.peak))


def _dial(progress: _Progress, outbox: Outbox, settings: DestinationSettings) -> Watched:
    transport = opened(outbox, settings)
    if progress.plan.measures:
        transport.check()  # loads the libraries, whose memory does not count
    return Watched(transport, progress.note)
