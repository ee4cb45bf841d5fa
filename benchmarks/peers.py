"""The floor, hubqueue and its peers, each as one small class: open, one `log` call, and what is on disk after it.

`on_disk` comes from the source of the pinned versions; `evidence.py` tests it, and `kept` returns the number of calls
found in a folder. `durable` means that a power cut after the call loses nothing. Every peer does its real work, offline,
with its own defaults.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.context import journal
from hubqueue.outbox.database.sqlite import load_driver

Metrics = Mapping[str, float]


def _rows(folder: Path, pattern: str, query: str) -> int:
    """The result of a counting query on the only database of a folder; 0 without a database."""
    found = list(folder.rglob(pattern))
    if not found:
        return 0
    raw = sqlite3.connect(found[0])
    try:
        (count,) = raw.execute(query).fetchone()
    finally:
        raw.close()
    return int(count)


class Floor:
    """One prepared insert in its own transaction, on a held connection of the driver that hubqueue uses."""

    package, durable = "", True
    on_disk = "the row, synced: the same journal mode and synchronous level as hubqueue"

    def __init__(self, folder: Path) -> None:
        mode, level = journal()
        self._raw = load_driver("auto").connect(folder / "raw.db", isolation_level=None, timeout=60.0)
        self._raw.execute(f"PRAGMA journal_mode = {mode}")
        self._raw.execute(f"PRAGMA synchronous = {level}")
        self._raw.execute(
            "CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, key TEXT, payload TEXT, state TEXT)"
        )
        self._payload = ""

    def log(self, step: int, metrics: Metrics) -> None:
        self._payload = self._payload or str(dict(metrics))
        self._raw.execute(
            "INSERT INTO entries (key, payload, state) VALUES (?, ?, 'pending')", (step, self._payload)
        )

    def fill(self, count: int) -> None:
        """Insert a backlog in one transaction, and create the index that a worker needs."""
        self._raw.execute("CREATE INDEX IF NOT EXISTS waiting ON entries (id) WHERE state = 'pending'")
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
        self._raw.execute(
            f"{numbers} INSERT INTO entries (key, payload, state) SELECT i, ?, 'pending' FROM n", ("x" * 400,)
        )

    def close(self) -> None:
        self._raw.close()

    @staticmethod
    def kept(folder: Path) -> int:
        return _rows(folder, "raw.db", "SELECT count(*) FROM entries")


class FloorWorker(Floor):
    """Drains the floor's table like a simple queue: claim a hundred, delete them, without a pause."""

    def log(self, step: int, metrics: Metrics) -> None:
        self._raw.execute("BEGIN IMMEDIATE")
        claim = "UPDATE entries SET state = 'sent' WHERE id IN (SELECT id FROM entries WHERE state = 'pending' LIMIT 100) RETURNING id"
        claimed = self._raw.execute(claim).fetchall()
        self._raw.execute("COMMIT")
        self._raw.execute("BEGIN IMMEDIATE")
        self._raw.executemany("DELETE FROM entries WHERE id = ?", claimed)
        self._raw.execute("COMMIT")


class Hubqueue:
    """`Run.log_metrics` of a training process whose worker is a separate process."""

    package, durable = "hubqueue", True
    on_disk = "the entry, synced"

    def __init__(self, folder: Path) -> None:
        import hubqueue

        self._run = hubqueue.start_run("yolov8n.pt", home=folder / "home", worker="none", strict=True)

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log_metrics(metrics, epoch=step)

    def close(self) -> None:
        self._run.finish(timeout=0)

    @staticmethod
    def kept(folder: Path) -> int:
        with load_driver("auto").connect(folder / "home" / "outbox.db") as raw:
            (count,) = raw.execute("SELECT count(*) FROM entries WHERE \"key\" <> 'registration'").fetchone()
        return int(count)


class NeptuneScale:
    """`Run.log_metrics` in offline mode, which writes into its operations repository."""

    package, durable = "neptune-scale", True
    on_disk = "the operation, synced (operations_repository.py: WAL, synchronous = FULL)"

    def __init__(self, folder: Path) -> None:
        from neptune_scale import Run

        quiet = {"enable_console_log_capture": False}
        self._run = Run(
            project="bench/bench", run_id="run", mode="offline", log_directory=str(folder), **quiet
        )

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._run.close()

    @staticmethod
    def kept(folder: Path) -> int:
        return _rows(folder, "*.sqlite3", "SELECT count(*) FROM run_operations WHERE operation_type = 0")


class NeptuneRepository:
    """The same operations repository alone, without the run: one prepared snapshot per call."""

    package, durable = "neptune-scale", True
    on_disk = NeptuneScale.on_disk

    def __init__(self, folder: Path) -> None:
        from neptune_api.proto.neptune_pb.ingest.v1.common_pb2 import Step, UpdateRunSnapshot, Value
        from neptune_scale.sync.operations_repository import OperationsRepository

        self._repository = OperationsRepository(folder / "operations.sqlite3")
        self._repository.init_db()
        self._make = (UpdateRunSnapshot, Step, Value)

    def log(self, step: int, metrics: Metrics) -> None:
        snapshot, step_of, value = self._make
        append = {name: value(float64=number) for name, number in metrics.items()}
        self._repository.save_update_run_snapshots(
            [snapshot(step=step_of(whole=step, micro=0), append=append)]
        )

    def close(self) -> None:
        self._repository.close(cleanup_files=False)

    @staticmethod
    def kept(folder: Path) -> int:
        return NeptuneScale.kept(folder)


class PersistQueue:
    """`SQLiteAckQueue.put` with auto_commit, its default."""

    package, durable = "persist-queue", True
    on_disk = "the item, synced (sqlbase.py: WAL, and SQLite's default synchronous = FULL)"

    def __init__(self, folder: Path) -> None:
        from persistqueue import SQLiteAckQueue

        self._queue = SQLiteAckQueue(str(folder), auto_commit=True, multithreading=True)

    def log(self, step: int, metrics: Metrics) -> None:
        self._queue.put({"step": step, "metrics": metrics})

    def close(self) -> None:
        self._queue.close()

    @staticmethod
    def kept(folder: Path) -> int:
        return _rows(folder, "data.db", "SELECT count(*) FROM ack_queue_default")


class Huey:
    """A call of a task of `SqliteHuey`, which enqueues it."""

    package, durable = "huey", True
    on_disk = "the task, synced (storage.py: WAL, and SQLite's default synchronous = FULL)"

    def __init__(self, folder: Path) -> None:
        from huey import SqliteHuey

        self._huey = SqliteHuey(filename=str(folder / "huey.db"))

        @self._huey.task()
        def upload(step: int, metrics: Metrics) -> None: ...

        self._upload = upload

    def log(self, step: int, metrics: Metrics) -> None:
        self._upload(step, metrics)

    def close(self) -> None:
        self._huey.storage.close()

    @staticmethod
    def kept(folder: Path) -> int:
        return _rows(folder, "huey.db", "SELECT count(*) FROM task")


class LiteQueue:
    """`LiteQueue.put` of the metrics as JSON: it accepts only text."""

    package, durable = "litequeue", False
    on_disk = "the message in the operating system's memory: kill -9 is survived, a power cut takes it (WAL, synchronous = NORMAL)"

    def __init__(self, folder: Path) -> None:
        from litequeue import LiteQueue as Queue

        self._queue = Queue(str(folder / "queue.db"))

    def log(self, step: int, metrics: Metrics) -> None:
        import json

        self._queue.put(json.dumps({"step": step, "metrics": metrics}))

    def close(self) -> None:
        self._queue.conn.close()

    @staticmethod
    def kept(folder: Path) -> int:
        return _rows(folder, "queue.db", "SELECT count(*) FROM Queue")


class Wandb:
    """`run.log` in offline mode: passed to the wandb-core process, which appends to a file."""

    package, durable = "wandb", False
    on_disk = "some of it: wandb-core writes blocks of 32 KiB a little later, and syncs at the end of the run at most"

    def __init__(self, folder: Path) -> None:
        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")
        import wandb

        quiet = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True)
        self._run = wandb.init(project="bench", dir=str(folder), mode="offline", settings=quiet)

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()

    @staticmethod
    def kept(folder: Path) -> int:
        from wandb.proto.wandb_internal_pb2 import Record

        count, whole = 0, b""
        for kind, part in _log_records(next(folder.rglob("*.wandb")).read_bytes()):
            whole = part if kind in (_FULL, _FIRST) else whole + part
            if kind in (_FULL, _LAST):
                record = Record()
                record.ParseFromString(whole)
                count += record.WhichOneof("record_type") == "history"
        return count


# wandb's file is a LevelDB log (see its doc/log_format.md) after a header of 7 bytes.
_BLOCK, _FULL, _FIRST, _LAST = 32_768, 1, 2, 4


def _log_records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The parts of records, each with its kind, up to the end or the cut of the file."""
    at = 7
    while at + 7 <= len(data):
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if kind == 0 or at + 7 + size > len(data):
            return
        yield kind, data[at + 7 : at + 7 + size]
        at += 7 + size
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK


class Trackio:
    """`trackio.log` of a local project: kept in memory, which a thread saves twice a second."""

    package, durable = "trackio", False
    on_disk = (
        "nothing yet: a thread saves what is in memory every 0.5 s (run.py), in WAL with synchronous = NORMAL"
    )

    def __init__(self, folder: Path) -> None:
        os.environ.update(TRACKIO_DIR=str(folder), HF_HUB_OFFLINE="1")
        import trackio

        self._trackio: Any = trackio
        trackio.init(project="bench", auto_log_gpu=False, auto_log_cpu=False)

    def log(self, step: int, metrics: Metrics) -> None:
        self._trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self._trackio.finish()

    @staticmethod
    def kept(folder: Path) -> int:
        return _rows(folder, "bench.db", "SELECT count(*) FROM metrics")


class Known:
    """Every contender by its name in the tables."""

    FLOOR, OURS = "raw sqlite3", "hubqueue"
    PEERS: ClassVar[dict[str, type]] = {
        "neptune-scale": NeptuneScale,
        "neptune-scale, repository alone": NeptuneRepository,
        "persist-queue": PersistQueue,
        "huey": Huey,
        "litequeue": LiteQueue,
        "wandb offline": Wandb,
        "trackio": Trackio,
    }
    ALL: ClassVar[dict[str, type]] = {FLOOR: Floor, OURS: Hubqueue, **PEERS, "raw worker": FloorWorker}
