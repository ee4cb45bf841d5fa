"""Thirty virtual days: every request to the hub is checked against the limits, and what can heal must heal without a person.

A world (`torture.world`) simulates the month and writes a chronicle; the judges (`torture.judges`, `torture.healing`) read
it. The controls are a worker whose spacing is not in the database, a backoff without jitter, and one defect each for what
has to heal.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import update
from torture import healing, judges
from torture.frame import Report, new_report
from torture.judges import Found
from torture.month import DAY, HOUR, Plan, What
from torture.stations import Mortal
from torture.world import World

from hubqueue.outbox.database.schema import EPOCH, lanes
from hubqueue.worker import backoff, delivery
from hubqueue.worker.backoff import next_attempt_at

SENTENCE = (
    "whatever happens to hub, workers, machine and clock, no two request starts of a lane are closer than its limit, a "
    "backlog uses 95 % of the allowed rate, an hour's outage causes at most 30 requests per lane, heartbeats start within 5 s, "
    "the lanes do not come back in one instant, holds lift themselves with few probes, and everything arrives without a "
    "person: over links that need hours, past gateways that respond in place of the hub, from a disk that was away"
)
PLANS = {
    "quick": Plan(
        1.0, runs=32, lives=(0.5, 1.2), outages=(1.0, 1.25, 0.2), epochs=(240.0, 1200.0), hasty=2, haste=60.0,
        crowded=1.0, restarts=4, crashes=4, seconds=2, reboots=1, jumps=2, busy=4, troubles=2, gateways=(1.0,),
        holds=(2.0, 0.5), waits=(0.5,), slow=3, uploads=(0.3, 1.2), unmounted=2,
    ),
    "normal": Plan(
        7.0, runs=200, lives=(0.5, 4.0), outages=(1.0, 1.0, 3.0, 8.0, *[0.2] * 6), long_lives=2, hasty=8, haste=300.0,
        crowded=0.25, restarts=30, crashes=30, seconds=10, reboots=4, jumps=6, busy=40, troubles=20,
        gateways=(1.0, 1.0, 0.2), holds=(0.05, 1.0, 3.0, 12.0), waits=(0.5, 1.0), slow=6, unmounted=5,
    ),
    "full": Plan(
        30.0, runs=1000, lives=(0.5, 8.0), outages=(*[1.0] * 8, 2.0, 3.0, 4.0, 6.0, 8.0, 24.0, *[0.1, 0.3, 0.5] * 10),
        long_lives=5, hasty=25, haste=600.0, crowded=0.2, restarts=120, crashes=120, seconds=40,
        reboots=12, jumps=20, busy=200, troubles=80, gateways=(*[1.0] * 4, 2.0, *[0.1, 0.5] * 3), holds=(*[0.05, 0.5, 1.0, 3.0] * 2, 12.0, 30.0),
        waits=(0.5, 0.5, 1.0, 2.0), slow=25, unmounted=20,
    ),
}  # fmt: skip
# The controls: restarts during running trainings, and many trainings that wait for the end of one outage.
_RESTARTS = Plan(0.1, 4, (1.5, 2.0), (), restarts=8)
_HERD = Plan(0.08, 12, (0.4, 0.8), (1.2,), crowded=1.0)
_UNHEALED = Plan(0.06, 3, (0.6, 1.0), (), epochs=(60.0, 120.0), uploads=(0.4, 0.6))
_DEFECTS: dict[str, tuple[Plan, Callable[[World], Found], dict[str, Any], dict[str, Any]]] = {
    "a hold that is probed every second": (
        replace(_UNHEALED, holds=(0.1,)),
        lambda world: healing.holds(world.hub.chronicle),
        {"settings": "[retry]\nprobe = 1\nprobe_cap = 1\n"},
        {},
    ),
    "a hold that waits for a person": (
        replace(_UNHEALED, holds=(0.1,)),
        lambda world: healing.holds(world.hub.chronicle),
        {"settings": f"[retry]\nprobe = {366 * DAY:.0f}\nprobe_cap = {366 * DAY:.0f}\n"},
        {},
    ),
    "a gateway's page judged as the hub's": (
        replace(_UNHEALED, gateways=(0.3,)),
        judges.delivery,
        {},
        {"hubqueue.destinations.wire.outcomes.is_foreign": lambda _response: False},
    ),
    "a wait that all lanes leave together": (
        Plan(0.08, 16, (0.4, 0.8), (), crowded=1.0, waits=(0.5,)),
        lambda world: judges.recovery(world.hub.chronicle),
        {},
        {"hubqueue.worker.delivery.spread_after": lambda _asked, retry: retry.base},
    ),
    "a lease that is not renewed": (
        replace(_UNHEALED, slow=6),
        lambda world: healing.uploads(world.hub.chronicle),
        {"renews": False},
        {},
    ),
    "a spool that is away judged as lost files": (
        replace(_UNHEALED, days=0.1, outages=(0.8,), unmounted=8),
        healing.alone,
        {},
        {"hubqueue.outbox.spool.presence.Presence.trouble": lambda _self: None},
    ),
}
_JUDGES = (
    judges.spacing,
    judges.rate,
    judges.outage_hour,
    judges.heartbeats,
    judges.recovery,
    healing.holds,
    healing.uploads,
)
_SHARED = Path("/dev/shm")


class Forgetful(Mortal):
    """A control: a worker that keeps its spacing in memory only, so that a restart loses it."""

    def start(self) -> None:
        super().start()
        with self._outbox.database.write() as tx:
            tx.execute(update(lanes).values(paced_until=EPOCH))


@contextmanager
def without_jitter() -> Iterator[None]:
    """A control: every lane waits exactly as long as its failure count determines."""
    steady = partial(next_attempt_at, jitter=lambda ceiling: ceiling)
    with mock.patch.object(delivery, "next_attempt_at", steady):
        yield


@contextmanager
def passed(plan: Plan, seed: int, worker: type[Mortal] = Mortal, **defects: Any) -> Iterator[World]:
    """A simulated month, with everything delivered that can be. The seed also decides the jitter of the backoff."""
    shared = _SHARED if _SHARED.is_dir() else None
    with (
        mock.patch.object(backoff, "_DICE", random.Random(seed)),
        tempfile.TemporaryDirectory(prefix="hubqueue-month-", dir=shared) as home,
    ):
        world = World(Path(home), plan, random.Random(seed), worker, **defects)
        try:
            world.run()
            yield world
        finally:
            world.close()


def main(argv: list[str] | None = None) -> int:
    """Simulate the month and judge it; 1 if the sentence is false."""
    report = new_report("simulation", SENTENCE, argv)
    with report.verdict():
        plan = PLANS[report.scale]
        with passed(plan, report.seed) as world:
            _report_scenario(report, plan, world)
            for judge in _JUDGES:
                _report_found(report, judge(world.hub.chronicle))
            _report_found(report, judges.delivery(world))
            _report_found(report, healing.alone(world))
        _controls(report)
    return report.exit_code


def _report_scenario(report: Report, plan: Plan, world: World) -> None:
    counts = world.counts
    away = sum(each.lasts for each in world.outages) / HOUR
    crashes = sum(count for name, count in counts.items() if name.startswith("crashes"))
    attempts = sum(note.what is What.SENT for note in world.hub.chronicle)
    report.write(
        f"everything delivered after {world.now / DAY:.2f} days; {plan.runs:,} runs "
        f"({counts['continued']} continued after a reboot), {sum(each.epochs for each in world.trainings):,} epochs, "
        f"{attempts:,} attempts; {len(world.outages)} outages of {away:.1f} hours; {counts['restarts']} restarts, "
        f"{crashes} crashes, {counts['second workers']} second workers, {counts['reboots']} reboots, "
        f"{counts['jumps']} jumps of the clock, {counts['DestinationPaused']} waits for all lanes, "
        f"{counts['failing runs']} failing runs"
    )


def _report_found(report: Report, found: Found) -> None:
    report.write(found.line)
    report.require(found.judged > 0, "there was nothing to judge")
    for failure in found.wrong[:3]:
        report.require(False, failure)
    report.require(len(found.wrong) <= 3, f"and {len(found.wrong) - 3} more failures of this kind")


def _controls(report: Report) -> None:
    with passed(_RESTARTS, report.seed, Forgetful) as world:
        found = judges.spacing(world.hub.chronicle)
    report.write(
        f"control: a worker that forgets its spacing at a restart broke a limit {len(found.wrong)} times"
    )
    report.require(bool(found.wrong), "the control kept every limit: nothing was tested")
    with without_jitter(), passed(_HERD, report.seed) as world:
        found = judges.recovery(world.hub.chronicle)
    report.write(f"control: without jitter, {found.line}")
    report.require(
        any("in one second" in each for each in found.wrong),
        "the control's lanes did not come back in one second",
    )
    for name, (plan, judge, defects, patched) in _DEFECTS.items():
        with contextlib.ExitStack() as stack:
            for target, act in patched.items():
                stack.enter_context(mock.patch(target, act))
            found = judge(stack.enter_context(passed(plan, report.seed, **defects)))
        report.write(f"control, {name}: noticed {len(found.wrong)}")
        report.require(bool(found.wrong), f"the control ({name}) was not noticed")


if __name__ == "__main__":
    sys.exit(main())
