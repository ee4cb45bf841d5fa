"""Many processes on one home: writers, forks of writers, workers and a reader of the status, all at once.

No process is killed, so everything that was acknowledged must reach the hub, once: the hub ignores Idempotency-Key
and counts. The control makes the same inserts on bare sqlite3 connections that do not wait.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from stage import end, environ_of, hubqueue, start_worker
from torture.frame import Report, new_report

from hubqueue.sandbox import Sandbox

SENTENCE = (
    "eight writers with forks, three workers and a reader share one outbox: no process gets a lock error, nothing that was "
    "acknowledged is missing, nothing is sent twice"
)
SECONDS = {"quick": 4, "normal": 20, "full": 60}
WRITERS, WORKERS = 8, 3

_WRITER = """
import json, multiprocessing, sys, threading, time
import hubqueue

number, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
run = hubqueue.start_run("yolov8n.pt", args={"data": f"writer-{number}"}, worker="none", strict=True)

def write(first, step):
    epoch = first
    while time.monotonic() < deadline:
        run.log_metrics({"loss": epoch + 0.5}, epoch=epoch)
        epoch += step
        threading.Event().wait(0.002)
    return epoch

for done in range(20):  # even on a slow machine
    run.log_metrics({"loss": done + 0.5}, epoch=done)
done = 20
written = list(range(done))
if number % 2 == 0:
    # As with a DataLoader: children of a process that has an open run, and logs too.
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        results = [pool.apply_async(write, (done + each, 3)) for each in range(2)]
        last = write(done + 2, 3)
        ends = [each.get() for each in results] + [last]
    written += [epoch for each, stop in zip(range(3), ends) for epoch in range(done + each, stop, 3)]
else:
    written = list(range(write(done, 1)))
run.finish(timeout=30)  # no worker runs; this is the time for saving the end
print(json.dumps({"run": run.id, "epochs": written}))
"""

_READER = """
import sys, threading, time
from hubqueue.outbox.outbox import open_outbox

deadline, reads = time.monotonic() + float(sys.argv[1]), 0
while time.monotonic() < deadline:
    with open_outbox() as outbox:
        found = outbox.status()
        assert found["totals"]["enqueued"] >= found["totals"]["delivered"]
    reads += 1
print(reads)
"""

_BARE = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
deadline, locked, written = time.monotonic() + float(sys.argv[2]), 0, 0
while time.monotonic() < deadline:
    try:
        connection.execute("INSERT INTO t VALUES (1)")
        written += 1
    except sqlite3.OperationalError:
        locked += 1
print(locked, written)
"""


def main(argv: list[str] | None = None) -> int:
    """Start all processes and count; 1 if the sentence is false."""
    report = new_report("many", SENTENCE, argv)
    with report.verdict(), tempfile.TemporaryDirectory(prefix="hubqueue-many-") as folder:
        _storm(report, Path(folder))
        _control(report, Path(folder))
    return report.exit_code


def _storm(report: Report, folder: Path) -> None:
    seconds = str(SECONDS[report.scale])
    with Sandbox(folder / "hub", honour_idempotency=False) as hub:
        environ = environ_of(
            folder / "home",
            hub.url,
            HUBQUEUE_RATE_LIMITS__METRICS="0",
            HUBQUEUE_WORKER__BATCH_ENTRIES="50",
        )
        workers = [start_worker(environ) for _ in range(WORKERS)]
        writers = [_python(_WRITER, environ, str(number), seconds) for number in range(WRITERS)]
        reader = _python(_READER, environ, seconds)
        outputs = {f"writer {number}": each.communicate(timeout=300) for number, each in enumerate(writers)}
        outputs["reader"] = reader.communicate(timeout=300)
        for name, (_, complaints) in outputs.items():
            bad = "locked" in complaints or "Traceback" in complaints
            report.require(not bad, f"{name} printed: {complaints.strip()[-2500:]}")
        codes = [each.returncode for each in (*writers, reader)]
        report.require(not any(codes), f"exit codes {codes}")
        logs = [end(each) for each in workers]
        for log in logs:
            bad = [
                line
                for line in log.splitlines()
                if "locked" in line or " ERROR " in line or "Traceback" in line
            ]
            report.require(not bad, f"a worker printed: {bad[:1]}")
        drained = hubqueue(environ, "drain", "--timeout", "90")
        report.require(drained.returncode == 0, f"something is left: {drained.stderr}")
        if any(codes):
            return
        acknowledged = [json.loads(out) for name, (out, _) in outputs.items() if name != "reader"]
        _compare(report, hub, acknowledged, reads=int(outputs["reader"][0]))


def _compare(report: Report, hub: Sandbox, acknowledged: list[dict[str, object]], *, reads: int) -> None:
    arrived: dict[str, Counter[int]] = {}
    for request in hub.requests:
        if request.kind == "metrics" and request.status == 200 and request.model_id:
            arrived.setdefault(request.model_id, Counter()).update(request.epochs)
    writers = {hub.model(model)["data"]: counts for model, counts in arrived.items()}
    report.require(len(hub.models) == WRITERS, f"the hub has {len(hub.models)} models")
    total = missing = twice = 0
    for number, each in enumerate(acknowledged):
        epochs = each["epochs"]
        assert isinstance(epochs, list)
        counts = writers.get(f"writer-{number}", Counter())
        total += len(epochs)
        missing += sum(counts[epoch] == 0 for epoch in epochs)
        twice += sum(count > 1 for count in counts.values())
    batches = sum(request.kind == "metrics" for request in hub.requests)
    report.write(
        f"{total} epochs acknowledged by {WRITERS} writers and {WRITERS // 2 * 2} forks in {SECONDS[report.scale]} s; "
        f"{batches} batches by {WORKERS} workers; {reads} status reads; missing {missing}, sent twice {twice}"
    )
    report.require(total >= 20 * WRITERS, "hardly anything was written")
    report.require(missing == 0, f"{missing} epochs are missing")
    report.require(twice == 0, f"{twice} epochs were sent twice")


def _control(report: Report, folder: Path) -> None:
    import sqlite3

    path = folder / "bare.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    seconds = str(min(5, SECONDS[report.scale] / 4))
    command = [sys.executable, "-c", _BARE, str(path), seconds]
    storm = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(WRITERS)]
    counts = [tuple(map(int, each.communicate(timeout=60)[0].split())) for each in storm]
    locked = sum(each[0] for each in counts)
    report.write(f"control: {WRITERS} bare sqlite3 writers that do not wait got {locked} lock errors")
    report.require(locked > 0, "the control got no lock error: the load is too small")


def _python(code: str, environ: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


if __name__ == "__main__":
    sys.exit(main())
