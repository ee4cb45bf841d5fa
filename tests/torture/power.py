"""Power cuts: a workload on a recorded disk, and hubqueue on images that a power cut could have left.

The workload opens a new home, logs, saves checkpoints, sends and prunes. Each call that returns, and each batch that the
hub accepts, leaves a receipt. An image is right if the outbox opens, its accounting is correct, nothing with a receipt is
missing or altered, and nothing counts as delivered that the hub does not have. Each control has a deliberate defect.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import text
from stage import totals
from torture.disk import Disk, Shim, build, can_build, changes
from torture.frame import Report, new_report

from hubqueue import start_run
from hubqueue.domain.drafts import metrics_draft
from hubqueue.domain.errors import HubqueueError
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Outcome
from hubqueue.outbox.database import sqlite
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.outbox.spool import spool
from hubqueue.testing import MemoryTransport
from hubqueue.worker.worker import Worker

SENTENCE = (
    "whatever a power cut leaves of unsynced data, the outbox opens, its accounting is correct, nothing acknowledged is "
    "missing or altered, and nothing counts as delivered that the hub does not have"
)
IMAGES = {"quick": 200, "normal": 4000, "full": 50_000}
_ENVIRON = {
    "HUBQUEUE_RATE_LIMITS__METRICS": "0",
    "HUBQUEUE_RATE_LIMITS__CKPT": "0",
    "HUBQUEUE_WORKER__BATCH_ENTRIES": "5",
    "HUB_API_KEY": "key-of-the-tests",
}
_LIVES, _EPOCHS = 3, 12
JOURNALS = ("wal", "rollback journal")
CONTROLS = ("synchronous = NORMAL", "DELETE and FULL", "no folder is synced")


def main(argv: list[str] | None = None) -> int:
    """Record, cut and check; 1 if the sentence is false."""
    report = new_report("power", SENTENCE, argv)
    if not can_build():
        report.write("not run: it needs Linux and a C compiler")
        return 0
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with report.verdict(), tempfile.TemporaryDirectory(prefix="hubqueue-power-", dir=room) as name:
        folder = Path(name)
        preload = build(folder)
        most = IMAGES[report.scale]
        for how in (*JOURNALS, *CONTROLS):
            control = how in CONTROLS
            images = max(100, most // 20) if control else most // len(JOURNALS)
            _record(folder, how, preload)
            found = _cut(report, folder, how, images)
            bad = Counter(problem.split(":")[0].split(" (")[0] for problem in found)
            kinds = "; ".join(f"{count} {what}" for what, count in bad.items())
            report.write(
                f"{'control, ' * control}{how}: {images} images of {len(changes(folder / how))} changes of the disk, "
                f"wrong {len(found)}{f' ({kinds})' if kinds else ''}"
            )
            if control:
                report.require(bool(found), f"the control ({how}) lost nothing: these cuts prove nothing")
            else:
                report.require(not found, f"{how}: {found[:3]}")
    return report.exit_code


def _record(folder: Path, how: str, preload: dict[str, str]) -> None:
    command = [sys.executable, "-m", "torture.power", "--inside", str(folder), how]
    environ = {**os.environ, **preload, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(command, env=environ, check=True)


def inside(folder: Path, how: str) -> None:
    """The workload, in a process with the disk loaded."""
    root = folder / f"{how} disk"
    root.mkdir()
    shim = Shim(root)
    shim.record(folder / how)
    journals = {
        "rollback journal": ("delete", "EXTRA"),
        "synchronous = NORMAL": ("wal", "NORMAL"),
        "DELETE and FULL": ("delete", "FULL"),
    }
    if how in journals:
        sqlite.journal_for = lambda _version, *, network: journals[how]
    if how == "no folder is synced":
        spool.sync_folder = lambda _path: None  # type: ignore[assignment]
    os.environ.update(_ENVIRON)
    _work(root)


def _work(root: Path) -> None:
    """Several lives of a training and its worker on one home."""
    home, dice = root / "home", random.Random(0)
    receipts = os.open(root / "receipts", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def receipt(**facts: Any) -> None:
        os.write(receipts, (json.dumps(facts) + "\n").encode())

    for life in range(_LIVES):
        run = start_run(f"life-{life}.yaml", home=home, worker="none", strict=True)
        for epoch in range(_EPOCHS):
            run.log_metrics({"loss": epoch + 0.5}, epoch=epoch)
            receipt(run=run.id, key=str(epoch), payload=epoch + 0.5)
            if epoch % 4 == 3:
                content = dice.randbytes(20_000)
                (home / "weights.pt").write_bytes(content)
                run.save_checkpoint(home / "weights.pt", epoch=epoch, final=epoch == _EPOCHS - 1, map=0.5)
                receipt(run=run.id, ckpt=epoch, sha256=hashlib.sha256(content).hexdigest())
            if epoch == _EPOCHS // 2:
                _send(home, receipt)
        run.finish(timeout=0)
        if life < _LIVES - 1:
            _send(home, receipt)
        if life == 1:
            with open_outbox(home) as outbox:
                long_ago = outbox.database.now() - timedelta(days=1)
                outbox.entries.prune(settled_before=long_ago, ended_before=outbox.database.now())


def _send(home: Path, receipt: Any) -> None:
    """Run a worker until nothing is due, with one checkpoint of SQLite's log."""

    def take(batch: Batch) -> Outcome:
        receipt(sent=[entry.id for entry in batch.entries])
        return MemoryTransport()._answer(batch)

    with open_outbox(home) as outbox:
        worker = Worker(outbox, emit=lambda _fact: None, dial=MemoryTransport(take).dial)
        worker.start()
        while worker.step():
            worker.wait_free(30)
        with outbox.database.read() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")
        worker.stop(reason="done")


def _cut(report: Report, folder: Path, how: str, images: int) -> list[str]:
    """Check `number` images, at random moments. Returns the problems."""
    dice = random.Random(f"{report.seed} {how}")
    length = len(changes(folder / how))
    moments = sorted(dice.randrange(length + 1) for _ in range(images))
    processes = os.cpu_count() or 1
    shares = [(folder, how, report.seed, moments[each::processes], each) for each in range(processes)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return [problem for found in pool.starmap(_look_at, shares) for problem in found]


def _look_at(folder: Path, how: str, seed: int, moments: list[int], number: int) -> list[str]:
    logging.disable(logging.CRITICAL)
    root, record = folder / f"{how} disk", changes(folder / how)
    dice, disk, receipts, done, problems = random.Random(f"{seed} {how} {number}"), Disk(root), b"", 0, []
    copy = folder / f"image-{number}"
    for moment in moments:
        for change in record[done:moment]:
            if change.path == str(root / "receipts"):
                receipts += change.data
            else:
                disk.apply(change)
        done = moment
        survives, torn = dice.choice([(0.0, False), (1.0, False), (0.5, False), (0.5, True), (0.9, True)])
        _put(copy, root, disk.image(dice, survives=survives, torn=torn))
        facts = [json.loads(line) for line in receipts.splitlines()]
        problem = _wrong(copy / "home", facts)
        if problem:
            problems.append(f"{problem} (change {moment}, {survives:g} survive{', torn' * torn})")
        shutil.rmtree(copy)
    return problems


def _put(copy: Path, root: Path, image: Iterable[tuple[str, bytes | None]]) -> None:
    for path, content in image:
        target = copy / Path(path).relative_to(root)
        if content is None:
            target.mkdir(mode=0o700)
        else:
            target.write_bytes(content)


def _wrong(home: Path, facts: list[dict[str, Any]]) -> str | None:
    """The problem of an image in a few words, or None."""
    try:
        with open_outbox(home, environ=_ENVIRON) as outbox:
            return _missing(outbox, facts)
    except AssertionError as error:
        return f"the accounting is wrong: {error}"
    except HubqueueError as error:
        return f"it does not open: {type(error).__name__} {error}"


_ROWS = """
SELECT lanes.run_id, lanes.kind, entries.key, entries.id, entries.state, entries.payload, entries.snapshot
FROM entries JOIN lanes ON lanes.id = entries.lane_id
"""


def _missing(outbox: Outbox, facts: list[dict[str, Any]]) -> str | None:
    verdict = outbox.database.integrity()
    if verdict != "ok":
        return f"integrity: {verdict}"
    totals(outbox)
    with outbox.database.read() as connection:
        rows = connection.execute(text(_ROWS)).all()
    sent = {entry for fact in facts for entry in fact.get("sent", ())}
    claimed = [row.id for row in rows if row.state == "delivered" and row.id not in sent]
    if claimed:
        return f"delivered but never sent: {claimed}"
    metrics = {(row.run_id, row.key): row for row in rows if row.kind == "metrics"}
    snapshots = {
        hashlib.sha256((outbox.spool.path / row.snapshot).read_bytes()).hexdigest()
        for row in rows
        if row.snapshot and row.state == "pending" and (outbox.spool.path / row.snapshot).exists()
    }
    checkpoints = [(row.run_id, json.loads(row.payload)["epoch"], row) for row in rows if row.kind == "ckpt"]
    for fact in facts:
        if "payload" in fact:
            row = metrics.get((fact["run"], fact["key"]))
            if row is None:
                return "metrics are missing"
            if row.state not in ("pending", "delivered") or str(fact["payload"]) not in row.payload:
                return f"metrics are altered: {row.state} {row.payload}"
        elif "ckpt" in fact:
            states = [
                each.state for run, epoch, each in checkpoints if (run, epoch) == (fact["run"], fact["ckpt"])
            ]
            if not states:
                return "a checkpoint is missing"
            if "pending" in states and fact["sha256"] not in snapshots:
                return "a snapshot is missing"
    return _continues(outbox, rows)


def _continues(outbox: Outbox, rows: Iterable[Any]) -> str | None:
    """None if one more entry can be enqueued, else the problem."""
    run_id = next((row.run_id for row in rows), None)
    if run_id is not None:
        outbox.entries.enqueue(run_id, metrics_draft('{"loss": 1}', 1000))
        totals(outbox)
    return None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(main())
