"""The plan of a month, and its hub.

The hub and the connection are simulated: a request takes no time (but for uploads over a slow link), so the chronicle
shows when hubqueue starts a request. What a response means is decided by the code that decides it for a real one.
"""

from __future__ import annotations

import itertools
import math
import random
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from requests import exceptions

from hubqueue.destinations.base import Attempt
from hubqueue.destinations.wire.message import Response
from hubqueue.destinations.wire.outcomes import outcome_of_error, outcome_of_status
from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Delivered, Outcome, Remote, RetryLater, Scope
from hubqueue.outbox.locks import Lock

HOUR, DAY = 3600.0, 86_400.0
# Outages in which the worker is away for a while, too.
_LONG = 1.2 * HOUR
_LONG_WAIT = 0.5 * HOUR
_HOST = "hub.example"
# What a gateway responds for a while, to all requests.
_STATUSES = (404, 403, 413, 502, 401, 400, 405, 511)
_PAGE = b"<!DOCTYPE html><html><body>Service temporarily moved</body></html>"
_REFUSAL = b'{"message": "this key is blocked for now"}'
HOLDS = ("certificate", "403")
"""Outages that hold the destination: nobody lifts that but a probe that gets through."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The amounts of everything. `outages` are in hours; `crowded` runs begin shortly before or in a long outage.

    In `gateways` something else responds in place of the hub, in `holds` its certificate or its refusal holds everything,
    and in `waits` it makes all lanes wait, again and again.
    `slow` times the link needs hours for a checkpoint, `unmounted` times the disk of the spool is away for hours.
    """

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
    gateways: tuple[float, ...] = ()
    holds: tuple[float, ...] = ()
    waits: tuple[float, ...] = ()
    slow: int = 0
    uploads: tuple[float, float] = (0.5, 3.0)  # hours
    unmounted: int = 0


@dataclass(frozen=True, slots=True)
class Outage:
    """The hub is down: it responds 503, refuses connections ("refused"), or makes all lanes wait ("429").

    Or a "gateway" responds with pages of its own, the "certificate" is not valid, or the hub refuses its key ("403").
    """

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

    @property
    def is_crowded(self) -> bool:
        """Whether many runs may begin shortly before it or in it, so that many lanes come back after it."""
        return self.lasts >= (_LONG_WAIT if self.how == "429" else _LONG) and self.how not in HOLDS

    def is_quiet(self, at: float) -> bool:
        """Whether nothing else may happen then: in an outage of at most an hour, and while lanes recover."""
        return (self.begin if self.lasts <= HOUR else self.end) - 60.0 <= at <= self.end + 400.0


def bad_days(plan: Plan, dice: random.Random) -> Iterator[Outage]:
    """The outages of a plan, in order, at random times."""
    # In longer ones of `outages` the hub requests no wait, so that only the backoff of each lane spreads the recovery.
    kinds = [
        *(
            (hours, ("503", "refused") if hours >= 1.0 else ("503", "refused", "429"))
            for hours in plan.outages
        ),
        *((hours, ("gateway",)) for hours in plan.gateways),
        *((hours, HOLDS) for hours in plan.holds),
        *((hours, ("429",)) for hours in plan.waits),
    ]
    dice.shuffle(kinds)
    gap = 0.25 * HOUR
    room = plan.days * DAY - sum(hours * HOUR for hours, _ in kinds) - gap * (len(kinds) + 1)
    assert room >= 0, "the plan has no room for its outages"
    starts = sorted(dice.uniform(0.0, room) for _ in kinds)
    passed = 0.0
    for start, (hours, ways) in zip(starts, kinds, strict=True):
        begin, length, how = start + passed + gap, hours * HOUR, dice.choice(ways)
        is_left_alone = length >= _LONG and how not in HOLDS
        yield Outage(begin, length, how, dice.uniform(400.0, 900.0) if is_left_alone else 0.0)
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
    digest: str = ""  # of its final checkpoint
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
    crowded = [each for each in outages if each.is_crowded]
    for number in range(plan.runs):
        lasts = dice.uniform(*plan.lives) * HOUR
        if number < plan.long_lives:
            lasts = dice.uniform(0.1, 0.3) * end
        begins = dice.uniform(0.0, max(0.0, end - lasts))
        if crowded and dice.random() < plan.crowded:
            outage = dice.choice(crowded)
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
    ARRIVED = "arrived"  # the upload over a slow link ended, or its worker did
    ILL = "ill"  # an outage begins; `answer` is how
    WELL = "well"
    HELD = "held"  # the destination is on hold
    LIFTED = "lifted"
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
        self.upload = 0.0  # the seconds that the link needs for a checkpoint
        self.epochs: defaultdict[str, set[str]] = defaultdict(set)
        self.finals: dict[str, str] = {}  # the digest of what it got, by run
        self._pages = itertools.cycle(_STATUSES)

    def note(self, what: What, run: str = "", **more: Any) -> None:
        self.chronicle.append(Note(self._now(), what, run, **more))

    def begin(self, batch: Batch, attempt: Attempt, dying: str) -> bool:
        """The start of an upload over a slow link; False for any other request, which is left to `take`."""
        if not self.upload or batch.kind is not Kind.CKPT or self.outage is not None or dying:
            return False
        attempt.on_start()
        with self._lock:
            final = any(entry.final for entry in batch.entries)
            self._note_sent(batch, started=True, answer="Uploading", final=final)
        return True

    def end(self, batch: Batch, digest: str) -> Outcome:
        """The end of an upload over a slow link."""
        with self._lock:
            outcome = self._answer(batch)
            self._conclude(batch, outcome, digest, acknowledged=True)
            return outcome

    def take(self, batch: Batch, attempt: Attempt, dying: str, digest: str) -> Outcome:
        """One request. `dying` is when its worker is killed: "before" it starts, "during" it, "after" it was accepted."""
        if dying == "before":
            self._note_sent(batch, answer="lost")
            raise Killed
        refused = self.outage is not None and self.outage.how in ("refused", "certificate")
        if not refused:
            attempt.on_start()
        with self._lock:
            outcome = self._answer(batch) if dying != "during" else RetryLater("lost")
            final = any(entry.final for entry in batch.entries)
            self._note_sent(
                batch, started=not refused, answer="lost" if dying else type(outcome).__name__, final=final
            )
            self._conclude(batch, outcome, digest, acknowledged=not dying)
        if dying:
            raise Killed
        return outcome

    def _note_sent(self, batch: Batch, **more: Any) -> None:
        self.note(What.SENT, batch.run.id, kind=batch.kind, number=len(batch.entries), **more)

    def _answer(self, batch: Batch) -> Outcome:
        run, waits = batch.run.id, None
        if self.outage is not None:
            if self.outage.how != "429":
                return self._refuse(self.outage.how)
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

    def _refuse(self, how: str) -> Outcome:
        """What a worker makes of an outage: a response, or an error of the connection."""
        if how == "certificate":
            expired = ssl.SSLCertVerificationError(
                1, "certificate verify failed: certificate is not yet valid"
            )
            return outcome_of_error(exceptions.SSLError(expired), host=_HOST)
        if how in ("gateway", "403"):
            page = Response(403, {}, _REFUSAL) if how == "403" else Response(next(self._pages), {}, _PAGE)
            outcome = outcome_of_status(page, host=_HOST)
            assert outcome is not None, "a refusal is no success"
            return outcome
        return RetryLater(how)

    def _conclude(self, batch: Batch, outcome: Outcome, digest: str, *, acknowledged: bool) -> None:
        if isinstance(outcome, RetryLater) and outcome.scope is Scope.DESTINATION:
            assert outcome.after is not None
            self.note(What.PAUSED, number=outcome.after.total_seconds())
        if not isinstance(outcome, Delivered):
            return
        if batch.kind is Kind.METRICS:
            self.epochs[batch.run.id].update(entry.key for entry in batch.entries)
        elif batch.kind is Kind.REGISTRATION and acknowledged:
            self.note(What.REGISTERED, batch.run.id)
        elif any(entry.final for entry in batch.entries):
            self.finals[batch.run.id] = digest
