"""Thirty virtual days: what left for the hub is held against the limits, request by request.

A world (`torture.world`) lets the month pass and writes a chronicle; the judges (`torture.judges`) read it. The controls
are a worker whose spacing is not in the database, and a backoff without jitter.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from sqlalchemy import update
from torture import judges
from torture.frame import Options, options
from torture.judges import Found
from torture.month import DAY, HOUR, Mortal, Plan, What
from torture.world import World

from hubqueue.outbox.database.schema import EPOCH, lanes
from hubqueue.worker import backoff, delivery
from hubqueue.worker.backoff import next_attempt_at

SENTENCE = (
    "whatever happens to hub, workers, machine and clock, no two request starts of a lane are closer than its limit, a "
    "backlog uses 95 % of the allowed rate, an hour's outage makes at most 30 requests a lane, heartbeats start within 5 s, "
    "the lanes do not come back in one instant, and everything arrives"
)
PLANS = {
    "quick": Plan(
        1.0, runs=25, lives=(0.5, 1.2), outages=(1.0, 1.25, 0.2), epochs=(240.0, 1200.0), hasty=2, haste=60.0,
        crowded=0.6, restarts=4, crashes=4, seconds=2, reboots=1, jumps=2, busy=4, troubles=2,
    ),
    "normal": Plan(
        7.0, runs=200, lives=(0.5, 4.0), outages=(1.0, 1.0, 3.0, 8.0, *[0.2] * 6), long_lives=2, hasty=8, haste=300.0,
        restarts=30, crashes=30, seconds=10, reboots=4, jumps=6, busy=40, troubles=20,
    ),
    "full": Plan(
        30.0, runs=1000, lives=(0.5, 8.0), outages=(*[1.0] * 8, 2.0, 3.0, 4.0, 6.0, 8.0, 24.0, *[0.1, 0.3, 0.5] * 10),
        long_lives=5, hasty=25, haste=600.0, restarts=120, crashes=120, seconds=40, reboots=12, jumps=20, busy=200,
        troubles=80,
    ),
}  # fmt: skip
# The controls: restarts beside running trainings, and many that wait for the end of one outage.
_RESTARTS = Plan(0.1, 4, (1.5, 2.0), (), restarts=8)
_HERD = Plan(0.08, 12, (0.4, 0.8), (1.2,), crowded=1.0)
_JUDGES = (judges.spacing, judges.rate, judges.outage_hour, judges.heartbeats, judges.recovery)
_SHARED = Path("/dev/shm")


class Forgetful(Mortal):
    """A control: its spacing lives in its memory, so a restart forgets it."""

    def start(self) -> None:
        super().start()
        with self._outbox.database.write() as tx:
            tx.execute(update(lanes).values(paced_until=EPOCH))


@contextmanager
def without_jitter() -> Iterator[None]:
    """A control: every lane waits for as long as its failures say, to the microsecond."""
    steady = partial(next_attempt_at, jitter=lambda ceiling: ceiling)
    with mock.patch.object(delivery, "next_attempt_at", steady):
        yield


@contextmanager
def passed(plan: Plan, seed: int, worker: type[Mortal] = Mortal) -> Iterator[World]:
    """A month that has passed, with everything delivered that could be. The dice of the backoff have the seed, too."""
    shared = _SHARED if _SHARED.is_dir() else None
    with (
        mock.patch.object(backoff, "_DICE", random.Random(seed)),
        tempfile.TemporaryDirectory(prefix="hubqueue-month-", dir=shared) as home,
    ):
        world = World(Path(home), plan, random.Random(seed), worker)
        try:
            world.run()
            yield world
        finally:
            world.close()


def main(argv: list[str] | None = None) -> int:
    """Let the month pass, and judge it; 1 when the sentence is false."""
    told = options("simulation", SENTENCE, argv)
    with told.verdict():
        plan = PLANS[told.scale]
        with passed(plan, told.seed) as world:
            _say_scenario(told, plan, world)
            for judge in _JUDGES:
                _say_found(told, judge(world.hub.chronicle))
            _say_found(told, judges.delivery(world))
        _controls(told)
    return told.exit_code


def _say_scenario(told: Options, plan: Plan, world: World) -> None:
    counts = world.counts
    away = sum(each.lasts for each in world.outages) / HOUR
    crashes = sum(count for name, count in counts.items() if name.startswith("crashes"))
    attempts = sum(note.what is What.SENT for note in world.hub.chronicle)
    told.say(
        f"everything delivered after {world.now / DAY:.2f} days; {plan.runs:,} runs "
        f"({counts['went on']} went on after a reboot), {sum(each.epochs for each in world.trainings):,} epochs, "
        f"{attempts:,} attempts; {len(world.outages)} outages of {away:.1f} hours; {counts['restarts']} restarts, "
        f"{crashes} crashes, {counts['second workers']} second workers, {counts['reboots']} reboots, "
        f"{counts['jumps']} jumps of the clock, {counts['DestinationPaused']} waits for everybody, "
        f"{counts['runs in trouble']} runs in trouble"
    )


def _say_found(told: Options, found: Found) -> None:
    told.say(found.line)
    told.require(found.judged > 0, "there was nothing to judge")
    for failure in found.wrong[:3]:
        told.require(False, failure)
    told.require(len(found.wrong) <= 3, f"and {len(found.wrong) - 3} more of these")


def _controls(told: Options) -> None:
    with passed(_RESTARTS, told.seed, Forgetful) as world:
        found = judges.spacing(world.hub.chronicle)
    told.say(
        f"control: a worker that forgets its spacing at a restart broke a limit {len(found.wrong)} times"
    )
    told.require(bool(found.wrong), "the control kept every limit: nothing was tested")
    with without_jitter(), passed(_HERD, told.seed) as world:
        found = judges.recovery(world.hub.chronicle)
    told.say(f"control: without jitter, {found.line}")
    told.require(
        any("in one second" in each for each in found.wrong), "the control came back as spread as the others"
    )


if __name__ == "__main__":
    sys.exit(main())
