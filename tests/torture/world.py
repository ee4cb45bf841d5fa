"""The simulation of a month: one home, one virtual clock, and all events.

Home and workers are those of `torture.crew`; the hub is simulated (`torture.month`). The janitor tidies once an hour.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stage import save_snapshot
from torture.crew import Crew
from torture.month import DAY, HOUR, Outage, Plan, Training, What, bad_days, trainings
from torture.stations import Mortal

from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, metrics_draft
from hubqueue.domain.errors import SpoolError
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.locks import Lock
from hubqueue.producer.intake import open_run
from hubqueue.worker.closing import close_run

_YEAR = 365 * DAY
_TIDY = HOUR


class World(Crew):
    """A home that is simulated for a month."""

    def __init__(
        self, folder: Path, plan: Plan, dice: random.Random, worker: type[Mortal] = Mortal, **defects: Any
    ) -> None:
        super().__init__(folder, plan, dice, worker, **defects)
        self.outages = list(bad_days(plan, dice))
        self.trainings = list(trainings(plan, self.outages, dice))
        self._weights, self._unmounted = folder / "best.pt", folder / "unmounted"
        self._jumped = 0.0
        self._plan_outages()
        self._plan_runs()
        self._plan_disturbances()

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
        if not any(self._disk.glob("*/.hubqueue-*")):
            # Nobody can know that a spool is away which has never been used.
            if self.now < self.plan.days * DAY:
                self._at(self.now + 300.0, self._unmount)
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
