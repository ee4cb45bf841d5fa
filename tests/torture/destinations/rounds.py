"""One round: trainings and workers of one home, most of the workers killed, then a worker that is not."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import template
from torture import lives
from torture.destinations.deaths import Death, fork, of_trainer, of_worker, result_of, run, work
from torture.destinations.judge import Tally, judge
from torture.destinations.tap import Tap
from torture.destinations.target import Site, Target
from torture.destinations.training import train

_MOST_TRAININGS = 3

ChooseDeath = Callable[[random.Random, Target], Death | None]


def play(
    target: Target,
    seed: str,
    folder: Path,
    *,
    turns: int,
    choose: ChooseDeath = of_worker,
    defect: Callable[[], None] | None = None,
) -> Tally:
    """Play a round in a new folder, and judge what is there afterwards. `turns` is how many times workers are started."""
    folder.mkdir()
    template.lay(folder / "home")
    with target.site(folder) as site:
        tap = Tap(site.url) if site.url else None
        try:
            tally = _play(target, site, tap, random.Random(seed), folder, turns, choose, defect)
        finally:
            if tap is not None:
                tap.close()
    shutil.rmtree(folder)
    return tally


def _play(
    target: Target,
    site: Site,
    tap: Tap | None,
    dice: random.Random,
    folder: Path,
    turns: int,
    choose: ChooseDeath,
    defect: Callable[[], None] | None,
) -> Tally:
    environ = site.environ(folder / "home", tap.url if tap else "")
    tally, trainings = Tally(rounds=1), 0
    for turn in range(turns):
        processes = []
        if turn == 0 or (trainings < min(_MOST_TRAININGS, turns // 2) and dice.random() < 0.35):
            training = partial(
                train, folder, f"writer-{trainings}", random.Random(dice.random()), target.sizes, target.name
            )
            death = of_trainer(dice) if defect is None else None
            processes.append(fork("trainer", partial(_armed, death, training), environ, death))
            trainings += 1
        death = choose(dice, target)
        processes.append(
            fork("worker", partial(work, target, death, defect, to_the_end=False), environ, death)
        )
        if dice.random() < 0.1:  # another one beside it, which lives
            other = partial(work, target, None, defect, to_the_end=False)
            processes.append(fork("worker", other, environ, None))
        run(processes, tap)
        for each in processes:
            tally.wrong += each.wrong
            if each.was_killed and each.death is not None:
                tally.kills += each.role == "worker"
                tally.trainer_kills += each.role == "trainer"
                tally.points[f"{each.role}, {each.death}"] += 1
        tally.wrong += site.look()
    last = fork("worker", partial(work, target, None, None, to_the_end=True), environ, None)
    run([last], None)
    tally.wrong += last.wrong + site.look()
    seen = tap.seen() if tap else []
    site.rest()
    # Through the tap: what is read has the address of the runs.
    found = result_of(lambda: judge(target, folder, site.there(seen)), environ)
    if found is None:
        tally.wrong.append("a round could not be judged")
    else:
        tally.add(found)
    result_of(partial(site.clear, seen), environ)
    return tally


def _armed(death: Death | None, act: Callable[[], None]) -> None:
    if death is not None and death.number:
        lives.arm(death.point, death.number)
    act()
