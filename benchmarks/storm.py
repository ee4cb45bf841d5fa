"""Four trainers on one home log at full speed while a worker drains a backlog at full speed; compared with raw sqlite3.

Raw sqlite3 is the simple alternative: the same journal mode and level, SQLite's own busy handler, a worker that
claims and deletes a hundred at a time without a pause. The uncontended floor is measured in the same rounds.
"""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contender import Block, Contender
from benchmarks.context import Context, python
from benchmarks.crowd import fill, new_runs
from benchmarks.peers import Floor, Known
from benchmarks.processes import ended, wait_until
from benchmarks.report import Found, Line
from benchmarks.timing import of_rounds, ratio, shown
from hubqueue.config.home import Home
from hubqueue.outbox.outbox import open_outbox
from hubqueue.worker.daemon import worker_lives

_TRAINERS = 4
_BACKLOG = 200_000


def measure(context: Context) -> Found:
    rounds, seconds = (1, 4.0) if context.quick else (3, 6.0)
    alone, ours, raw = [], [], []
    for _ in range(rounds):
        with Contender(Known.FLOOR, context.new("alone")) as floor:
            floor.call(100)
            alone.append(floor.call(1000).seconds)
        raw.append(_raw(context, seconds))
        ours.append(_ours(context, seconds))
    calm, stormy = [storm.seconds for storm in ours], [storm.seconds for storm in raw]
    p99 = ratio(calm, alone, 0.99)
    worst, its_worst = max(map(max, calm)), max(map(max, stormy))
    errors, its_errors = sum(len(storm.errors) for storm in ours), sum(len(storm.errors) for storm in raw)
    what = "the same, 4 trainers flat out on one home, a worker draining flat out"
    pace, its_pace = (sum(map(len, each)) / rounds / seconds for each in (calm, stormy))
    lines = [
        Line(
            f"{what}: p99",
            f"uncontended {shown(of_rounds(alone, 0.99))}; raw in the storm {shown(of_rounds(stormy, 0.99))} ({its_pace:,.0f} calls/s)",
            f"{shown(of_rounds(calm, 0.99))} (p50 {shown(of_rounds(calm, 0.5))}, {pace:,.0f} calls/s)",
            f"{p99:.1f}x",
            "≤ 10x the uncontended floor",
            p99 <= 10,
        ),
        Line(
            f"{what}: worst",
            f"raw in the storm {shown(its_worst)}",
            shown(worst),
            f"{worst / its_worst:.3f}x",
            "< 0.1x raw sqlite3's worst",
            worst < its_worst / 10,
        ),
        Line(f"{what}: errors", f"{its_errors}", f"{errors}", "", "none", errors == 0),
    ]
    return Found(lines)


def _ours(context: Context, seconds: float) -> Block:
    folder = context.new("storm")
    home = folder / "home"
    environ = context.environ(home)
    with open_outbox(home, environ=environ) as outbox:
        for run_id in new_runs(outbox, _TRAINERS):
            fill(outbox, run_id, _BACKLOG // _TRAINERS)
    with ExitStack() as stack:
        trainers = [stack.enter_context(Contender(Known.OURS, folder, environ)) for _ in range(_TRAINERS)]
        command = python("-m", "hubqueue", "--home", str(home), "worker")
        worker = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
        with ended(worker):
            wait_until(lambda: worker_lives(Home(home)))
            return _together(trainers, seconds)


def _raw(context: Context, seconds: float) -> Block:
    folder = context.new("raw")
    _fill_raw(folder)
    with ExitStack() as stack:
        worker = stack.enter_context(Contender("raw worker", folder))
        trainers = [stack.enter_context(Contender(Known.FLOOR, folder)) for _ in range(_TRAINERS)]
        worker.start(seconds=seconds + 0.5)
        blocks = _together(trainers, seconds)
        worker.read_block()
        return blocks


def _together(trainers: list[Contender], seconds: float) -> Block:
    at = time.monotonic() + 0.3
    for trainer in trainers:
        trainer.start(seconds=seconds, at=at)
    blocks = [trainer.read_block() for trainer in trainers]
    calls, errors = (
        [second for each in blocks for second in each.seconds],
        [e for each in blocks for e in each.errors],
    )
    return Block(calls, errors, blocks[0].began, blocks[0].ended)


def _fill_raw(folder: Path) -> None:
    floor = Floor(folder)
    floor.fill(_BACKLOG)
    floor.close()
