"""A home on a virtual clock, and the workers that send from it: what happens at which moment.

Outbox, spool, worker and janitor are the real ones, on their own files. Scans of the janitor that would find nothing new
are left out. `torture.world` adds the trainings and all that happens to them.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torture.month import DAY, HOUR, Hub, Plan, What
from torture.stations import Mortal, Station, Upload

from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.testing import FakeClock
from hubqueue.worker.events import Fact, Held, HoldLifted

BATCH = 2
"""Epochs per request: few, so that backlogs exist."""
# Only one destination: a worker queries the database for each configured one.
_CONFIG = """
[destinations.hub]
type = "hub"
[worker]
batch_entries = {batch}
[spool]
path = "{spool}"
min_free_bytes = 0
"""
_LOOK = 5.0
# Seconds between two scans of the janitor while something is on hold, and between two renewals of the leases.
_HELD, _RENEW = 60.0, 20.0
# After this many steps without a claim, a due lane is stuck: this is no race.
_STUCK = 100


class Crew:
    """A home and its workers. `settings` are appended to its configuration, and `renews` is false, for controls."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        dice: random.Random,
        worker: type[Mortal] = Mortal,
        *,
        settings: str = "",
        renews: bool = True,
    ) -> None:
        self.plan, self._dice, self._worker, self._renews = plan, dice, worker, renews
        self.clock, self.now = FakeClock(), 0.0
        self.hub = Hub(lambda: self.now)
        self.counts: Counter[str] = Counter()
        self._home, self._disk = folder / "home", folder / "disk"
        self._home.mkdir(mode=0o700)
        self._disk.mkdir(mode=0o700)
        config = _CONFIG.format(batch=BATCH, spool=self._disk / "spool") + settings
        (self._home / "config.toml").write_text(config, encoding="utf-8")
        self._is_held = self._is_watched = False
        self._stations: list[Station] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._boot = 0
        self.outbox = self._open()

    def run(self) -> None:
        """Simulate the month, and the time after it until nothing is owed."""
        self._start_worker()
        while True:
            at = min(self._work(), self._agenda[0][0] if self._agenda else math.inf)
            if at == math.inf:
                break
            self._advance(at)
            while self._agenda and self._agenda[0][0] <= self.now:
                heapq.heappop(self._agenda)[2]()

    def close(self) -> None:
        for station in self._stations:
            station.close()
        self.outbox.close()

    # Time.

    def _advance(self, at: float) -> None:
        self.clock.advance(max(0.0, at - self.now))
        self.now = max(self.now, at)

    def _at(self, at: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._agenda, (at, next(self._order), lambda: act(*arguments)))

    # The workers.

    def _work(self) -> float:
        """Step the workers until nothing is due. Returns the time of the next due request."""
        for _ in range(_STUCK):
            waits = self._stations[0].waits() if self._stations else math.inf
            if waits > 0.0:
                return self.now + waits
            self._dice.shuffle(self._stations)
            for station in list(self._stations):
                station.worker.step()
                self._settle(station)
        raise AssertionError("something is due, and no worker claims it")

    def _settle(self, station: Station) -> None:
        station.settle()
        begun, station.line.begun = station.line.begun, []
        for upload in begun:
            self._at(self.now + upload.seconds, self._finish_upload, station, upload)
            self._at(self.now + _RENEW, self._renew, station, upload)
        if self._is_held and not self._is_watched:
            self._watch_hold()  # not for ever: a control's hold lasts for a year
        if station.line.dead:
            self._bury(station)

    def _finish_upload(self, station: Station, upload: Upload) -> None:
        if station.line.release(upload):
            self.counts["slow uploads"] += 1
            self._settle(station)

    def _renew(self, station: Station, upload: Upload) -> None:
        """What the service of a worker does three times in a lease."""
        if upload in station.line.waiting:
            if self._renews:
                station.worker.renew()
            self._at(self.now + _RENEW, self._renew, station, upload)

    def _start_worker(self, boot: int | None = None) -> None:
        if boot not in (None, self._boot):
            return
        self._stations.append(Station(self._open(), self.hub, self._worker, self._count))
        self._note_workers()

    def _stop_worker(self, away: float) -> None:
        if self._stations:
            station = self._stations.pop()
            station.close()
            self._note_workers()
            if not self._stations:
                self._at(self.now + away, self._start_worker, self._boot)

    def _bury(self, station: Station) -> None:
        """End a killed worker; every third one hangs, and keeps its lock for a while."""
        self._stations.remove(station)
        station.cut()
        self.counts[f"crashes {station.line.dying} a request"] += 1
        station.outbox.close()
        if self._dice.random() < 0.3:
            self._at(self.now + 300.0, station.worker.die)
            self._at(self.now + 300.0, self._scan_soon)
        else:
            station.worker.die()
            self._scan_soon()
        self._note_workers()
        if not self._stations:
            self._at(self.now + self._dice.uniform(1.0, 120.0), self._start_worker, self._boot)

    def _scan_soon(self) -> None:
        """Schedule a scan of the janitor, which scans every five seconds: a process has ended since the last scan."""
        self._at(self.now + self._dice.uniform(0.0, _LOOK), self._scan)

    def _watch_hold(self) -> None:
        """Scan now and then, as a service does, while something is on hold."""
        self._is_watched = self._is_held and self.now < self.plan.days * DAY + 2 * HOUR
        if self._is_watched:
            self._scan()
            self._at(self.now + _HELD, self._watch_hold)

    def _scan(self) -> None:
        for station in self._stations:
            station.janitor.scan()

    def _tidy(self) -> None:
        for station in self._stations[:1]:
            station.janitor.tidy()

    def _note_workers(self) -> None:
        self.hub.note(What.WORKERS, number=len(self._stations))

    def _open(self) -> Outbox:
        return open_outbox(self._home, environ={}, clock=self.clock)

    def _count(self, fact: Fact) -> None:
        self.counts[type(fact).__name__] += 1
        if isinstance(fact, Held | HoldLifted) and fact.what.startswith("destination"):
            self._is_held = isinstance(fact, Held)
            self.hub.note(What.HELD if self._is_held else What.LIFTED)
