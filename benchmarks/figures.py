"""The figures of the README, measured on this machine: `.venv/bin/python benchmarks/figures.py`.

Each stands beside its floor from the same run: a raw sqlite3 insert and commit in the same journal mode and at
the same synchronous level. Times are wall clock; look at the ratios.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import hubqueue
from hubqueue.sandbox import Sandbox
from hubqueue.sqlite import load_driver

SCALARS = {f"metrics/scalar{n}": 1.0 / (n + 1) for n in range(12)}
ROUNDS = 2000


def quantiles(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"p50 {p50 * 1e6:7.0f} µs   p99 {p99 * 1e6:7.0f} µs"


def timed(act: object, rounds: int = ROUNDS) -> list[float]:
    found = []
    for number in range(rounds):
        start = time.perf_counter()
        act(number)  # type: ignore[operator]
        found.append(time.perf_counter() - start)
    return found


def enqueue(folder: Path) -> None:
    driver = load_driver("auto")
    raw = driver.connect(folder / "raw.db", isolation_level=None)
    raw.execute("PRAGMA journal_mode = wal")
    raw.execute("PRAGMA synchronous = FULL")
    raw.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, key TEXT, payload TEXT)")
    payload = hubqueue.__name__ * 40

    def insert(number: int) -> None:
        raw.execute("BEGIN IMMEDIATE")
        raw.execute("INSERT INTO entries (key, payload) VALUES (?, ?)", (str(number), payload))
        raw.execute("COMMIT")

    run = hubqueue.start_run("yolov8n.pt", home=folder / "home", worker="none", strict=True)
    timed(insert, 200)
    timed(lambda number: run.log_metrics(SCALARS, epoch=number), 200)
    floor, ours = [], []
    for block in range(10):  # interleaved, so that a noisy neighbour meets both
        floor += timed(insert, ROUNDS // 10)
        ours += timed(
            lambda number, block=block: run.log_metrics(SCALARS, epoch=1000 * (block + 1) + number),
            ROUNDS // 10,
        )
    print(f"raw insert and commit, WAL/FULL        {quantiles(floor)}")
    print(f"log_metrics, 12 scalars                {quantiles(ours)}")
    print(f"ratio of the medians                   {statistics.median(ours) / statistics.median(floor):.2f}")


def drain(folder: Path, hub: Sandbox) -> None:
    home = folder / "drained"
    run = hubqueue.start_run("yolov8n.pt", home=home, worker="none", strict=True)
    for epoch in range(10_000):
        run.log_metrics(SCALARS, epoch=epoch)
    environ = {**os.environ, "HUBQUEUE_RATE_LIMITS__METRICS": "0"}
    start = time.perf_counter()
    command = [sys.executable, "-m", "hubqueue", "--home", str(home), "drain", "--timeout", "300"]
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - start
    model = hub.models[-1]
    assert len(hub.metrics(model)) == 10_000
    print(
        f"drain of 10,000 epochs, limits at 0    {took:.2f} s with the start of the process, {10_000 / took:,.0f} epochs/s"
    )


def memory(folder: Path) -> None:
    source = folder / "large.pt"
    with source.open("wb") as file:
        for _ in range(1024):
            file.write(os.urandom(1 << 20))
    trainer = """
import hubqueue, resource, sys
run = hubqueue.start_run("yolov8n.pt", home=sys.argv[2], worker="none", strict=True)
run.log_metrics({"loss": 1}, epoch=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run.save_checkpoint(sys.argv[1], epoch=0, final=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    home = str(folder / "memory")
    grown = subprocess.run(
        [sys.executable, "-c", trainer, str(source), home], capture_output=True, text=True, check=True
    )
    print(f"trainer, 1 GiB checkpoint              {float(grown.stdout):.1f} MiB more at the peak")
    worker = """
import resource, sys
from click.testing import CliRunner
from hubqueue.cli import main
import hubqueue.transports.hub, hubqueue.scheduler
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
main(["--home", sys.argv[1], "drain", "--timeout", "300"], standalone_mode=False)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    start = time.perf_counter()
    grown = subprocess.run([sys.executable, "-c", worker, home], capture_output=True, text=True, check=True)
    took = time.perf_counter() - start
    print(
        f"worker, 1 GiB checkpoint               {float(grown.stdout.split()[-1]):.1f} MiB more at the peak, {took:.1f} s"
    )


def starts(folder: Path) -> None:
    def command(*arguments: str) -> float:
        taken = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    bare = command("-c", "pass")
    print(f"python -c pass                         {bare * 1000:.0f} ms")
    print(
        f"import hubqueue                        {(command('-c', 'import hubqueue') - bare) * 1000:.0f} ms more"
    )
    status = command("-m", "hubqueue", "--home", str(folder / "drained"), "status")
    print(f"hubqueue status                        {status * 1000:.0f} ms, the whole command")


def idle(folder: Path) -> None:
    """Processor time of a worker with nothing to do, by /proc (Linux only), and its resident memory."""
    command = [sys.executable, "-m", "hubqueue", "--home", str(folder / "drained"), "worker"]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    pause, tick = threading.Event(), os.sysconf("SC_CLK_TCK")

    def spent() -> float:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / tick

    pause.wait(5.0)
    before, start = spent(), time.monotonic()
    pause.wait(30.0)
    share = (spent() - before) / (time.monotonic() - start)
    resident = (
        int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
    )
    worker.terminate()
    worker.wait()
    print(
        f"idle worker                            {share * 100:.2f} % of a core, {resident:.0f} MiB resident"
    )


def main() -> None:
    print(
        f"{platform.platform()}, Python {platform.python_version()}, SQLite {load_driver('auto').sqlite_version}, {os.cpu_count()} cores"
    )
    os.environ["HUB_API_KEY"] = "key"
    with tempfile.TemporaryDirectory() as name, Sandbox() as hub:
        os.environ["ULTRALYTICS_HUB_API"] = hub.url
        folder = Path(name)
        enqueue(folder)
        drain(folder, hub)
        memory(folder)
        starts(folder)
        idle(folder)


if __name__ == "__main__":
    main()
