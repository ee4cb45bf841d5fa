"""Two and three processes on one run: each continues it while the one before still lives, and one after the other ends.

The state of the run is that of the process that ended last. Everything that any of them acknowledged must be at the hub,
which must not receive an end before that: an end that one of them reported is taken back when another one logs.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path

from stage import PATIENCE, end, hubqueue, platform_environ, start_worker
from torture.puppet import ENDS, FRESH, Puppet, pause

from hubqueue.sandbox import Sandbox

# What Platform shows of a run in each state.
AT_HUB = {"finished": "complete", "failed": "failed", "interrupted": "failed"}
# In seconds, for the end to reach the hub; without a judgement of what comes.
_PATIENCE = 30.0
# A control: a process that takes itself for the only one of its run.
_ALONE = """
from hubqueue.outbox import presence
presence.others_live = lambda first: False
presence.lives = lambda first: False
"""


@dataclass(frozen=True, slots=True)
class _Living:
    """A process, and how it will end."""

    training: Puppet
    how: str


@dataclass(slots=True)
class Overlapped:
    """The counts over runs, and what was wrong with them."""

    runs: int = 0
    processes: int = 0
    acknowledged: int = 0
    missing: int = 0
    early: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Overlapped) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def overlap_round(seed: str, folder: Path, *, alone: bool = False) -> Overlapped:
    """One run and its processes."""
    dice, counted = random.Random(seed), Overlapped(runs=1)
    folder.mkdir()
    with Sandbox(folder / "hub") as hub:
        environ = platform_environ(folder / "home", hub.url, HUBQUEUE_RETRY__CAP="1")
        worker = start_worker(environ)
        living: list[_Living] = []
        every: list[Puppet] = []
        ends: list[str] = []
        for number in range(dice.choice((2, 2, 3))):
            resume = every[0].run if every else None
            how = "finish" if alone else dice.choice(tuple(ENDS))
            training = Puppet(
                folder,
                f"training+{number}",
                environ,
                resume=resume,
                first=100 * number,
                defect=_ALONE if alone else "",
                fresh=how in FRESH,
            )
            every.append(training)
            living.append(_Living(training, how))
            training.do("log", dice.randrange(1, 4))
            if len(living) > 1 and dice.random() < 0.4:
                ends.append(_end_one(living, dice, alone=alone))
                _log(living, dice, hub, counted, ends)
        while len(living) > 1:
            ends.append(_end_one(living, dice, alone=alone))
            _log(living, dice, hub, counted, ends)
        (last,) = living
        last.training.end(last.how)
        ends.append(last.how)
        end(worker)
        worker = start_worker(
            environ
        )  # which looks for dead processes at its start, and then every five seconds
        hub.wait_until(lambda: any(hub.run(each).state != "training" for each in hub.runs), timeout=_PATIENCE)
        end(worker)
        drained = hubqueue(environ, "drain", "--timeout", "60")
        if drained.returncode:
            counted.wrong.append(f"after {ends}: something is left: {drained.stderr.strip()}")
        counted.processes += len(every)
        _judge(hub, every, ends, counted)
        shown = json.loads(hubqueue(environ, "runs", "--all", "--json").stdout)
        state = next(each["state"] for each in shown if each["id"] == every[0].run)
        if state != ENDS[ends[-1]]:
            counted.wrong.append(f"after {ends} the run is {state}")
    shutil.rmtree(folder)
    return counted


def _end_one(living: list[_Living], dice: random.Random, *, alone: bool) -> str:
    """End one process, of which others live: mostly an old one. Returns how."""
    ended = living.pop(0 if dice.random() < 0.7 else dice.randrange(len(living)))
    ended.training.end(ended.how)
    # A worker that is wrong sends the end in this time.
    pause(1.0 if alone else dice.choice((0.0, 0.0, 0.5)))
    return ended.how


def _log(
    living: list[_Living], dice: random.Random, hub: Sandbox, counted: Overlapped, ends: list[str]
) -> None:
    """Let the others log, and wait until that is at the hub: an end that was not taken back would be there first."""
    training = dice.choice(living).training
    training.do("log", dice.randrange(1, 4))
    newest = training.receipts()[-1].epoch
    arrived = hub.wait_until(lambda: newest in _epochs(hub), timeout=PATIENCE)
    if not arrived:
        counted.wrong.append(f"after {ends}, epoch {newest} of a living process did not arrive")
    if any(each.state != "training" for each in map(hub.run, hub.runs)):
        counted.early += 1


def _epochs(hub: Sandbox) -> set[int]:
    return {epoch for model_id in hub.runs for epoch in hub.run(model_id).epochs}


def _judge(hub: Sandbox, every: list[Puppet], ends: list[str], counted: Overlapped) -> None:
    arrived = _epochs(hub)
    for each in every:
        for receipt in each.receipts():
            counted.acknowledged += 1
            counted.missing += receipt.epoch not in arrived
    shown = [hub.run(model_id).state for model_id in hub.runs]
    if shown != [AT_HUB[ENDS[ends[-1]]]]:
        counted.wrong.append(f"after {ends} the hub shows {shown}")
