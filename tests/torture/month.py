"""A month as it is planned, the hub that lives through it, and the workers that go there.

Hub and way are lines of code: a request takes no time, it starts and is answered at one instant, so what the chronicle
tells is when hubqueue lets a request go. Workers and janitors are the real ones, but for how they die.
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
    """How much happens. `outages` are hours, those of `crowded` runs begin shortly before or in a long one."""

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
    """The hub is away: it answers 503, or nobody opens ("refused"), or it tells everybody to wait ("429")."""

    begin: float
    lasts: float
    how: str
    alone: float  # for so many seconds of it there is no worker, either

    @property
    def end(self) -> float:
        return self.begin + self.lasts

    @property
    def is_long(self) -> bool:
        return self.lasts >= _LONG

    def is_quiet(self, at: float) -> bool:
        """Whether nothing else happens then: in an outage of an hour at most, and while lanes recover from any."""
        return (self.begin if self.lasts <= HOUR else self.end) - 60.0 <= at <= self.end + 400.0


def bad_days(plan: Plan, dice: random.Random) -> Iterator[Outage]:
    """The outages of a plan, one after the other, at random places."""
    lengths = [hours * HOUR for hours in plan.outages]
    dice.shuffle(lengths)
    gap = 0.25 * HOUR
    room = plan.days * DAY - sum(lengths) - gap * (len(lengths) + 1)
    assert room >= 0, "the plan has no room for its outages"
    places = sorted(dice.uniform(0.0, room) for _ in lengths)
    passed = 0.0
    for place, length in zip(places, lengths, strict=True):
        begin = place + passed + gap
        # The longer ones without a wish of the hub's, so that only our own dice spread the recovery.
        how = dice.choice(("503", "refused") if length >= HOUR else ("503", "refused", "429"))
        yield Outage(begin, length, how, dice.uniform(400.0, 900.0) if length >= _LONG else 0.0)
        passed += length + gap


@dataclass(slots=True)
class Training:
    """A training's process, with what it will do. `life` counts its processes: what an earlier one planned is void."""

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
    """What the chronicle of a month tells."""

    BEGAN = "began"  # a run, also one that goes on after a reboot
    REGISTERED = "registered"
    ENDED = "ended"
    LOGGED = "logged"  # so many epochs were acknowledged
    SENT = "sent"  # an attempt reached the hub, or its closed door
    ILL = "ill"  # an outage begins
    WELL = "well"
    PAUSED = "paused"  # the hub asked everybody to wait for so many seconds
    WORKERS = "workers"  # so many are there now
    REBOOTED = "rebooted"  # and so many seconds went by that the outbox cannot know of


class Note(NamedTuple):
    """One line of the chronicle. `at` counts the true seconds since the start, whatever the clocks say."""

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
    """Takes what arrives, as its day allows, and writes the chronicle."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.chronicle: list[Note] = []
        self.outage: Outage | None = None
        self.busy = 0.0  # the next request is told to wait for so many seconds, and everybody with it
        self.troubled: dict[str, int] = {}  # runs whose every request fails, and how many did
        self.epochs: defaultdict[str, set[str]] = defaultdict(set)
        self.finals: set[str] = set()

    def note(self, what: What, run: str = "", **more: Any) -> None:
        self.chronicle.append(Note(self._now(), what, run, **more))

    def take(self, batch: Batch, attempt: Attempt, dying: str) -> Outcome:
        """One request. `dying` says where its worker is killed: "before" it starts, "during" it, "after" it was taken."""
        if dying == "before":
            self._tell(batch, answer="lost")
            raise Killed
        refused = self.outage is not None and self.outage.how == "refused"
        if not refused:
            attempt.on_start()
        with self._lock:
            outcome = self._answer(batch) if dying != "during" else RetryLater("nobody hears it")
            final = any(entry.final for entry in batch.entries)
            self._tell(
                batch, started=not refused, answer="lost" if dying else type(outcome).__name__, final=final
            )
            if isinstance(outcome, RetryLater) and outcome.scope is Scope.DESTINATION:
                assert outcome.after is not None
                self.note(What.PAUSED, number=outcome.after.total_seconds())
            elif isinstance(outcome, Delivered):
                self._keep(batch, final=final, heard=not dying)
        if dying:
            raise Killed
        return outcome

    def _tell(self, batch: Batch, **more: Any) -> None:
        self.note(What.SENT, batch.run.id, kind=batch.kind, number=len(batch.entries), **more)

    def _answer(self, batch: Batch) -> Outcome:
        run, waits = batch.run.id, None
        if self.outage is not None:
            if self.outage.how != "429":
                return RetryLater(self.outage.how)
            waits = 60.0
        elif run in self.troubled:
            self.troubled[run] += 1
            # A hub that counts the requests of a key sees those of a run in trouble, too.
            if self.troubled[run] % 12:
                return RetryLater("500", suspect=True)
            waits = 5.0
        elif self.busy:
            waits, self.busy = self.busy, 0.0
        if waits is not None:
            return RetryLater("429", timedelta(seconds=waits), Scope.DESTINATION)
        return Delivered(Remote(id=f"model-{run}")) if batch.kind is Kind.REGISTRATION else Delivered()

    def _keep(self, batch: Batch, *, final: bool, heard: bool) -> None:
        if batch.kind is Kind.METRICS:
            self.epochs[batch.run.id].update(entry.key for entry in batch.entries)
        elif batch.kind is Kind.REGISTRATION and heard:
            self.note(What.REGISTERED, batch.run.id)
        elif final:
            self.finals.add(batch.run.id)


class Line(MemoryTransport):
    """The transport of one worker: its way to the hub, on which it may be killed."""

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub
        self.dying = ""
        self.dead = False

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        self.dead = bool(self.dying)
        return self._hub.take(batch, attempt, self.dying)


class Mortal(Worker):
    """A worker that can be killed: nothing is handed back, but the kernel frees its lock."""

    def die(self) -> None:
        self._lock.release()

    def _attempt(self, crew: Any, first: Any) -> None:
        with contextlib.suppress(Killed):
            super()._attempt(crew, first)


class Station:
    """A worker's process, from its start on."""

    def __init__(self, outbox: Outbox, hub: Hub, worker: type[Mortal], emit: Callable[[Fact], None]) -> None:
        self.outbox, self.line = outbox, Line(hub)
        self.worker = worker(outbox, emit=emit, dial=self.line.dial)
        self.janitor = Janitor(outbox, emit)
        self.worker.start()
        self.janitor.scan()

    def waits(self) -> float:
        """In how many seconds something is due."""
        due = self.worker.next_due()
        return math.inf if due is None else (due - self.outbox.database.now()).total_seconds()

    def close(self) -> None:
        self.worker.stop(timedelta(0))
        self.outbox.close()
