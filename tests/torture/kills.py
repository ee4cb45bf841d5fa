"""Kills: SIGKILL of trainers and workers, at random instants and at every failpoint, repeatedly on one outbox.

Counted at the hub: every entry whose call returned (its receipt is written right after) must be there, whichever
process was killed. The controls write their receipt too early, or settle before they send.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import urllib.request
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from stage import environ_of
from torture.frame import Report, new_report
from torture.lives import POINTS, Life, live

from hubqueue.sandbox import Sandbox

SENTENCE = (
    "every entry whose call returned reaches the hub, byte for byte, under any number of kills of trainers and workers; a hub "
    "that honours Idempotency-Key stores nothing twice, another one at most one batch per kill"
)
KILLS = {"quick": 24, "normal": 400, "full": 10_000}
_LIVES = 6  # of trainers and of workers on one outbox
_AT_ONCE = 12  # outboxes: a process mostly waits


@dataclass(slots=True)
class Tally:
    """The counts over all outboxes."""

    kills: int = 0
    acknowledged: int = 0
    missing: int = 0
    altered: int = 0
    stored_twice: int = 0
    worker_kills: int = 0
    points: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class Hub:
    """A sandbox in its own process, so that this process can fork."""

    def __init__(self, folder: Path, *, honours: bool) -> None:
        reading, writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                hub = Sandbox(folder, honour_idempotency=honours).start()
                os.write(writing, f"{hub.url}\n".encode())
                hub.serve_forever()
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            self.url = pipe.readline().strip()

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return json.load(response)

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def main(argv: list[str] | None = None) -> int:
    """Kill and count; 1 if the sentence is false."""
    report = new_report("kills", SENTENCE, argv)
    with report.verdict(), tempfile.TemporaryDirectory(prefix="hubqueue-kills-") as folder:
        for honours in (True, False):
            tally = _rounds(report, Path(folder), KILLS[report.scale] // 2, honours=honours)
            name = "a hub that honours the key" if honours else "a hub that ignores it"
            report.write(
                f"{name}: {tally.kills} kills ({tally.worker_kills} of workers), {tally.acknowledged} acknowledged, "
                f"missing {tally.missing}, altered {tally.altered}, stored twice {tally.stored_twice} batches"
            )
            report.write(
                "killed at: " + ", ".join(f"{name} {count}" for name, count in sorted(tally.points.items()))
            )
            report.require(tally.missing == 0, f"{tally.missing} acknowledged entries never arrived")
            report.require(tally.altered == 0, f"{tally.altered} arrived altered")
            most = 0 if honours else tally.worker_kills
            report.require(tally.stored_twice <= most, f"{tally.stored_twice} batches were stored twice")
            report.require(tally.acknowledged > tally.kills, "hardly anything was acknowledged")
        for name in ("early receipt", "early settle"):
            lost = _rounds(
                report, Path(folder), max(20, KILLS[report.scale] // 20), honours=True, control=name
            )
            report.write(f"control, {name}: of {lost.acknowledged} acknowledged {lost.missing} are missing")
            report.require(lost.missing > 0, f"the control ({name}) lost nothing: these kills prove nothing")
    return report.exit_code


def _rounds(report: Report, folder: Path, kills: int, *, honours: bool, control: str | None = None) -> Tally:
    """Run outboxes, several at a time, until there were `kills` kills. Each has its own random generator."""
    tally, number = Tally(), 0
    with ProcessPoolExecutor(_AT_ONCE, multiprocessing.get_context("fork")) as pool:
        while tally.kills < kills:
            wave = max(1, min(4 * _AT_ONCE, (kills - tally.kills) // (2 * _LIVES)))
            round_ = partial(_round, report.seed, folder, honours=honours, control=control)
            for counted in pool.map(round_, range(number, number + wave)):
                tally.add(counted)
            number += wave
    return tally


def _round(seed: int, folder: Path, number: int, *, honours: bool, control: str | None) -> Tally:
    """One outbox: several trainers and workers, most of them killed, then a worker that is not killed."""
    dice, tally = random.Random(f"{seed} {honours} {control} {number}"), Tally()
    folder /= f"{control or honours}-{number}"
    folder.mkdir()
    hub = Hub(folder / "hub", honours=honours)
    environ = environ_of(
        folder / "home",
        hub.url,
        HUBQUEUE_RATE_LIMITS__METRICS="0",
        HUBQUEUE_RATE_LIMITS__CKPT="0",
        HUBQUEUE_RETRY__CAP="0.05",
        HUBQUEUE_RETRY__BASE="0.05",
    )
    try:
        for turn in range(_LIVES):
            lives = [
                _begin("trainer", dice, folder, environ, turn, control),
                _begin("worker", dice, folder, environ, turn, control),
            ]
            for life in lives:
                if life.end(dice):
                    tally.kills += 1
                    tally.worker_kills += life.role == "worker"
                    tally.points[life.point or "a random instant"] += 1
        last = live("worker", folder, environ, _LIVES, None, None, to_the_end=True)
        last.wait()
        _compare(hub, folder, tally)
    finally:
        hub.close()
    shutil.rmtree(folder)
    return tally


def _begin(
    role: str, dice: random.Random, folder: Path, environ: dict[str, str], turn: int, control: str | None
) -> Life:
    point = dice.choice(POINTS[role]) if dice.random() < 0.6 else None
    passage = dice.randrange(1, 8) if point else None
    if control == "early receipt":
        point, passage = ("before commit", dice.randrange(3, 12)) if role == "trainer" else (None, None)
    elif control == "early settle" and role == "worker":
        point, passage = "before send", dice.randrange(1, 4)
    return live(role, folder, environ, turn, point, passage, control=control)


def _compare(hub: Hub, folder: Path, tally: Tally) -> None:
    known = [hub.ask(f"/api/models/{each['id']}") for each in hub.ask("/api/models")["models"]]
    by_writer = {model["name"]: model for model in known}
    for path in folder.glob("receipts-*.jsonl"):
        for line in path.read_text().splitlines():
            receipt = json.loads(line)
            tally.acknowledged += 1
            model = by_writer.get(receipt["writer"])
            if model is None:
                tally.missing += 1
            elif receipt["what"] == "epoch":
                found = model["metrics"].get(str(receipt["epoch"]))
                tally.missing += found is None
                tally.altered += found is not None and found.get("loss") != receipt["loss"]
            elif receipt["what"] == "final":
                digests = [each["sha256"] for each in model["files"] if each["type"] == "final"]
                tally.missing += not digests
                tally.altered += bool(digests) and digests[-1] != receipt["sha256"]
    tally.stored_twice += _stored_twice(hub.ask("/api/requests")["requests"])


def _stored_twice(requests: list[dict[str, Any]]) -> int:
    """The number of requests carried out with epochs (or a registration) that an earlier request had delivered."""
    seen: set[tuple[str, int]] = set()
    twice = 0
    for each in requests:
        if each["kind"] != "metrics" or each["status"] != 200 or each.get("replayed"):
            continue
        brought = {(each["model_id"], epoch) for epoch in each["epochs"]}
        twice += bool(brought & seen)
        seen |= brought
    return twice


if __name__ == "__main__":
    os.environ.pop("HUBQUEUE_HOME", None)
    sys.exit(main())
