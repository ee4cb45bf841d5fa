"""The judges of a month: each requirement is one pass over its chronicle.

They have their own numbers for the limits, so that they can contradict the package. Each reports how much it
judged: without anything to judge, no failure proves nothing.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stage import totals
from torture.crew import BATCH
from torture.month import HOLDS, HOUR, Note, What
from torture.world import World

from hubqueue.domain.entry import Kind

PACES = {Kind.METRICS: 3.0, Kind.CKPT: 900.0, Kind.HEARTBEAT: 300.0}
CAP = 300.0
# The database stores whole microseconds, and the virtual clock adds floats.
_ROUNDING = 1e-3
_Lane = tuple[str, Kind]


@dataclass(slots=True)
class Found:
    """The counts of one pass over the chronicle, and the broken promises."""

    line: str
    judged: int
    wrong: list[str] = field(default_factory=list)


def spacing(chronicle: Iterable[Note]) -> Found:
    """The least time between two request starts of a lane. A final checkpoint ignores the one before it."""
    last: dict[_Lane, float] = {}
    least: dict[Kind, float] = defaultdict(lambda: math.inf)
    gaps: Counter[Kind] = Counter()
    wrong = []
    for note in chronicle:
        if not note.started or note.kind not in PACES:
            continue
        lane = note.run, note.kind
        if lane in last and not note.final:
            gap = note.at - last[lane]
            gaps[note.kind] += 1
            least[note.kind] = min(least[note.kind], gap)
            if gap < PACES[note.kind] - _ROUNDING:
                wrong.append(f"two starts of {note.kind} within {gap:.3f} s, at {note.at:.0f} s")
        last[lane] = note.at
    shown = ", ".join(f"{kind} {gap:.3f} s" for kind, gap in sorted(least.items()))
    return Found(
        f"{gaps.total():,} gaps between request starts, the shortest: {shown}; too short {len(wrong)}",
        min(gaps[kind] for kind in PACES),
        wrong,
    )


@dataclass(slots=True)
class _Stretch:
    since: float
    used: int = 0


class _Rate:
    """Stretches in which a metrics lane has a backlog and nothing prevents its requests.

    A stretch begins with a delivered batch while more entries wait than fit into a request: then the lane is in no
    backoff. It ends when the backlog fits into a request, a request fails, the hub is down, all lanes have to wait, or
    no worker runs.
    """

    # With fewer than twenty allowed starts, the last one alone is more than 5 %.
    _FEWEST = 20

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self.open: dict[str, _Stretch] = {}
        self.shares: list[float] = []
        self.used = self.allowed = 0
        self.wrong: list[str] = []

    def see(self, note: Note) -> None:
        if note.what is What.LOGGED:
            self.waiting[note.run] += int(note.number)
        elif note.kind is Kind.METRICS:
            self._see_request(note)
        elif note.what in {What.ILL, What.PAUSED} or (note.what is What.WORKERS and not note.number):
            for run in list(self.open):
                self._close(run, note.at)

    def _see_request(self, note: Note) -> None:
        if note.answer != "Delivered":
            self._close(note.run, note.at)
            return
        self.waiting[note.run] -= int(note.number)
        if note.run in self.open:
            self.open[note.run].used += 1
        if self.waiting[note.run] <= BATCH:
            self._close(note.run, note.at)
        elif note.run not in self.open:
            self.open[note.run] = _Stretch(note.at)

    def _close(self, run: str, at: float) -> None:
        stretch = self.open.pop(run, None)
        allowed = 0 if stretch is None else math.floor((at - stretch.since) / PACES[Kind.METRICS] + _ROUNDING)
        if stretch is None or allowed < self._FEWEST:
            return
        self.used, self.allowed = self.used + stretch.used, self.allowed + allowed
        self.shares.append(stretch.used / allowed)
        if stretch.used < 0.95 * allowed:
            self.wrong.append(
                f"a backlog used {stretch.used} of {allowed} allowed starts until {at:.0f} s of the month"
            )


def rate(chronicle: Iterable[Note]) -> Found:
    """The share of the allowed rate that a backlog uses."""
    counted = _Rate()
    for note in chronicle:
        counted.see(note)
    if not counted.shares:
        return Found("no backlog was long enough to count", 0)
    return Found(
        f"{len(counted.shares)} stretches with a backlog: {counted.used:,} of {counted.allowed:,} allowed starts used "
        f"({counted.used / counted.allowed:.1%}), the least {min(counted.shares):.1%}",
        len(counted.shares),
        counted.wrong,
    )


def outage_hour(chronicle: Iterable[Note]) -> Found:
    """The requests of each lane in the first hour of an outage of an hour or more, refused connections included."""
    hours: list[Counter[_Lane]] = []
    busy: list[set[_Lane]] = []  # when it began
    began = -math.inf
    for note in chronicle:
        if note.what is What.ILL and note.number >= HOUR:
            began, hours, busy = note.at, [*hours, Counter()], [*busy, set()]
        elif note.kind is not None and note.at < began + HOUR:
            hours[-1][note.run, note.kind] += 1
            if note.at < began + 60.0 and note.kind in (Kind.METRICS, Kind.REGISTRATION):
                busy[-1].add((note.run, note.kind))
    counts = [count for hour in hours for count in hour.values()]
    if not counts:
        return Found("no outage lasted for an hour", 0)
    worst, over = max(counts), sum(count > 30 for count in counts)
    whole = [hour[lane] for hour, those in zip(hours, busy, strict=True) for lane in those]
    busiest = (
        f"; {sum(whole) / len(whole):.1f} on average for the {len(whole)} lanes that were busy when it began"
        if whole
        else ""
    )
    return Found(
        f"{len(hours)} outages of an hour or more: at most {worst} requests per lane in the hour, more than 30 in "
        f"{over} of {len(counts)} lanes{busiest}",
        len(counts),
        [f"{over} lanes made more than 30 requests in an outage's hour, at most {worst}"] if over else [],
    )


class _Beats:
    """When each beat was due, and when it started.

    A beat is due 300 s after the last attempt: after the last start, or after a refused connection, which is retried
    within the cap of the backoff. No beat is due while no worker runs, the hub is down or on hold, all lanes have to
    wait, the run is not registered, or its process is not alive.
    """

    def __init__(self) -> None:
        self.registered: set[str] = set()
        self.alive: set[str] = set()
        self.due: dict[str, float] = {}
        self.ill, self.held, self.workers, self.free_at = False, False, False, 0.0
        self.beats, self.latest = 0, 0.0
        self.wrong: list[str] = []

    def see(self, note: Note) -> None:
        self._miss(note.at)
        match note.what:
            case What.BEGAN:
                self.alive.add(note.run)
                self.due[note.run] = max(note.at, self.due.get(note.run, 0.0))
            case What.REGISTERED:
                self.registered.add(note.run)
                self.due[note.run] = note.at
            case What.ENDED:
                self.alive.discard(note.run)
            case What.ILL | What.WELL:
                self.ill, self.free_at = note.what is What.ILL, max(self.free_at, note.at)
            case What.HELD | What.LIFTED:
                self.held, self.free_at = note.what is What.HELD, max(self.free_at, note.at)
            case What.WORKERS:
                self.workers, self.free_at = bool(note.number), max(self.free_at, note.at)
            case What.PAUSED:
                # `backoff` adds up to `retry.base` to the wait that the hub requested.
                self.free_at = max(self.free_at, note.at + note.number + 1.0)
            case What.REBOOTED:
                # The machine was off and its clock was set back: the outbox cannot count that time.
                self.due = {run: due + max(0.0, note.number) for run, due in self.due.items()}
            case What.SENT if note.kind is Kind.HEARTBEAT:
                self._see_beat(note)

    def _see_beat(self, note: Note) -> None:
        if self._watched:
            self.beats += 1
            self.latest = max(self.latest, note.at - max(self.due[note.run], self.free_at))
        self.due[note.run] = note.at + PACES[Kind.HEARTBEAT]

    @property
    def _watched(self) -> bool:
        return self.workers and not self.ill and not self.held

    def _miss(self, at: float) -> None:
        """Record beats that should have started before this moment."""
        if not self._watched or at <= self.free_at + 5.0:
            return
        for run in self.alive & self.registered:
            if at > max(self.due[run], self.free_at) + 5.0 + _ROUNDING:
                self.wrong.append(
                    f"a beat was due at {self.due[run]:.0f} s and did not start until {at:.0f} s"
                )
                self.due[run] = at + PACES[Kind.HEARTBEAT]


def heartbeats(chronicle: Iterable[Note]) -> Found:
    """The delay of heartbeats while nothing prevents them."""
    counted = _Beats()
    for note in chronicle:
        counted.see(note)
    line = f"{counted.beats:,} heartbeats, the latest {counted.latest:.3f} s after it was due"
    return Found(f"{line}; too late {len(counted.wrong)}", counted.beats, counted.wrong)


# The share of the lanes that may come back in one second. At the cap, equal jitter draws the wait evenly from 150 to
# 300 s: if all lanes failed together, a second gets at most 1/150 of them. Then four of ten lanes (more than a third) in
# one second happen in one of some thousand outages; without jitter, all lanes that failed together come back together.
# A wait of 60 s that the hub asks of all lanes, again and again, is spread over another 60 s. Then hardly any lane fails:
# those that log epochs meanwhile wait too.
# Only lanes that wait for the backoff or for such a wait are counted. Heartbeats have their own timer. Checkpoints have 900 s, longer than
# any backoff, and are spread by their crew of two, which requests without duration do not show.
_SHARE, _LANES = 1 / 3, 10


def recovery(chronicle: Sequence[Note]) -> Found:
    """The return of the lanes that failed or had to wait in an outage: not in one second, and none later than the cap."""
    crowds: list[tuple[int, int]] = []
    wrong = []
    waits = False
    failed: set[_Lane] = set()
    back: dict[_Lane, float] = {}
    ended = began = math.inf
    for note in [*chronicle, Note(math.inf, What.ILL)]:
        lane = (note.run, note.kind) if note.kind in (Kind.METRICS, Kind.REGISTRATION) else None
        if note.at > ended + CAP + 10.0:
            if len(failed) >= _LANES:
                moments = sorted(back.values())
                most = max((sum(at <= each < at + 1.0 for each in moments) for at in moments), default=0)
                crowds.append((most, len(failed)))
                if most > _SHARE * len(failed):
                    wrong.append(f"{most} of {len(failed)} lanes came back in one second, at {ended:.0f} s")
                if len(back) < len(failed):
                    wrong.append(f"{len(failed) - len(back)} lanes were not back after {CAP:.0f} s")
            began = ended = math.inf
        if note.what is What.ILL:
            # After a hold a probe brings the lanes back, and not their backoff.
            began, ended = math.inf if note.answer in HOLDS else note.at, math.inf
            waits, failed, back = note.answer == "429", set(), {}
        elif note.what is What.LOGGED and waits and began <= note.at < ended:
            failed.add((note.run, Kind.METRICS))
        elif note.what is What.WORKERS and note.at >= ended:
            began = ended = (
                math.inf
            )  # without jitter a worker that was stopped then also brings them together
        elif note.what is What.WELL:
            ended = note.at if began < math.inf else math.inf
        elif lane is not None and began <= note.at < ended:
            failed.add(lane)
        elif lane in failed and lane is not None:
            back.setdefault(lane, note.at)
    most, of = max(crowds, key=lambda each: each[0] / each[1], default=(0, 0))
    return Found(
        f"{len(crowds)} recoveries of ten lanes or more: at most {most} of {of} in one second",
        len(crowds),
        wrong,
    )


def delivery(world: World) -> Found:
    """What was acknowledged is at the hub, and the outbox agrees."""
    wrong = []
    missing = sum(each.epochs - len(world.hub.epochs[each.id]) for each in world.trainings)
    if missing:
        wrong.append(f"{missing} epochs are missing")
    finals = {each.id: each.digest for each in world.trainings if each.ended}
    lost = sum(world.hub.finals.get(run) != digest for run, digest in finals.items())
    if lost:
        wrong.append(f"{lost} final checkpoints are missing, or not what was saved")
    try:
        counted = totals(world.outbox)
    except AssertionError as error:
        return Found(
            f"missing {missing}", len(world.trainings), [*wrong, f"the entries do not add up: {error}"]
        )
    left = {name: counted[name] for name in ("pending", "dead", "cancelled") if name in counted}
    if left:
        wrong.append(f"something is left: {left}")
    every = [lane for run in world.outbox.stats.runs(finished=None) for lane in run["lanes"]]
    outdated = sum(lane["superseded"] for lane in every if lane["kind"] != Kind.CKPT)
    if outdated:
        wrong.append(f"{outdated} epochs were superseded")
    return Found(
        f"{counted['enqueued']:,} entries = {counted['delivered']:,} delivered + "
        f"{counted.get('superseded', 0):,} superseded checkpoints; missing {missing}",
        len(world.trainings),
        wrong,
    )
