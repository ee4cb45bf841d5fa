"""The time from the call of `log_metrics` to the first byte of its request, with an idle worker and no limits.

The hub records the arrival of a request; both clocks are the machine's monotonic one. The trainer is a separate process.
Between two epochs it waits for the response of the hub, and then for a random time, so that the worker is idle.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import hubqueue
from benchmarks.context import Context, python
from benchmarks.processes import wait_until
from benchmarks.report import Found, Line
from benchmarks.timing import SCALARS, quantile, shown
from hubqueue.config.home import Home
from hubqueue.worker.daemon import worker_lives

_WAYS = {
    "thread": ("in-process (worker='thread')", 0.1, "p95 < 100 ms"),
    "auto": ("across processes (worker process)", 1.0, "p95 < 1 s"),
}


def measure(context: Context) -> Found:
    epochs = 15 if context.quick else 50
    lines = []
    for worker, (words, limit, target) in _WAYS.items():
        found = _trainer(context, worker, epochs)
        p95 = quantile(found, 0.95)
        measured = f"p50 {shown(quantile(found, 0.5))}, p95 {shown(p95)}, worst {shown(max(found))}"
        lines.append(
            Line(f"from enqueue to request, worker idle, {words}", "", measured, "", target, p95 < limit)
        )
    return Found(lines)


def _trainer(context: Context, worker: str, epochs: int) -> list[float]:
    home = context.new("latency") / "home"
    environ = context.environ(home, WORKER__IDLE_EXIT=1)
    context.hub.seen(clear=True)
    command = python("-m", "benchmarks.latency", worker, str(home), context.hub.url, str(epochs))
    done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, timeout=170)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(worker: str, home: str, url: str, epochs: str) -> None:
    run = hubqueue.start_run("yolov8n.pt", home=home, worker=worker, strict=True)  # type: ignore[arg-type]
    pause, dice, found = threading.Event(), random.Random(1), []
    for epoch in range(int(epochs) + 1):
        start = time.monotonic()
        run.log_metrics(SCALARS, epoch=epoch)
        found.append(_came(url, epoch + 1) - start)
        pause.wait(dice.uniform(0.15, 0.65))
    run.finish(timeout=10)
    _end_worker(run, Path(home))
    # The first epoch waited for the start of the worker and the registration.
    print(json.dumps(found[1:]))


def _came(url: str, count: int) -> float:
    """The arrival time of the `count`-th request with metrics."""
    asking = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    asking.request("GET", f"/bench/seen?what=metrics&count={count}")
    seen = [each for each in json.loads(asking.getresponse().read()) if each[0] == "metrics"]
    asking.close()
    return float(seen[count - 1][1])


def _end_worker(run: hubqueue.Run, home: Path) -> None:
    """Wait for the detached worker, which exits after a second without work; terminate it if it does not."""
    assert run.outbox is not None
    state = run.outbox.status()["worker"]
    try:
        wait_until(lambda: not worker_lives(Home(home)), timeout=20.0, every=0.1)
    except TimeoutError:
        if state["alive"]:
            os.kill(state["pid"], signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
