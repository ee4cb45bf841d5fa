"""The plan of a month, its hub, and its workers.

The hub and the connection are simulated: a request takes no time, so the chronicle shows when hubqueue starts a
request. Workers and janitors are the real ones, except for the way they die.
"""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from hubqueue.destinations.base import Attempt
from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Delivered, Outcome, Remote, RetryLater, Scope
from hubqueue.outbox.locks import Lock
from hubqueue.outbox.outbox import Outbox
from hubqueue.testing import MemoryTransport
from hubqueue.worker.events import Fact
from hubqueue.worker.janitor import Janitor
from hubqueue.worker.worker import Worker

HOUR, DAY = 3600.0, 86_400.0
# Outages in which the worker is away for a while, too.
_LONG = 1.2 * HOUR


@dataclass(frozen=True, slots=True)
class Plan:
    """The amounts of everything. `outages` are in hours; `crowded` runs begin shortly before or in a long outage."""

    days: float
    runs: int
    lives: tuple[float, float]  # hours
    outages: tuple[float, ...]
    epochs: tuple[float, float] = (180.0, 900.0)  # seconds between two
    long_lives: int = 0
    hasty: int = 0  # runs with an epoch each half a second for a while
    haste: float = 120.0
    crowded: float = 0.1
    restarts: int = 0
    crashes: int = 0
    seconds: int = 0  # times with a second worker
    reboots: int = 0
    jumps: int = 0
    busy: int = 0
    troubles: int = 0


@dataclass(frozen=True, slots=True)
class Outage:
    """The hub is down: it responds 503, refuses connections ("refused"), or makes all lanes wait ("429")."""

    begin: float
    lasts: float
    how: str
    alone: float  # seconds of the outage without a worker

    @property
    def end(self) -> float:
        return self.begin + self.lasts

    @property
    def is_long(self) -> bool:
        return self.lasts >= _LONG

    def is_quiet(self, at: float) -> bool:
        """Whether nothing else may happen then: in an outage of at most an hour, and while lanes recover."""
        return (self.begin if self.lasts <= HOUR else self.end) - 60.0 <= at <= self.end + 400.0


def bad_days(plan: Plan, dice: random.Random) -> Iterator[Outage]:
    """The outages of a plan, in order, at random times."""
    lengths = [hours * HOUR for hours in plan.outages]
    dice.shuffle(lengths)
    gap = 0.25 * HOUR
    room = plan.days * DAY - sum(lengths) - gap * (len(lengths) + 1)
    assert room >= 0, "the plan has no room for its outages"
    starts = sorted(dice.uniform(0.0, room) for _ in lengths)
    passed = 0.0
    for start, length in zip(starts, lengths, strict=True):
        begin = start + passed + gap
        # In longer ones the hub requests no wait, so that only our own jitter spreads the recovery.
        how = dice.choice(("503", "refused") if length >= HOUR else ("503", "refused", "429"))
        yield Outage(begin, length, how, dice.uniform(400.0, 900.0) if length >= _LONG else 0.0)
        passed += length + gap


@dataclass(slots=True)
class Training:
    """A training's process and its plan. `life` counts its processes: plans of an earlier one are void."""

    begins: float
    until: float
    every: float
    save_every: float
    hasty_until: float
    finishes: bool
    id: str = ""
    life: int = 0
    lock: Lock | None = None
    epochs: int = 0
    saves: int = 0
    ended: bool = False  # with a final checkpoint

    @property
    def alive(self) -> bool:
        return self.lock is not None


def trainings(plan: Plan, outages: Sequence[Outage], dice: random.Random) -> Iterator[Training]:
    """The runs of a plan."""
    end = plan.days * DAY
    long = [each for each in outages if each.is_long]
    for number in range(plan.runs):
        lasts = dice.uniform(*plan.lives) * HOUR
        if number < plan.long_lives:
            lasts = dice.uniform(0.1, 0.3) * end
        begins = dice.uniform(0.0, max(0.0, end - lasts))
        if long and dice.random() < plan.crowded:
            outage = dice.choice(long)
            begins = dice.uniform(max(0.0, outage.begin - 0.5 * HOUR), outage.begin + 0.3 * outage.lasts)
        every = math.exp(dice.uniform(math.log(plan.epochs[0]), math.log(plan.epochs[1])))
        hasty = begins + plan.haste if number >= plan.runs - plan.hasty else 0.0
        save_every = dice.uniform(600.0, 2400.0)
        yield Training(begins, begins + lasts, every, save_every, hasty, dice.random() < 0.8)


class What(StrEnum):
    """The kinds of notes in the chronicle of a month."""

    BEGAN = "began"  # a run started, or continued after a reboot
    REGISTERED = "registered"
    ENDED = "ended"
    LOGGED = "logged"  # `number` epochs were acknowledged
    SENT = "sent"  # an attempt reached the hub, or was refused
    ILL = "ill"  # an outage begins
    WELL = "well"
    PAUSED = "paused"  # the hub made all lanes wait for `number` seconds
    WORKERS = "workers"  # `number` workers run now
    REBOOTED = "rebooted"  # the outbox cannot know about `number` seconds that passed


class Note(NamedTuple):
    """One line of the chronicle. `at` is the true seconds since the start, independent of the clocks."""

    at: float
    what: What
    run: str = ""
    kind: Kind | None = None
    number: float = 0.0
    started: bool = False
    answer: str = ""
    final: bool = False


class Killed(BaseException):
    """The worker's process ended at this line."""


class Hub:
    """Responds to requests according to the plan, and writes the chronicle."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.chronicle: list[Note] = []
        self.outage: Outage | None = None
        self.busy = 0.0  # the response to the next request makes all lanes wait for these seconds
        self.troubled: dict[str, int] = {}  # runs whose requests all fail, with the number of failures
        self.epochs: defaultdict[str, set[str]] = defaultdict(set)
        self.finals: set[str] = set()

    def note(self, what: What, run: str = "", **more: Any) -> None:
        self.chronicle.append(Note(self._now(), what, run, **more))

    def take(self, batch: Batch, attempt: Attempt, dying: str) -> Outcome:
        """One request. `dying` is when its worker is killed: "before" it starts, "during" it, "after" it was accepted."""
        if dying == "before":
            self._note_sent(batch, answer="lost")
            raise Killed
        refused = self.outage is not None and self.outage.how == "refused"
        if not refused:
            attempt.on_start()
        with self._lock:
            outcome = self._answer(batch) if dying != "during" else RetryLater("lost")
            final = any(entry.final for entry in batch.entries)
            self._note_sent(
                batch, started=not refused, answer="lost" if dying else type(outcome).__name__, final=final
            )
            if isinstance(outcome, RetryLater) and outcome.scope is Scope.DESTINATION:
                assert outcome.after is not None
                self.note(What.PAUSED, number=outcome.after.total_seconds())
            elif isinstance(outcome, Delivered):
                self._keep(batch, final=final, acknowledged=not dying)
        if dying:
            raise Killed
        return outcome

    def _note_sent(self, batch: Batch, **more: Any) -> None:
        self.note(What.SENT, batch.run.id, kind=batch.kind, number=len(batch.entries), **more)

    def _answer(self, batch: Batch) -> Outcome:
        run, waits = batch.run.id, None
        if self.outage is not None:
            if self.outage.how != "429":
                return RetryLater(self.outage.how)
            waits = 60.0
        elif run in self.troubled:
            self.troubled[run] += 1
            # A hub that counts the requests of a key also counts those of a failing run.
            if self.troubled[run] % 12:
                return RetryLater("500", suspect=True)
            waits = 5.0
        elif self.busy:
            waits, self.busy = self.busy, 0.0
        if waits is not None:
            return RetryLater("429", timedelta(seconds=waits), Scope.DESTINATION)
        return Delivered(Remote(id=f"model-{run}")) if batch.kind is Kind.REGISTRATION else Delivered()

    def _keep(self, batch: Batch, *, final: bool, acknowledged: bool) -> None:
        if batch.kind is Kind.METRICS:
            self.epochs[batch.run.id].update(entry.key for entry in batch.entries)
        elif batch.kind is Kind.REGISTRATION and acknowledged:
            self.note(What.REGISTERED, batch.run.id)
        elif final:
            self.finals.add(batch.run.id)


class Line(MemoryTransport):
    """The transport of one worker, which may be killed in it."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub
        self.dying = ""
        self.dead = False

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        self.dead = bool(self.dying)
        return self._hub.take(batch, attempt, self.dying)


class Mortal(Worker):
    """A worker that can be killed: it releases nothing, but the kernel frees its lock."""

    def die(self) -> None:
        self._lock.release()

    def _attempt(self, crew: Any, first: Any) -> None:
        with contextlib.suppress(Killed):
            super()._attempt(crew, first)


class Station:
    """A worker's process, started."""

    def __init__(self, outbox: Outbox, hub: Hub, worker: type[Mortal], emit: Callable[[Fact], None]) -> None:
        self.outbox, self.line = outbox, Line(hub)
        self.worker = worker(outbox, emit=emit, dial=self.line.dial)
        self.janitor = Janitor(outbox, emit)
        self.worker.start()
        self.janitor.scan()

    def waits(self) -> float:
        """The seconds until something is due."""
        due = self.worker.next_due()
        return math.inf if due is None else (due - self.outbox.database.now()).total_seconds()

    def close(self) -> None:
        self.worker.stop(timedelta(0))
        self.outbox.close()
