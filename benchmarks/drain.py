"""Draining a backlog over loopback with the limits at 0: coalesced, and with one epoch per request.

The floor is a bare `requests` loop against the same server. The time is measured from the first request to the last
response, at the server. The start and the end of the process are reported separately.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.context import Context, python, version
from benchmarks.crowd import fill, new_runs
from benchmarks.report import Found, Line
from hubqueue.outbox.outbox import open_outbox

# Epochs per second, and the other seconds of the process.
Rate = tuple[float, float]


def measure(context: Context) -> Found:
    rounds = 1 if context.quick else 3
    many, few = (20_000, 500) if context.quick else (100_000, 1_000)
    return Found([_coalesced(context, many, rounds), _one_a_request(context, few, rounds)])


def _coalesced(context: Context, epochs: int, rounds: int) -> Line:
    filled = _home(context, epochs)
    floor, ours = [], []
    for _ in range(rounds):
        floor.append(_bare(context, "loop", epochs, 1000))
        ours.append(_drain(context, filled, epochs, 1000))
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


def _one_a_request(context: Context, epochs: int, rounds: int) -> Line:
    filled = _home(context, epochs)
    floor, ours, sdk = [], [], []
    for _ in range(rounds):
        floor.append(_bare(context, "loop", epochs, 1))
        ours.append(_drain(context, filled, epochs, 1))
        if version("hub-sdk"):
            sdk.append(_bare(context, "hub-sdk-loop", min(epochs, 500), 1))
    peers = f"; hub-sdk: {_median(sdk):,.0f}/s" if sdk else ""
    times = _ratio(ours, floor)
    return Line(
        f"drain of {epochs:,} epochs, one epoch a request",
        f"`requests` loop: {_median(floor):,.0f}/s{peers}",
        f"{_median(ours):,.0f} epochs/s",
        f"{times:.2f}x",
        "≥ 0.8x the `requests` loop",
        times >= 0.8,
    )


def _home(context: Context, epochs: int) -> Path:
    home = context.new("drain") / "home"
    with open_outbox(home, environ=context.environ(home)) as outbox:
        fill(outbox, new_runs(outbox, 1)[0], epochs)
    return home


def _drain(context: Context, filled: Path, epochs: int, a_request: int) -> Rate:
    home = context.new("drained") / "home"
    shutil.copytree(filled, home)
    os.sync()
    command = python("-m", "hubqueue", "--home", str(home), "drain", "--timeout", "150")
    return _run(context, command, context.environ(home, WORKER__BATCH_ENTRIES=a_request), epochs)


def _bare(context: Context, how: str, epochs: int, a_request: int) -> Rate:
    command = python("-m", "benchmarks.bare", how, context.hub.url, str(epochs), str(a_request))
    return _run(context, command, context.environ(context.folder), epochs)


def _run(context: Context, command: list[str], environ: dict[str, str], epochs: int) -> Rate:
    context.hub.seen(clear=True)
    start = time.perf_counter()
    subprocess.run(
        command, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=170
    )
    whole = time.perf_counter() - start
    seen = [each for each in context.hub.seen(clear=True) if each.what == "metrics"]
    assert sum(each.epochs for each in seen) == epochs, "the hub did not receive every epoch exactly once"
    took = max(each.answered for each in seen) - min(each.came for each in seen)
    return epochs / took, whole - took


def _median(rates: list[Rate]) -> float:
    return statistics.median(rate for rate, _ in rates)


def _ratio(ours: list[Rate], floor: list[Rate]) -> float:
    return statistics.median(mine / its for (mine, _), (its, _) in zip(ours, floor, strict=True))
