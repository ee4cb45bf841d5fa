"""The simulation of a month: one home, one virtual clock, and all events.

Outbox, spool, worker and janitor are the real ones, on their own files; clock and hub are simulated (`torture.month`).
Scans of the janitor that would find nothing new are left out; it tidies once an hour.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torture.month import DAY, HOUR, Hub, Outage, Plan, Training, What, bad_days, trainings
from torture.stations import Mortal, Station, Upload

from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, metrics_draft
from hubqueue.domain.errors import SpoolError
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.locks import Lock
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.intake import open_run, save_snapshot
from hubqueue.testing import FakeClock
from hubqueue.worker.closing import close_run
from hubqueue.worker.events import Fact, Held, HoldLifted

BATCH = 2
"""Epochs per request: few, so that backlogs exist."""
_YEAR = 365 * DAY
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
_LOOK, _TIDY = 5.0, HOUR
# Seconds between two scans of the janitor while something is on hold, and between two renewals of the leases.
_HELD, _RENEW = 60.0, 20.0
# After this many steps without a claim, a due lane is stuck: this is no race.
_STUCK = 100


class World:
    """A home that is simulated for a month. `settings` are appended to its configuration, for controls."""

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
        self.outages = list(bad_days(plan, dice))
        self.trainings = list(trainings(plan, self.outages, dice))
        self._home = folder / "home"
        self._home.mkdir(mode=0o700)
        self._disk, self._unmounted = folder / "disk", folder / "unmounted"
        self._disk.mkdir(mode=0o700)
        config = _CONFIG.format(batch=BATCH, spool=self._disk / "spool") + settings
        (self._home / "config.toml").write_text(config, encoding="utf-8")
        self._weights = folder / "best.pt"
        self._is_held = self._is_watched = False
        self._stations: list[Station] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._boot = 0
        self.outbox = self._open()
        self._jumped = 0.0
        self._plan_outages()
        self._plan_runs()
        self._plan_disturbances()

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

    # The trainings.

    def _begin(self, training: Training) -> None:
        target = self.outbox.config.destination("hub")
        model = declaration("hub").identify("yolo26n.pt", target)
        training.id, continued = open_run(self.outbox, model, {}, target, resume=training.id or None)
        training.lock = Lock(self.outbox.run_lock(training.id))
        assert training.lock.try_acquire(), "a run's lock is taken"
        training.life += 1
        self.counts["continued"] += continued
        self.hub.note(What.BEGAN, training.id)
        hasty = self.now < training.hasty_until
        self._later(training, 0.0 if hasty else training.every, self._log)
        self._later(training, training.save_every, self._save)
        self._later(training, max(0.0, training.until - self.now), self._end)

    def _later(self, training: Training, delay: float, act: Callable[[Training], None]) -> None:
        """Schedule an action of a training's process, for the case that it still runs then."""
        life = training.life
        self._at(
            self.now + delay, lambda: act(training) if (training.alive and training.life == life) else None
        )

    def _log(self, training: Training) -> None:
        # Epochs of half a second are logged ten at a time, which keeps their lane busy.
        hasty = self.now < training.hasty_until
        count, delay = (10, 5.0) if hasty else (1, training.every)
        for _ in range(count):
            self.outbox.entries.enqueue(training.id, metrics_draft('{"loss": 0.5}', training.epochs))
            training.epochs += 1
        self.hub.note(What.LOGGED, training.id, number=count)
        self._later(training, delay, self._log)

    def _save(self, training: Training, *, final: bool = False) -> None:
        training.saves += 1
        content = f"weights {training.saves} of {training.id}".encode()
        self._weights.write_bytes(content)
        is_best = training.saves % 3 == 0
        checkpoint = Checkpoint(self._weights, training.saves, is_best, map=0.5, final=final)
        try:
            save_snapshot(self.outbox, training.id, checkpoint)
        except SpoolError:
            self.counts["checkpoints not saved"] += (
                1  # the disk of the spool is away, and the training continues
            )
        else:
            training.digest = hashlib.sha256(content).hexdigest() if final else ""
        if not final:
            self._later(training, training.save_every, self._save)

    def _end(self, training: Training) -> None:
        if training.finishes:
            self._save(training, final=True)
            training.ended = bool(training.digest)
            close_run(self.outbox, training.id, RunState.FINISHED)
        self._lose(training)
        self._scan_soon()

    def _lose(self, training: Training) -> None:
        """End its process."""
        assert training.lock is not None
        training.lock.release()
        training.lock = None
        self.hub.note(What.ENDED, training.id)

    # Events for all of them.

    def _plan_outages(self) -> None:
        for outage in self.outages:
            self._at(outage.begin, self._set_outage, outage)
            self._at(outage.end, self._set_outage, None)
            if outage.alone:
                # After this time without a worker every lane is overdue: all start, and fail, at the same time.
                self._at(outage.begin + 0.3 * outage.lasts, self._restart, outage.alone)

    def _set_outage(self, outage: Outage | None) -> None:
        self.hub.outage, self.hub.busy = outage, 0.0
        if outage is None:
            self.hub.note(What.WELL)
        else:
            self.hub.note(What.ILL, number=outage.lasts, answer=outage.how)

    def _plan_runs(self) -> None:
        for training in self.trainings:
            self._at(training.begins, self._begin, training)
        for each in range(int(self.plan.days * DAY // _TIDY)):
            self._at(each * _TIDY, self._tidy)

    def _plan_disturbances(self) -> None:
        plan, dice = self.plan, self._dice
        for many, act in (
            (plan.restarts, lambda: self._restart(dice.choice((0.0, 1.0, 10.0, dice.uniform(10.0, 600.0))))),
            (plan.crashes, self._crash),
            (plan.seconds, self._second),
            (plan.reboots, self._reboot),
            (plan.jumps, self._jump),
            (plan.busy, self._busy),
            (plan.troubles, self._trouble),
            (plan.slow, self._slow_down),
            (plan.unmounted, self._unmount),
        ):
            for _ in range(many):
                at = dice.uniform(0.0, plan.days * DAY)
                if not any(each.is_quiet(at) for each in self.outages):
                    self._at(at, act)

    def _restart(self, away: float) -> None:
        self.counts["restarts"] += 1
        while len(self._stations) > 1 and away:
            self._stop_worker(away)
        self._stop_worker(away)

    def _crash(self) -> None:
        if self._stations:
            self._stations[0].line.dying = self._dice.choice(("before", "during", "after"))

    def _second(self) -> None:
        if self._stations:
            self.counts["second workers"] += 1
            self._start_worker()
            self._at(self.now + self._dice.uniform(0.1, 3.0) * HOUR, self._leave, self._boot)

    def _leave(self, boot: int) -> None:
        if boot == self._boot and len(self._stations) > 1:
            self._stop_worker(0.0)

    def _jump(self) -> None:
        """Set the clock a year wrong, as a person or a time server may; some hours later it is right again."""
        years = 0.0 if self._jumped else self._dice.choice((-_YEAR, _YEAR))
        self.counts["jumps"] += 1
        self.clock.jump(years - self._jumped)
        self._jumped = years
        if years:
            self._at(self.now + self._dice.uniform(0.1, 12.0) * HOUR, self._jump_back)

    def _jump_back(self) -> None:
        if self._jumped:
            self._jump()

    def _reboot(self) -> None:
        """End every process at once; half of the trainings continue after the machine has started again."""
        # The outbox trusts the clock at a boot: with a clock that is ahead, all waits are over.
        if self._jumped:
            self._jump()
        off = self._dice.choice((20.0, 30.0, self._dice.uniform(30.0, 1800.0)))
        self.counts["reboots"] += 1
        self._boot += 1
        interrupted = [each for each in self.trainings if each.alive]
        for training in interrupted:
            self._lose(training)
        for station in self._stations:
            station.cut()
            station.worker.die()
            station.outbox.close()
        self._stations.clear()
        self._note_workers()
        before = self.outbox.database.now()
        self.outbox.close()
        self.clock.reboot(off)
        self.now += off
        self.outbox = self._open()
        unseen = off - (self.outbox.database.now() - before).total_seconds()
        self.hub.note(What.REBOOTED, number=unseen)
        for training in interrupted:
            if self._dice.random() < 0.5:
                self._at(self.now + self._dice.uniform(1.0, 1200.0), self._begin, training)
        self._at(self.now + self._dice.uniform(1.0, 120.0), self._start_worker, self._boot)

    def _busy(self) -> None:
        if self.hub.outage is None:
            self.hub.busy = self._dice.uniform(2.0, 60.0)

    def _trouble(self) -> None:
        """Make one run's requests fail for a while."""
        alive = [each.id for each in self.trainings if each.alive]
        if alive:
            run = self._dice.choice(alive)
            self.hub.troubled.setdefault(run, 0)
            self.counts["failing runs"] += 1
            self._at(self.now + self._dice.uniform(0.2, 3.0) * HOUR, self.hub.troubled.pop, run, None)
        elif self.now < self.plan.days * DAY:
            self._at(self.now + HOUR, self._trouble)

    def _slow_down(self) -> None:
        """Make the link slow: each checkpoint that begins in the next hours needs as long as the plan says."""
        self.hub.upload = self._dice.uniform(*self.plan.uploads) * HOUR
        self._at(self.now + self._dice.uniform(1.0, 6.0) * HOUR, setattr, self.hub, "upload", 0.0)

    def _unmount(self) -> None:
        """Take away the disk of the spool for some hours; an empty folder is there meanwhile, or none."""
        if self._unmounted.exists():
            return
        self.counts["disks away"] += 1
        self._disk.rename(self._unmounted)
        if self._dice.random() < 0.5:
            self._disk.mkdir(mode=0o700)
        self._at(self.now + self._dice.uniform(0.2, 6.0) * HOUR, self._mount)

    def _mount(self) -> None:
        if self._disk.exists():
            # A mounted disk hides what was written to its path before.
            self.counts["written beside the disk"] += sum(1 for _ in self._disk.rglob("*"))
            shutil.rmtree(self._disk)
        self._unmounted.rename(self._disk)
