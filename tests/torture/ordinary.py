"""What people do to a home and to its processes, again and again, beside real trainings and workers.

Homes are deleted, replaced and restored (`torture.swaps`). Two environments share one (`torture.neighbours`). Processes
continue a run that still has one (`torture.overlaps`). Scripts end in all ways there are (`torture.exits`). Each has a
control that must fail.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

from torture.exits import EXITS, Exited, exit_round
from torture.frame import Report, new_report
from torture.neighbours import Addressed, address_round
from torture.overlaps import Overlapped, overlap_round
from torture.swaps import SWAPS, Swapped, swap_round

SENTENCE = (
    "whatever is done to a home under living processes, what is acknowledged afterwards arrives and what is lost is reported; "
    "two environments in one home send nothing to each other's hub; of several processes on one run the last one decides "
    "how it ended; and every way in which a script ends is recorded as what it was"
)


class _Scale(NamedTuple):
    """The number of homes of each kind. `exits` is the number of scripts in a home, `turns` of trainings in one."""

    swaps: int
    homes: int
    turns: int
    runs: int
    exits: int
    rounds: int


_SCALES = {
    "quick": _Scale(swaps=len(SWAPS), homes=2, turns=3, runs=3, exits=8, rounds=1),
    "normal": _Scale(swaps=60, homes=12, turns=6, runs=40, exits=len(EXITS), rounds=3),
    "full": _Scale(swaps=1200, homes=150, turns=8, runs=800, exits=len(EXITS), rounds=40),
}
_AT_ONCE = 4
_BLIND = ("home deleted", "home moved", "home replaced")


class _Tally(Protocol):
    def add(self, other: Self, /) -> None: ...


_T = TypeVar("_T", bound=_Tally)


def main(argv: list[str] | None = None) -> int:
    """Try all of it and count; 1 if the sentence is false."""
    report = new_report("ordinary", SENTENCE, argv)
    with report.verdict(), tempfile.TemporaryDirectory(prefix="hubqueue-ordinary-") as folder:
        scale = _SCALES[report.scale]
        _swaps(report, Path(folder), scale.swaps)
        _addresses(report, Path(folder), scale.homes, scale.turns)
        _overlaps(report, Path(folder), scale.runs)
        _exits(report, Path(folder), scale.exits, scale.rounds)
    return report.exit_code


def _swaps(report: Report, folder: Path, homes: int) -> None:
    dice = random.Random(f"{report.seed} swaps")
    turns = itertools.cycle(dice.sample(sorted(SWAPS), len(SWAPS)))
    plans = [
        (next(turns), *([dice.choice(sorted(SWAPS))] if dice.random() < 0.3 else [])) for _ in range(homes)
    ]
    found = _together(
        Swapped(),
        (
            partial(swap_round, f"{report.seed} {number}", folder / f"swap-{number}", names)
            for number, names in enumerate(plans)
        ),
    )
    report.write(
        f"{homes} homes swapped {found.swaps} times under a training and a worker: acknowledged afterwards {found.after}, "
        f"missing {found.missing}; acknowledged before {found.before}, lost and reported {found.lost - found.silent}, lost "
        f"silently {found.silent}; of the home that replaced it {found.foreign}, missing {found.foreign_missing}; "
        f"altered {found.altered}, left {found.pending}"
    )
    report.require(found.after > 10 * homes, "hardly anything was acknowledged after a swap")
    report.require(found.missing == 0, f"{found.missing} entries acknowledged after a swap never arrived")
    report.require(found.silent == 0, f"{found.silent} lost entries were not reported")
    report.require(
        found.foreign_missing == 0, f"{found.foreign_missing} entries of the other home are missing"
    )
    report.require(found.altered == 0, f"{found.altered} arrived altered")
    report.require(found.pending == 0, f"{found.pending} could not be sent")
    _require_none(report, found.homes)
    blind = _together(
        Swapped(),
        (
            partial(swap_round, f"{report.seed} blind {name}", folder / f"blind-{name}", (name,), blind=True)
            for name in _BLIND
        ),
    )
    report.write(
        f"control: a training that never looks at its file lost {blind.missing} of {blind.after} silently"
    )
    report.require(blind.missing > 0, "the control lost nothing: these swaps prove nothing")


def _addresses(report: Report, folder: Path, homes: int, turns: int) -> None:
    found = _together(
        Addressed(),
        (
            partial(address_round, f"{report.seed} {number}", folder / f"address-{number}", turns)
            for number in range(homes)
        ),
    )
    report.write(
        f"{homes} homes of two environments: {found.trainings} trainings, {found.workers} workers ({found.kills} killed), "
        f"{found.requests} requests; at the other's hub, or with the other's key: {found.crossed}; acknowledged "
        f"{found.acknowledged}, missing {found.missing}"
    )
    report.require(found.crossed == 0, f"{found.crossed} requests crossed over")
    report.require(found.missing == 0, f"{found.missing} acknowledged entries never arrived")
    report.require(found.acknowledged > 10 * homes, "hardly anything was acknowledged")
    greedy = _together(
        Addressed(),
        [partial(address_round, f"{report.seed} greedy", folder / "greedy", max(4, turns), greedy=True)],
    )
    report.write(f"control: workers that send all they find crossed over {greedy.crossed} times")
    report.require(greedy.crossed > 0, "the control crossed over nothing: these homes prove nothing")


def _overlaps(report: Report, folder: Path, runs: int) -> None:
    found = _together(
        Overlapped(),
        (
            partial(overlap_round, f"{report.seed} {number}", folder / f"overlap-{number}")
            for number in range(runs)
        ),
    )
    report.write(
        f"{found.runs} runs with {found.processes} processes: acknowledged {found.acknowledged}, missing {found.missing}; ends "
        f"at the hub before the last process had ended: {found.early}; wrong ends {len(found.wrong)}"
    )
    report.require(found.missing == 0, f"{found.missing} acknowledged epochs never arrived")
    report.require(found.early == 0, f"{found.early} ends were sent too early")
    _require_none(report, found.wrong)
    alone = _together(
        Overlapped(),
        (
            partial(overlap_round, f"{report.seed} alone {number}", folder / f"alone-{number}", alone=True)
            for number in range(2)
        ),
    )
    report.write(f"control: processes that do not see each other sent {alone.early} ends too early")
    report.require(alone.early > 0, "the control sent no end too early: these runs prove nothing")


def _exits(report: Report, folder: Path, scripts: int, rounds: int) -> None:
    dice = random.Random(f"{report.seed} exits")
    found = _together(
        Exited(),
        (
            partial(exit_round, f"{report.seed} {number}", folder / f"exit-{number}", names)
            for number, names in enumerate(tuple(dice.sample(sorted(EXITS), scripts)) for _ in range(rounds))
        ),
        at_once=1,
    )
    report.write(
        f"{found.scripts} scripts ended in {scripts} ways: wrong states {len(found.wrong)}; acknowledged "
        f"{found.acknowledged}, missing {found.missing}"
    )
    report.require(found.missing == 0, f"{found.missing} acknowledged epochs never arrived")
    _require_none(report, found.wrong)
    unnoticed = exit_round(
        f"{report.seed} unnoticed", folder / "unnoticed", ("end", "exit 0"), unnoticed=True
    )
    report.write(
        f"control: without a look at the end of the interpreter {len(unnoticed.wrong)} states were wrong"
    )
    report.require(bool(unnoticed.wrong), "the control recorded every state: these scripts prove nothing")


def _together(found: _T, rounds: Iterable[Callable[[], _T]], *, at_once: int = _AT_ONCE) -> _T:
    """Carry out rounds, several at a time; most of their time they wait for processes."""
    with ThreadPoolExecutor(at_once) as pool:
        for each in pool.map(lambda act: act(), rounds):
            found.add(each)
    return found


def _require_none(report: Report, wrong: list[str]) -> None:
    for each in wrong[:5]:
        report.require(False, each)
    report.require(len(wrong) <= 5, f"and {len(wrong) - 5} more of this kind")


if __name__ == "__main__":
    sys.exit(main())
