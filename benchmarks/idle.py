"""An idle worker process: its processor time over an interval, and its resident memory (Linux: /proc)."""

from __future__ import annotations

import subprocess
import threading
import time

from benchmarks.context import Context, python
from benchmarks.processes import ended, processor_seconds, resident, wait_until
from benchmarks.report import Found, Line
from hubqueue.config.home import Home
from hubqueue.worker.daemon import worker_lives

_MIB = 1 << 20


def measure(context: Context) -> Found:
    seconds = 10.0 if context.quick else 30.0
    home = context.new("idle") / "home"
    environ, pause = context.environ(home), threading.Event()
    subprocess.run(
        python("-m", "hubqueue", "--home", str(home), "enqueue", "run", "yolov8n.pt"),
        env=environ,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    context.hub.seen(clear=True)
    command = python("-m", "hubqueue", "--home", str(home), "worker")
    with ended(subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)) as worker:
        wait_until(lambda: worker_lives(Home(home)))
        context.hub.seen("model", 1)  # it has sent something before
        pause.wait(3.0)
        before, start = processor_seconds(worker.pid), time.monotonic()
        pause.wait(seconds)
        share = (processor_seconds(worker.pid) - before) / (time.monotonic() - start)
        memory = resident(worker.pid) / _MIB
    return Found(
        [
            Line(
                "idle worker, processor", "", f"{share * 100:.2f} % of a core", "", "< 0.5 %", share < 0.005
            ),
            Line("idle worker, memory", "", f"{memory:.0f} MiB resident", "", "< 80 MiB", memory < 80),
        ]
    )
