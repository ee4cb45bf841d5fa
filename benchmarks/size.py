"""The disk space of an entry beyond its payload, and whether the space of pruned entries is reused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import hubqueue
from benchmarks.context import Context, python
from benchmarks.report import Found, Line
from benchmarks.timing import SCALARS
from hubqueue.outbox.outbox import open_outbox
from hubqueue.producer.metrics import metrics_text

_CYCLES = 3


def measure(context: Context) -> Found:
    epochs = 1_000 if context.quick else 4_000
    home = context.new("size") / "home"
    environ = context.environ(home, OUTBOX__KEEP_DELIVERED=0, OUTBOX__KEEP_ATTEMPTS=0)
    sizes = []
    for cycle in range(_CYCLES):
        if cycle == 0:
            _log(home, 0)
            before = _size(home)
        _log(home, epochs)
        if cycle == 0:
            waiting = _size(home) - before
        for command in (("drain", "--timeout", "120"), ("prune",)):
            whole = python("-m", "hubqueue", "--home", str(home), *command)
            subprocess.run(whole, env=environ, check=True, stdout=subprocess.DEVNULL, timeout=130)
        # Compare equal states: settled entries need more space than waiting ones, because rows grow in full pages.
        sizes.append(_size(home))
    beyond = waiting / epochs - len(metrics_text(SCALARS).encode())
    growth = sizes[-1] / sizes[0]
    return Found(
        [
            Line(
                "outbox, a waiting metrics entry",
                f"its payload: {len(metrics_text(SCALARS))} bytes",
                f"{beyond:.0f} bytes beyond it",
                "",
                "< 400 bytes",
                beyond < 400,
            ),
            Line(
                f"outbox after {_CYCLES} times {epochs:,} enqueued, delivered and pruned",
                f"after the first: {sizes[0] / 1e6:.2f} MB",
                f"{sizes[-1] / 1e6:.2f} MB",
                f"{growth:.2f}x",
                "pruned space is reused: ≤ 1.1x",
                growth <= 1.1,
            ),
        ]
    )


def _log(home: Path, epochs: int) -> None:
    run = hubqueue.start_run("yolov8n.pt", home=home, worker="none", strict=True)
    for epoch in range(epochs):
        run.log_metrics(SCALARS, epoch=epoch)
    run.finish(timeout=0)
    assert run.outbox is not None
    run.outbox.close()


def _size(home: Path) -> int:
    """The size of the file, after the contents of its log were written into it."""
    with open_outbox(home, environ={}) as outbox, outbox.database.read() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return (home / "outbox.db").stat().st_size
