"""`save_checkpoint` of 1 GiB that is in the page cache, compared with `cp` and an fsync of the copy and its folder."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import hubqueue
from benchmarks.context import Context
from benchmarks.processes import forget_peak, peak, resident
from benchmarks.report import Found, Line
from benchmarks.timing import of_rounds, ratio, shown

_BLOCK = 1 << 20


def measure(context: Context) -> Found:
    rounds, blocks = (2, 256) if context.quick else (4, 1024)
    folder = context.new("checkpoint")
    source = large_file(folder / "last.pt", blocks)
    run = hubqueue.start_run("yolov8n.pt", home=folder / "home", worker="none", strict=True)
    floor: list[list[float]] = []
    ours: list[list[float]] = []
    for turn in range(rounds):
        sides = [
            lambda: floor.append([_copy(source, folder / "copy.pt")]),
            lambda turn=turn: ours.append([_save(run, source, turn)]),
        ]
        for side in sides if turn % 2 else reversed(sides):
            _read(source)
            os.sync()
            side()
    # Once more, to measure the memory, which is scarce in a training process.
    before = resident(os.getpid())
    forget_peak(os.getpid())
    _save(run, source, rounds)
    grown = (peak(os.getpid()) - before) / _BLOCK
    run.finish(timeout=0)
    times = ratio(ours, floor)
    size = f"{blocks / 1024:.3g} GiB"
    return Found(
        [
            Line(
                f"`save_checkpoint` of {size}, file in the page cache",
                f"`cp` and fsync: {shown(of_rounds(floor, 0.5))}",
                f"{shown(of_rounds(ours, 0.5))}, {grown:.1f} MiB more memory",
                f"{times:.2f}x",
                "≤ 1.15x",
                times <= 1.15,
            )
        ]
    )


def large_file(path: Path, blocks: int) -> Path:
    """Write a file of random data, `blocks` MiB, and sync it."""
    with path.open("wb") as file:
        for _ in range(blocks):
            file.write(os.urandom(_BLOCK))
        file.flush()
        os.fsync(file.fileno())
    return path


def _copy(source: Path, target: Path) -> float:
    target.unlink(missing_ok=True)
    start = time.perf_counter()
    subprocess.run(["cp", str(source), str(target)], check=True)
    for path in (target, target.parent):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    took = time.perf_counter() - start
    target.unlink()
    return took


def _save(run: hubqueue.Run, source: Path, epoch: int) -> float:
    start = time.perf_counter()
    run.save_checkpoint(source, epoch=epoch)
    return time.perf_counter() - start


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_BLOCK)
        while file.readinto(buffer):
            pass
