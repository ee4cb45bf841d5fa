"""Deliveries: kill -9 of workers, and of some trainers, for each type of destination, on real servers where there are some.

A round is a home with one or two trainings, whose workers are killed one after the other: at random instants, at named
failpoints, before, within and after the n-th request, at the n-th change of a folder. One more worker sends what is left.
Then everything that has a receipt must be at the destination, byte for byte and once, with nothing half beside it, and what
the destination had must not have been sent again. `torture/destinations/` has a file for each destination.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torture.destinations.deaths import of_defect
from torture.destinations.folder import Folder
from torture.destinations.http import OwnServer
from torture.destinations.huggingface import Huggingface
from torture.destinations.judge import Tally
from torture.destinations.mlflow import Mlflow
from torture.destinations.rounds import play
from torture.destinations.s3 import Bucket
from torture.destinations.target import Target
from torture.destinations.ultralytics import Hub, Platform
from torture.frame import Report, new_report

from hubqueue.domain.entry import Kind
from hubqueue.domain.outcome import Remote
from hubqueue.worker.delivery import Delivery

SENTENCE = (
    "whenever the workers of a destination are killed, everything whose call returned arrives there byte for byte, once, with "
    "nothing half left beside it; and what the destination had is not sent again"
)
TARGETS: tuple[type[Target], ...] = (Folder, Bucket, OwnServer, Mlflow, Huggingface, Hub, Platform)


@dataclass(frozen=True, slots=True)
class _Scale:
    """The kills of workers for each destination, and the turns of a home. `all`: each control at each destination."""

    kills: int
    turns: int
    all: bool


_SCALES = {
    "quick": _Scale(3, 5, all=False),
    "normal": _Scale(60, 8, all=True),
    "full": _Scale(600, 8, all=True),
}
_AT_ONCE = 4  # rounds: a process mostly waits
_MOST_SHOWN = 5
_MOST_CONTROLS = 24  # rounds, until a defect is noticed


def main(argv: list[str] | None = None) -> int:
    """Kill and count; 1 if the sentence is false. `--only TYPE` is for one destination."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", choices=[each.type for each in TARGETS], default=None)
    own, others = parser.parse_known_args(argv)
    report = new_report("deliveries", SENTENCE, others)
    chosen = [each() for each in TARGETS if own.only in (None, each.type)]
    with report.verdict(), tempfile.TemporaryDirectory(prefix="hubqueue-deliveries-") as folder:
        for target in chosen:
            lacks = target.missing()
            if lacks is not None:
                report.write(f"{target.type}: skipped, {lacks}")
                continue
            home = Path(folder) / target.type
            home.mkdir()
            with target.running(home):
                _of_destination(report, target, home)
    return report.exit_code


def _of_destination(report: Report, target: Target, folder: Path) -> None:
    scale = _SCALES[report.scale]
    found, number = Tally(), 0
    # A training may be killed before its first receipt: one round alone may have none.
    while found.kills < scale.kills or (found.acknowledged <= found.kills and number < scale.kills):
        rounds = max(1, min(3 * _AT_ONCE, (scale.kills - found.kills) // 5))
        acts = [_round(report, target, folder, number + each, scale) for each in range(rounds)]
        for each in _together(acts):
            found.add(each)
        number += rounds
    _write(report, target, found)
    for name in ("missing", "altered", "twice", "left", "again", "wrong"):
        cases: list[str] = getattr(found, name)
        for case in cases[:_MOST_SHOWN]:
            report.require(False, f"{target.type}, {name}: {case}")
        report.require(len(cases) <= _MOST_SHOWN, f"{target.type}, {name}: {len(cases) - _MOST_SHOWN} more")
    report.require(found.acknowledged > found.kills, f"{target.type}: hardly anything was acknowledged")
    if scale.all or target.type == TARGETS[0].type:
        _control(report, target, folder, "settled before it is sent", "missing", _settle_early)
    for name, (noticed, defect) in target.defects.items():
        _control(report, target, folder, name, noticed, defect)


def _control(
    report: Report, target: Target, folder: Path, name: str, noticed: str, defect: Callable[[], None]
) -> None:
    """Play rounds with a defect in each worker until it is noticed."""
    found, scale = Tally(), _SCALES[report.scale]
    while not getattr(found, noticed) and found.rounds < _MOST_CONTROLS:
        wave = range(found.rounds, found.rounds + min(found.rounds + 1, _AT_ONCE))
        for each in _together(
            [
                _round(report, target, folder, each, scale, name=name, choose=of_defect, defect=defect)
                for each in wave
            ]
        ):
            found.add(each)
    cases = getattr(found, noticed)
    report.write(
        f"{target.type}, control, {name}: noticed {len(cases)} times ({noticed}), with {found.kills} kills"
    )
    report.require(bool(cases), f"the control ({target.type}, {name}) was not noticed")


def _round(
    report: Report,
    target: Target,
    folder: Path,
    number: int,
    scale: _Scale,
    *,
    name: str = "",
    **options: Any,
) -> Callable[[], Tally]:
    seed = f"{report.seed} {target.type} {name} {number}"
    home = folder / f"round-{sum(map(ord, name))}-{number}"
    return partial(play, target, seed, home, turns=scale.turns, **options)


def _together(acts: Sequence[Callable[[], Tally]]) -> Iterable[Tally]:
    """Carry out rounds, several at a time, each in a process without threads: it forks."""
    with ProcessPoolExecutor(min(_AT_ONCE, len(acts)), multiprocessing.get_context("fork")) as pool:
        return [each.result() for each in [pool.submit(act) for act in acts]]


def _write(report: Report, target: Target, found: Tally) -> None:
    report.write(
        f"{target.type}: {found.rounds} homes, {found.kills} kills of workers and {found.trainer_kills} of trainers, "
        f"{found.acknowledged} acknowledged, missing {len(found.missing)}, altered {len(found.altered)}, stored twice "
        f"{len(found.twice)} ({found.regrouped} beside a replaced epoch), half left {len(found.left)}, sent again {len(found.again)} of {found.sent}, wrong "
        f"{len(found.wrong)}; {found.bytes / 1e6:,.0f} MB of checkpoints read back, {found.verified} by verify --read"
    )
    points = ", ".join(f"{name} {count}" for name, count in sorted(found.points.items()))
    report.write(f"{target.type}, killed at: {points}")


def _settle_early() -> None:
    """The defect of a control: metrics are marked as delivered, and the worker dies before it sends them."""
    inner = Delivery._send

    def send(self: Delivery, lease: Any, attempt: Any) -> Any:
        if lease.batch.kind is Kind.METRICS:
            self._outbox.settlement.ack(lease, started_at=None, remote=Remote())
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(self, lease, attempt)

    Delivery._send = send  # type: ignore[method-assign]


if __name__ == "__main__":
    os.environ.pop("HUBQUEUE_HOME", None)
    sys.exit(main())
