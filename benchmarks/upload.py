"""Uploading a checkpoint of 2 GiB over loopback, compared with a bare PUT of the file object and with hub-sdk.

hubqueue's time is that of the whole attempt, from the claim to the settle. The memory is the growth of a worker process
from idle to its peak.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

from benchmarks.checkpoint import large_file
from benchmarks.context import Context, python, version
from benchmarks.processes import ended, forget_peak, peak, resident, wait_until
from benchmarks.report import Found, Line
from benchmarks.timing import shown
from hubqueue.config.home import Home
from hubqueue.outbox.outbox import open_outbox
from hubqueue.worker.daemon import worker_lives

# Seconds, and growth of the memory in bytes.
Cost = tuple[float, int]
_MIB = 1 << 20


def measure(context: Context) -> Found:
    rounds, blocks = (1, 512) if context.quick else (3, 2048)
    source = large_file(context.new("upload") / "best.pt", blocks)
    floor: list[Cost] = []
    ours: list[Cost] = []
    sdk: list[Cost] = []
    for _ in range(rounds):
        floor.append(_bare(context, "put", source))
        ours.append(_worker(context, source))
        if version("hub-sdk"):
            sdk.append(_bare(context, "hub-sdk-upload", source))
    size = f"upload of a checkpoint of {blocks / 1024:.3g} GiB, loopback"
    speed = statistics.median(its / mine for (mine, _), (its, _) in zip(ours, floor, strict=True))
    lines = [
        Line(
            size,
            f"bare PUT: {_words(floor)}",
            _words(ours),
            f"{speed:.2f}x the speed",
            "≥ 0.8x the speed",
            speed >= 0.8,
        )
    ]
    if sdk:
        faster = statistics.median(its / mine for (mine, _), (its, _) in zip(ours, sdk, strict=True))
        lines.append(
            Line(
                size,
                f"hub-sdk: {_words(sdk)}",
                _words(ours),
                f"{faster:.2f}x the speed",
                "faster than hub-sdk",
                faster > 1,
            )
        )
    grown = max(more for _, more in ours)
    peers = (
        f"hub-sdk: {max(more for _, more in sdk) / _MIB:,.0f} MiB; bare PUT: {max(more for _, more in floor) / _MIB:.0f} MiB"
        if sdk
        else ""
    )
    lines.append(
        Line(
            f"{size}: memory above that at rest",
            peers,
            f"{grown / _MIB:.1f} MiB",
            "",
            "< 32 MiB",
            grown < 32 * _MIB,
        )
    )
    return Found(lines)


def _bare(context: Context, how: str, source: Path) -> Cost:
    command = python("-m", "benchmarks.bare", how, context.hub.url, str(source))
    done = subprocess.run(
        command, env=context.environ(context.folder), check=True, capture_output=True, timeout=170
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["seconds"], found["grown"]


def _worker(context: Context, source: Path) -> Cost:
    home = context.new("uploaded") / "home"
    environ = context.environ(home)

    def hubqueue(*arguments: str) -> str:
        command = python("-m", "hubqueue", "--home", str(home), *arguments)
        return subprocess.run(
            command, env=environ, check=True, capture_output=True, text=True, timeout=120
        ).stdout.strip()

    run_id = hubqueue("enqueue", "run", "yolov8n.pt")
    command = python("-m", "hubqueue", "--home", str(home), "worker")
    context.hub.seen(clear=True)
    with (
        ended(subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)) as worker,
        open_outbox(home, environ=environ) as outbox,
    ):
        wait_until(lambda: worker_lives(Home(home)))
        context.hub.seen("model", 1)
        before = resident(worker.pid)
        forget_peak(worker.pid)
        hubqueue("enqueue", "checkpoint", "--run", run_id, "--epoch", "0", "--final", str(source))
        took: list[int] = []

        def settled() -> bool:
            with outbox.database.read() as connection:
                took[:] = [row[0] for row in connection.exec_driver_sql(_TOOK)]
            return bool(took)

        wait_until(settled)
        return took[0] / 1e6, peak(worker.pid) - before


_TOOK = """
SELECT ended_at - claimed_at FROM attempts JOIN lanes ON lanes.id = lane_id
WHERE kind = 'ckpt' AND outcome = 'delivered'"""


def _words(costs: list[Cost]) -> str:
    return shown(statistics.median(seconds for seconds, _ in costs))
