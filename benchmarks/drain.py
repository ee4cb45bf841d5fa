"""Draining a backlog over loopback with the limits at 0: coalesced, and where a hub takes one epoch a request.

The floor is a bare `requests` loop against the same server. What counts is from the first request to the last answer,
as the server saw it; the start and the end of the process are told apart.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.crowd import fill, new_runs
from benchmarks.place import Place, python, version
from benchmarks.report import Found, Line
from hubqueue.outbox.outbox import open_outbox

# Epochs a second, and the seconds of the process besides.
Rate = tuple[float, float]


def measure(place: Place) -> Found:
    rounds = 1 if place.quick else 3
    many, few = (20_000, 500) if place.quick else (100_000, 1_000)
    return Found([_coalesced(place, many, rounds), _one_a_request(place, few, rounds)])


def _coalesced(place: Place, epochs: int, rounds: int) -> Line:
    filled = _home(place, epochs)
    floor, ours = [], []
    for _ in range(rounds):
        floor.append(_bare(place, "loop", epochs, 1000))
        ours.append(_drain(place, filled, epochs, 1000))
    rate = statistics.median(rate for rate, _ in ours)
    besides = statistics.median(besides for _, besides in ours)
    return Line(
        f"drain of {epochs:,} epochs, limits at 0, loopback, coalesced",
        f"`requests` loop, 1,000 a request: {_median(floor):,.0f} epochs/s",
        f"{rate:,.0f} epochs/s, and {besides:.2f} s for the process",
        f"{_ratio(ours, floor):.2f}x",
        "≥ 50,000 epochs/s",
        rate >= 50_000,
    )


def _one_a_request(place: Place, epochs: int, rounds: int) -> Line:
    filled = _home(place, epochs)
    floor, ours, sdk = [], [], []
    for _ in range(rounds):
        floor.append(_bare(place, "loop", epochs, 1))
        ours.append(_drain(place, filled, epochs, 1))
        if version("hub-sdk"):
            sdk.append(_bare(place, "hub-sdk-loop", min(epochs, 500), 1))
    beside = f"; hub-sdk: {_median(sdk):,.0f}/s" if sdk else ""
    times = _ratio(ours, floor)
    return Line(
        f"drain of {epochs:,} epochs, one epoch a request",
        f"`requests` loop: {_median(floor):,.0f}/s{beside}",
        f"{_median(ours):,.0f} epochs/s",
        f"{times:.2f}x",
        "≥ 0.8x the `requests` loop",
        times >= 0.8,
    )


def _home(place: Place, epochs: int) -> Path:
    home = place.new("drain") / "home"
    with open_outbox(home, environ=place.environ(home)) as outbox:
        fill(outbox, new_runs(outbox, 1)[0], epochs)
    return home


def _drain(place: Place, filled: Path, epochs: int, a_request: int) -> Rate:
    home = place.new("drained") / "home"
    shutil.copytree(filled, home)
    os.sync()
    command = python("-m", "hubqueue", "--home", str(home), "drain", "--timeout", "150")
    return _run(place, command, place.environ(home, WORKER__BATCH_ENTRIES=a_request), epochs)


def _bare(place: Place, how: str, epochs: int, a_request: int) -> Rate:
    command = python("-m", "benchmarks.bare", how, place.hub.url, str(epochs), str(a_request))
    return _run(place, command, place.environ(place.folder), epochs)


def _run(place: Place, command: list[str], environ: dict[str, str], epochs: int) -> Rate:
    place.hub.seen(clear=True)
    start = time.perf_counter()
    subprocess.run(
        command, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=170
    )
    whole = time.perf_counter() - start
    seen = [each for each in place.hub.seen(clear=True) if each.what == "metrics"]
    assert sum(each.epochs for each in seen) == epochs, "the hub has not got every epoch once"
    took = max(each.answered for each in seen) - min(each.came for each in seen)
    return epochs / took, whole - took


def _median(rates: list[Rate]) -> float:
    return statistics.median(rate for rate, _ in rates)


def _ratio(ours: list[Rate], floor: list[Rate]) -> float:
    return statistics.median(mine / its for (mine, _), (its, _) in zip(ours, floor, strict=True))
