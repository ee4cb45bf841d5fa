"""An outbox of an earlier revision, with entries that wait and older processes that still use it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Self

import pytest
from postgres import Postgres, connect, wait_for_waiting
from sqlalchemy import Engine, event, select
from stage import PATIENCE, Bench, at_revision, must_claim, totals

from hubqueue.config.home import Home
from hubqueue.domain.entry import Kind
from hubqueue.domain.outcome import Delivered, Remote
from hubqueue.outbox import salvage
from hubqueue.outbox.database.prepared import microseconds
from hubqueue.outbox.database.schema import EPOCH, REVISION, budgets, destinations, runs
from hubqueue.outbox.database.schema_check import differences
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.testing import FakeClock

RUN, BEAT = "0bf51cd3352d", "aaaaaaaaaaaa"
BEFORE_0006 = (
    (
        "INSERT INTO destinations (name, label, type, url, requests_free_at, uploads_free_at)"
        " VALUES ('hub', 'hub', 'hub', 'https://api.ultralytics.com', 5, 7), ('idle', 'idle', 'hub', 'https://x.test', 0, 9)"
    ),
    (
        "INSERT INTO runs (id, destination, model, remote_id, agent_id, remote_run, remote_file, state, created_at) VALUES"
        f" ('{RUN}', 'hub', 'm', 'm', NULL, '\"no. 7\"', '{{\"modelPath\": \"gs://a\"}}', 'finished', 1),"
        f" ('{BEAT}', 'hub', 'n', 'n', 'agent-1', NULL, NULL, 'finished', 1),"
        " ('bbbbbbbbbbbb', 'idle', 'o', NULL, NULL, NULL, NULL, 'finished', 1)"
    ),
    (
        "INSERT INTO lanes (id, run_id, kind, enqueued, pending, bytes)"
        f" VALUES (1, '{RUN}', 'metrics', 2, 2, 4), (2, '{RUN}', 'ckpt', 0, 0, 0), (3, '{BEAT}', 'metrics', 1, 1, 2)"
    ),
    (
        'INSERT INTO entries (id, lane_id, "key", rank, state, payload, size, final, enqueued_at) VALUES'
        " (1, 1, '0', 0, 'pending', '{}', 2, false, 1), (2, 1, '1', 1, 'pending', '{}', 2, false, 2),"
        " (3, 3, '0', 0, 'pending', '{}', 2, false, 3)"
    ),
)
KNOWN = {RUN: {"run": '"no. 7"', "file": '{"modelPath": "gs://a"}'}, BEAT: {"agent_id": "agent-1"}}


def sqlite_url(home: Path) -> str:
    Home.locate(home, {}).create()
    return f"sqlite:///{home / 'outbox.db'}"


def remembered(outbox: Outbox) -> dict[str, dict[str, object]]:
    with outbox.database.read() as connection:
        rows = connection.execute(select(runs.c.id, runs.c.remembered))
        return {run: json.loads(text) for run, text in rows if text != "{}"}


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_the_values_of_the_old_columns_move_to_the_run_and_the_budgets(
    home: Path, clock: FakeClock, backend: str, request: pytest.FixtureRequest
) -> None:
    if backend == "sqlite":
        url, environ = sqlite_url(home), {}
    else:
        url = request.getfixturevalue("postgres").new_database()
        environ = {"HUBQUEUE_OUTBOX__URL": url}
    at_revision(url, "0005", *BEFORE_0006)

    with open_outbox(home, environ=environ, clock=clock) as outbox:
        assert outbox.database.describe()["revision"] == REVISION
        assert remembered(outbox) == KNOWN
        with outbox.database.read() as connection:
            free = connection.execute(select(budgets).order_by(budgets.c.destination, budgets.c.name)).all()
            assert differences(connection) == []
        kept = [(row[0], row[1], (row[2] - EPOCH).microseconds) for row in free]
        assert kept == [("hub", "requests", 5), ("hub", "uploads", 7), ("idle", "uploads", 9)]
        batches = [must_claim(outbox).batch for _ in range(2)]
        assert {batch.run.id: dict(batch.run.remembered) for batch in batches} == KNOWN


def test_an_invalid_value_does_not_stop_an_upgrade(home: Path, clock: FakeClock) -> None:
    damage = f"UPDATE runs SET agent_id = x'ff00', remote_file = 17 WHERE id = '{RUN}'"
    at_revision(sqlite_url(home), "0005", *BEFORE_0006, damage)

    with open_outbox(home, environ={}, clock=clock) as outbox, Bench(outbox) as bench:
        assert outbox.database.describe()["revision"] == REVISION
        bench.step()
        assert totals(outbox)["delivered"] == 3


def test_a_kill_at_any_statement_of_an_upgrade_leaves_one_revision_or_the_other(
    home: Path, clock: FakeClock
) -> None:
    at_revision(sqlite_url(home), "0005", *BEFORE_0006)
    met = 0
    while _killed_at(home, met):
        met += 1
        connection = sqlite3.connect(home / "outbox.db")
        (found,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        connection.close()
        assert ("budgets" in tables) == (found >= "0006")

    assert met > 8, "the upgrade was not killed often enough"
    with open_outbox(home, environ={}, clock=clock) as outbox:
        assert remembered(outbox) == KNOWN
        assert outbox.database.integrity() == "ok"


def _killed_at(home: Path, statement: int) -> bool:
    """Open the outbox in a process that is killed after `statement` statements; False when it had fewer."""
    child = os.fork()
    if child == 0:
        left = [statement]

        def count(*_what: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "after_cursor_execute", count)
        open_outbox(home, environ={}).close()
        os._exit(0)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended) == -signal.SIGKILL


def test_rows_of_both_layouts_are_saved_from_one_damaged_outbox(home: Path, clock: FakeClock) -> None:
    """A row that was not written since the upgrade has no value for the new column."""
    at_revision(sqlite_url(home), "0005", *BEFORE_0006)
    (home / "outbox.db").rename(home / "outbox.db.damaged-20260101T000000")
    at_revision(sqlite_url(home), "0006", *BEFORE_0006[:1])
    connection = sqlite3.connect(home / "outbox.db")
    connection.execute("DELETE FROM destinations")
    connection.commit()
    connection.close()

    with open_outbox(home, environ={}, clock=clock) as outbox:
        (saved,) = salvage.salvage(outbox)

        assert (saved.runs, saved.entries, saved.lost) == (2, 3, [])
        assert remembered(outbox) == KNOWN


# --- processes of an older hubqueue


class Older:
    """A training and a worker of revision 0005 in one process: it has the file open and runs their statements."""

    def __init__(self, home: Path) -> None:
        command = [sys.executable, "-c", _BEFORE, str(home / "outbox.db")]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE) == 0

    def call(self, move: str, *given: object) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([move, *given]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


# The statements of hubqueue at revision 0005, shortened where the rest does not matter here.
_BEFORE = """
import json, sys
try:
    from pysqlite3 import dbapi2 as sqlite3
except ImportError:
    import sqlite3
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
RUN, NOW = "0bf51cd3352d", 1767225600000000

def due(kind, now):
    most = "max(lanes.lease_until, lanes.retry_at, lanes.paced_until, destinations.resumes_at, destinations.requests_free_at, CASE WHEN (lanes.kind = 'ckpt') THEN destinations.uploads_free_at ELSE 0 END)"
    return db.execute("SELECT lanes.id, lanes.run_id, lanes.kind, lanes.lease_token, lanes.lease_worker, lanes.failures, lanes.paced_until, runs.destination, runs.model, runs.remote_id, runs.agent_id, runs.remote_run, runs.remote_file, destinations.label FROM lanes JOIN runs ON lanes.run_id = runs.id JOIN destinations ON (runs.destination || '') = destinations.name WHERE lanes.owing = true AND runs.held IS NULL AND destinations.held IS NULL AND runs.remote_id IS NOT NULL AND destinations.name = 'hub' AND lanes.run_id = ? AND lanes.kind IN (?) AND ? >= " + most + " ORDER BY " + most + ", lanes.id LIMIT 1 OFFSET 0", (RUN, kind, now)).fetchone()

def enqueue(lane, key):
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE lanes SET enqueued=(lanes.enqueued + 1), pending=(lanes.pending + 1), bytes=(lanes.bytes + 2) WHERE lanes.id = ?", (lane,))
    db.execute("INSERT INTO entries (lane_id, key, rank, state, payload, size, final, enqueued_at) VALUES (?, ?, ?, 'pending', '{}', 2, 0, ?)", (lane, key, int(key), NOW))
    db.execute("COMMIT")

def claim(kind, now=NOW):
    db.execute("BEGIN IMMEDIATE")
    lane = due(kind, now)
    if lane is None:
        db.execute("COMMIT")
        return None
    spent = db.execute("UPDATE destinations SET requests_free_at=(max(destinations.requests_free_at, 0) + 1) WHERE destinations.name = 'hub' AND destinations.requests_free_at <= ?", (now,)).rowcount
    spent += db.execute("UPDATE destinations SET uploads_free_at=(max(destinations.uploads_free_at, 0) + 1) WHERE destinations.name = 'hub' AND destinations.uploads_free_at <= ?", (now,)).rowcount
    (taken,) = db.execute("UPDATE lanes SET attempts=(lanes.attempts + 1), lease_token=(lanes.lease_token + 1), lease_until=?, lease_worker='old-worker' WHERE lanes.id = ? AND lanes.lease_token = ? RETURNING lease_token", (now + 60_000_000, lane[0], lane[3])).fetchone()
    keys = [key for (key,) in db.execute("UPDATE entries SET batch=?, claim_token=?, attempts=(entries.attempts + 1) WHERE entries.lane_id = ? AND entries.state = 'pending' RETURNING key", (taken, taken, lane[0]))]
    db.execute("COMMIT")
    return {"lane": lane[0], "token": taken, "spent": spent, "keys": keys, "agent_id": lane[10], "run": lane[11], "file": lane[12]}

def ack(lane, token, count, news):
    db.execute("BEGIN IMMEDIATE")
    mine = db.execute("UPDATE lanes SET retry_at=0, failures=0, last_error=NULL, lease_until=0, lease_worker=NULL WHERE lanes.id = ? AND lanes.lease_token = ? RETURNING id", (lane, token)).fetchone()
    if mine is None:
        db.execute("ROLLBACK")
        return False
    db.execute("UPDATE entries SET state='delivered', reason=NULL, settled_at=? WHERE entries.lane_id = ? AND entries.state = 'pending' AND entries.batch IS NOT NULL AND entries.claim_token = ?", (NOW, lane, token))
    db.execute("UPDATE lanes SET pending=(lanes.pending - ?), delivered=(lanes.delivered + ?), bytes=(lanes.bytes - 2 * ?) WHERE lanes.id = ?", (count, count, count, lane))
    for column, value in news.items():
        db.execute("UPDATE runs SET " + column + "=? WHERE runs.id = ?", (value, RUN))
    db.execute("COMMIT")
    return True

def run():
    return db.execute("SELECT runs.id, runs.destination, runs.model, runs.remote_id, runs.url, runs.agent_id, runs.remote_run, runs.remote_file, runs.state, runs.cancelled, runs.held, runs.created_at, runs.finished_at, runs.last_beat_at, runs.unsaved, runs.unsaved_why, destinations.label, destinations.type, destinations.url AS address, destinations.account, destinations.held AS destination_held FROM runs JOIN destinations ON destinations.name = runs.destination WHERE runs.id = ?", (RUN,)).fetchone()[0]

for line in sys.stdin:
    act, *given = json.loads(line)
    print(json.dumps(globals()[act](*given)), flush=True)
"""


def test_an_older_training_and_worker_continue_beside_a_new_worker(home: Path, clock: FakeClock) -> None:
    at_revision(sqlite_url(home), "0005", *BEFORE_0006)
    with Older(home) as older:
        in_flight = older.call("claim", "metrics")
        assert isinstance(in_flight, dict)
        assert in_flight["keys"] == ["0", "1"]

        with open_outbox(home, environ={}, clock=clock) as outbox, Bench(outbox) as bench:
            assert outbox.database.describe()["revision"] == REVISION
            # The training saves, and reads its run; the worker settles what it had sent, with the response of the hub.
            older.call("enqueue", 1, "2")
            older.call("enqueue", 2, "5")
            assert older.call("run") == RUN
            bench.step()
            assert [batch.run.id for batch in bench.transport.batches if batch.kind is Kind.METRICS] == [BEAT]
            assert older.call("ack", 1, in_flight["token"], 2, {"remote_run": '"no. 8"'}) is True

            # The new worker reads that, and the old worker reads what the new one writes: each sees the newest.
            bench.transport._answer = lambda _batch: Delivered(
                Remote(remember={"file": "f", "agent_id": "b"})
            )
            clock.advance(10)
            bench.step()
            sent = {batch.kind: batch for batch in bench.transport.batches if batch.run.id == RUN}
            assert [entry.key for entry in sent[Kind.METRICS].entries] == ["2"]
            assert sent[Kind.METRICS].run.remembered["run"] == '"no. 8"'
            older.call("enqueue", 2, "6")
            clock.advance(1000)
            again = older.call("claim", "ckpt", microseconds(outbox.database.now()))
            assert isinstance(again, dict)
            assert (again["keys"], again["spent"]) == (["6"], 2)
            assert (again["agent_id"], again["run"], again["file"]) == ("b", '"no. 8"', "f")

            # The lease of the old worker expires: the new one takes it over, and the late settle is refused.
            clock.advance(3600)
            bench.step()
            assert older.call("ack", 2, again["token"], 1, {}) is False
            assert totals(outbox) == {"enqueued": 6, "delivered": 6}
            carried = [
                [entry.key for entry in batch.entries]
                for batch in bench.transport.batches
                if batch.run.id == RUN
            ]
            assert sorted(carried) == [["2"], ["5"], ["6"]]


def test_the_last_write_of_an_older_process_counts(home: Path, clock: FakeClock) -> None:
    at_revision(sqlite_url(home), "0005", *BEFORE_0006)
    with Older(home) as older, open_outbox(home, environ={}, clock=clock) as outbox:
        lease = must_claim(outbox)
        remote = Remote(remember={"run": "8", "agent_id": "b"})
        outbox.settlement.ack(lease, started_at=None, remote=remote)
        assert lease.batch.run.id == RUN
        older.call("enqueue", 2, "5")
        claimed = older.call("claim", "ckpt")
        assert isinstance(claimed, dict)
        assert (claimed["run"], claimed["agent_id"]) == ("8", "b")
        older.call("ack", 2, claimed["token"], 1, {"remote_run": "9"})
        older.call("enqueue", 1, "7")
        clock.advance(10)

        again = [must_claim(outbox) for _ in range(2)]

        known = {each.batch.run.id: dict(each.batch.run.remembered) for each in again}
        assert known[RUN] == {"run": "9", "agent_id": "b", "file": '{"modelPath": "gs://a"}'}


@pytest.mark.parametrize("first", ["runs", "destinations"])
def test_an_upgrade_and_an_older_worker_never_deadlock(home: Path, postgres: Postgres, first: str) -> None:
    """A settle updates a run or a destination, and the claim in its transaction reads and writes the other one."""
    url = postgres.new_database()
    at_revision(url, "0005", *BEFORE_0006)
    with ThreadPoolExecutor() as pool, connect(url) as settling:
        settling.execute("UPDATE lanes SET pending = pending")
        settling.execute(f"UPDATE {first} SET held = held")
        upgrading = pool.submit(lambda: open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}).close())
        if first == "runs":
            wait_for_waiting(url, 1)
        else:
            upgrading.result(60)
        settling.execute("SELECT lanes.id FROM lanes, runs, destinations FOR UPDATE OF lanes")
        settling.execute("UPDATE destinations SET requests_free_at = requests_free_at")
        settling.commit()
        upgrading.result(60)


def test_the_columns_of_older_processes_remain() -> None:
    """Without them an older worker treats the outbox as damaged, claims nothing, and keeps its lock."""
    assert {"agent_id", "remote_run", "remote_file"} <= set(runs.c.keys())
    assert {"requests_free_at", "uploads_free_at"} <= set(destinations.c.keys())
