"""Processes that the benchmarks start, measure and end. Memory and processor time come from Linux's /proc."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE = 120.0


def wait_until(true: Callable[[], object], *, timeout: float = _PATIENCE, every: float = 0.01) -> None:
    """Wait for an effect of another process. Raises `TimeoutError`."""
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        pause.wait(every)


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is terminated afterwards, and killed if it does not end."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def tree(pid: int) -> list[int]:
    """A process and all its live descendants, parents first."""
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*/children")
        for child in task.read_text().split()
    ]
    return [pid, *(each for child in children for each in tree(child))]


def resident(pid: int) -> int:
    """Its resident memory in bytes."""
    return _status(pid, "VmRSS")


def peak(pid: int) -> int:
    """The peak of its resident memory since `forget_peak`, in bytes."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def processor_seconds(pid: int) -> float:
    """The processor time of all its threads, to the nanosecond if the kernel provides it."""
    try:
        each = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        return sum(int(text.split()[0]) for text in each) / 1e9
    except OSError:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
