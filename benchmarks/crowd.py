"""Homes that would take hours to fill call by call: filled by plain SQL into hubqueue's own tables.

hubqueue opens the home and starts the runs. Then the rows are inserted as its own statements would leave them. The
result is verified by hubqueue itself: the CHECK of the accounting, its own recount, and `hubqueue status`.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.context import ROOT, python
from benchmarks.timing import SCALARS
from hubqueue.config.registry import declaration
from hubqueue.domain.entry import Kind
from hubqueue.domain.plain import checksum
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.metrics import metrics_text

_CHUNK = 50_000
# Entries as an enqueue leaves them (without `settled`), or as a claim and an ack of a hundred leave them.
_ENTRIES = """
WITH RECURSIVE n(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :last)
INSERT INTO entries (lane_id, "key", rank, state, payload, size, final, batch, claim_token, attempts, enqueued_at, settled_at, checksum)
SELECT :lane, printf('%d', i), i, :state, :payload, :size, 0, iif(:settled IS NULL, NULL, 1 + i / 100),
    iif(:settled IS NULL, 0, 1 + i / 100), :settled IS NOT NULL, :now, :settled, checksum(printf('%d', i), :payload) FROM n"""
_ATTEMPTS = """
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count)
INSERT INTO attempts (lane_id, token, worker, entries, size, claimed_at, started_at, ended_at, outcome)
SELECT :lane, 1 + i, 'worker', 100, 100 * :size, :now, :now, :now, 'delivered' FROM n"""
_COUNT = """
UPDATE lanes SET enqueued = enqueued + :count, pending = pending + :pending, delivered = delivered + :count - :pending,
    bytes = bytes + :pending * :size WHERE id = :lane"""
_RUN = """
INSERT INTO runs (id, remote_id, destination, model, state, created_at, finished_at)
SELECT ?, ?, destination, model, 'finished', created_at, created_at FROM runs WHERE id = ?"""
_LANES = "INSERT INTO lanes (run_id, kind) SELECT ?, kind FROM lanes WHERE run_id = ?"


@dataclass(frozen=True, slots=True)
class Crowd:
    """An outbox with a long history: waiting entries, delivered entries, idle runs."""

    home: Path
    waiting: int
    delivered: int
    idle: int

    @property
    def words(self) -> str:
        """Its contents in words."""
        return f"{self.waiting:,} waiting, {self.delivered:,} delivered, {self.idle:,} idle runs"

    @classmethod
    def make(cls, folder: Path, *, quick: bool) -> Self:
        share = 10 if quick else 1
        made = cls(folder / "home", 100_000 // share, 1_000_000 // share, 10_000 // share)
        with open_outbox(made.home, environ={}) as outbox:
            made._fill(outbox)
        made._prove()
        return made

    def _fill(self, outbox: Outbox) -> None:
        owing, idle = new_runs(outbox, 100), new_runs(outbox, self.idle)
        for run_id in owing:
            fill(outbox, run_id, self.waiting // len(owing))
        with_history = idle[:1000]
        for run_id in with_history:
            fill(outbox, run_id, self.delivered // len(with_history), delivered=True)
        with outbox.database.read() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _prove(self) -> None:
        """Verify it with hubqueue. Raises `AssertionError`."""
        with open_outbox(self.home, environ={}) as outbox:
            assert outbox.stats.miscounted() == []
        command = python("-m", "hubqueue", "--home", str(self.home), "status", "--json")
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True, timeout=120
        )
        totals = json.loads(done.stdout)["totals"]
        assert (totals["pending"], totals["delivered"]) == (self.waiting, self.delivered), totals


def new_runs(outbox: Outbox, count: int) -> list[str]:
    """Make `count` registered runs with their lanes. hubqueue starts the first, the others are its copies."""
    outbox.note_destinations()
    kinds, remote_id = declaration("hub").lanes, secrets.token_hex(10)
    first, _ = outbox.registry.start_run(
        destination="hub", model="yolov8n.pt", kinds=kinds, remote_id=remote_id
    )
    copies = [secrets.token_hex(6) for _ in range(count - 1)]
    if copies:
        with outbox.database.write() as tx:
            tx.exec_driver_sql(_RUN, [(run_id, secrets.token_hex(10), first) for run_id in copies])
            tx.exec_driver_sql(_LANES, [(run_id, first) for run_id in copies])
            # Mark the training as ended: a live one would hold a lock.
            ended = "UPDATE runs SET state = 'finished', finished_at = created_at WHERE id = ?"
            tx.exec_driver_sql(ended, (first,))
    return [first, *copies]


def fill(outbox: Outbox, run_id: str, count: int, *, delivered: bool = False) -> None:
    """Insert metrics of `count` epochs into the lane of a run: waiting, or delivered in batches of a hundred."""
    text = metrics_text(SCALARS)
    with outbox.database.read() as connection:
        lane, now = connection.exec_driver_sql(
            "SELECT l.id, r.created_at FROM lanes l JOIN runs r ON r.id = l.run_id WHERE r.id = ? AND kind = ?",
            (run_id, str(Kind.METRICS)),
        ).one()
    fields = {"lane": lane, "now": now, "settled": now if delivered else None, "size": len(text)}
    state = "delivered" if delivered else "pending"
    for start in range(0, count, _CHUNK):
        stop = min(count, start + _CHUNK)
        with outbox.database.write() as tx:
            tx.connection.driver_connection.create_function("checksum", 2, checksum)
            chunk = {"first": start, "last": stop, "state": state, "payload": text}
            tx.exec_driver_sql(_ENTRIES, {**fields, **chunk})
            pending = 0 if delivered else stop - start
            tx.exec_driver_sql(_COUNT, {**fields, "count": stop - start, "pending": pending})
    if delivered:
        with outbox.database.write() as tx:
            tx.exec_driver_sql(_ATTEMPTS, {**fields, "count": max(1, count // 100)})
