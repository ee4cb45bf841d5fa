"""P8: memory is constant in file size and backlog, disk has a cap, and the cost of enqueue, claim and status does
not grow with history. Costs are asserted as query plans and counts, never as times."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from stage import (
    PACES,
    TERMS,
    Bench,
    ack,
    claim,
    environ_of,
    hubqueue,
    log,
    must_claim,
    new_run,
    python,
    save_snapshot,
    wait_for_removals,
)

from hubqueue.destinations.hub.registration import registration_draft
from hubqueue.domain.budget import Budget
from hubqueue.domain.drafts import Checkpoint
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import SpoolFull
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.moves.counting import Moved
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock

pytestmark = pytest.mark.usefixtures("migrated_home")

MIB = 1 << 20


def test_a_large_checkpoint_costs_no_memory(hub: Sandbox, home: Path, tmp_path: Path) -> None:
    source = tmp_path / "large.pt"
    source.write_bytes(os.urandom(MIB) * 64)
    code = """
import hubqueue, resource, sys
run = hubqueue.start_run("yolov8n.pt", worker="thread", strict=True)
run.log_metrics({"loss": 1}, epoch=0)
import threading
while run.remote_id is None:
    threading.Event().wait(0.05)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run.save_checkpoint(sys.argv[1], epoch=1, final=True)
left = run.finish(timeout=200)
print(left.entries, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    process = python(code, environ_of(home, hub.url), str(source), fresh=True)

    out, _ = process.communicate(timeout=240)

    left, grown = (int(word) for word in out.split()[-2:])
    assert left == 0, out
    assert grown < 32, f"{grown} MiB more for a file of 64 MiB"
    assert max(record.size for record in hub.checkpoints(hub.models[0])) == 64 * MIB


def test_the_spool_has_a_cap(home: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"x" * 600)
    with open_outbox(home, environ={"HUBQUEUE_SPOOL__MAX_BYTES": "1000"}) as outbox:
        run = new_run(outbox)
        save_snapshot(outbox, run, Checkpoint(tmp_path / "last.pt", 0))

        with pytest.raises(SpoolFull, match=r"1\.0 kB"):
            save_snapshot(outbox, run, Checkpoint(tmp_path / "last.pt", 1, is_best=True))

        assert outbox.spool.bytes_used() == 600


def test_a_reserve_of_free_space_remains(home: Path, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"x" * 600)
    with open_outbox(home, environ={"HUBQUEUE_SPOOL__MIN_FREE_BYTES": str(1 << 60)}) as outbox:
        run = new_run(outbox)

        with pytest.raises(SpoolFull, match="free"):
            save_snapshot(outbox, run, Checkpoint(tmp_path / "last.pt", 0))


def test_snapshots_are_deleted_when_their_entries_no_longer_need_them(
    outbox: Outbox, tmp_path: Path, clock: FakeClock
) -> None:
    (tmp_path / "last.pt").write_bytes(b"x" * 600)
    run = new_run(outbox)
    for epoch in range(3):
        save_snapshot(outbox, run, Checkpoint(tmp_path / "last.pt", epoch))
    wait_for_removals()
    assert outbox.spool.bytes_used() == 600

    with Bench(outbox) as bench:
        bench.step()

    assert outbox.spool.bytes_used() == 0


def test_a_dead_checkpoint_keeps_its_snapshot_until_it_is_cancelled(outbox: Outbox, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"x" * 600)
    run = new_run(outbox)
    entry = save_snapshot(outbox, run, Checkpoint(tmp_path / "last.pt", 0))
    outbox.settlement.bury(must_claim(outbox), reason="413", started_at=None)
    assert outbox.spool.bytes_used() == 600

    outbox.discard(outbox.entries.cancel(ids=[entry]))

    assert outbox.spool.bytes_used() == 0


def test_an_epoch_costs_few_statements(home: Path, clock: FakeClock) -> None:
    """Guards the speed without a clock, which would be noisy: the number of statements decides the cost."""
    with open_outbox(home, environ={}, clock=clock) as outbox:
        run, statements = new_run(outbox), list[str]()
        log(outbox, run, 0)
        ack(outbox, must_claim(outbox))
        clock.advance(10)
        outbox.database._held(reading=False).connection.driver_connection.set_trace_callback(
            statements.append
        )

        def executed() -> list[str]:
            # SQLite reports a statement again for a trigger that it fires.
            distinct = list(dict.fromkeys(statements))
            statements.clear()
            return distinct

        log(outbox, run, 1)
        enqueued = executed()
        assert [each.split()[0] for each in enqueued] == ["BEGIN", "UPDATE", "INSERT", "COMMIT"], enqueued
        lease = must_claim(outbox)
        claimed = executed()
        assert len(claimed) <= 10, claimed
        ack(outbox, lease)
        settled = executed()
        assert len(settled) <= 6, settled


def test_an_epoch_writes_few_pages(home: Path) -> None:
    """The entry, its index entry and the counters of the lane: one page each."""
    with open_outbox(home, environ={}) as outbox:
        if outbox.database.describe()["journal_mode"] != "wal":
            pytest.skip("without a write-ahead log there is nothing to count")
        run = new_run(outbox)
        log(outbox, run, *range(200))
        with outbox.database.read() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

        log(outbox, run, *range(200, 300))

        frames = (home / "outbox.db-wal").stat().st_size / (4096 + 24)
        assert 2 <= frames / 100 < 3.5


def test_no_statement_of_the_hot_paths_is_planned_again(home: Path, clock: FakeClock) -> None:
    """SQLite plans a statement again at each use where a parameter is its limit, or is compared with the condition of
    a partial index: ten times the cost of the statement itself."""
    with open_outbox(home, environ={}, clock=clock) as outbox:
        run, planned = new_run(outbox), list[tuple[object, ...]]()
        budgeted = replace(TERMS, budget=Budget(requests=100, uploads=10))

        def one_epoch(epoch: int) -> None:
            clock.advance(10)
            log(outbox, run, epoch)
            assert outbox.stats.next_due("hub", [Kind.METRICS])
            outbox.stats.next_due("hub", [Kind.HEARTBEAT])
            with outbox.database.write() as tx:
                lease = outbox.claims.claim("hub", PACES, budgeted, within=tx)
            assert lease is not None
            ack(outbox, lease)

        for reading in (False, True):
            handle = outbox.database._held(reading=reading).connection.driver_connection
            assert handle is not None
            handle.set_authorizer(lambda *what: planned.append(what) or 0)
        one_epoch(0)
        assert planned, "the authorizer was not called"
        planned.clear()

        one_epoch(1)

        # BEGIN and COMMIT have nothing to plan; the drivers compile them each time.
        assert [what for what in planned if what[1] not in ("BEGIN", "COMMIT")] == []


def test_a_request_of_a_long_backlog_costs_one_transaction(home: Path, clock: FakeClock) -> None:
    environ = {"HUBQUEUE_RATE_LIMITS__METRICS": "0", "HUBQUEUE_WORKER__BATCH_ENTRIES": "1"}
    with open_outbox(home, environ=environ, clock=clock) as outbox:
        run, statements = new_run(outbox), list[str]()
        log(outbox, run, *range(5))
        outbox.registry.end_run(run, RunState.FINISHED)
        with Bench(outbox) as bench:
            handle = outbox.database._held(reading=False).connection.driver_connection
            assert handle is not None
            handle.set_trace_callback(statements.append)
            bench.step()
            handle.set_trace_callback(None)

    assert [keys for _, keys in bench.sent] == [["0"], ["1"], ["2"], ["3"], ["4"]]
    # The first claim, and five settles: each but the last has the next claim in it.
    assert statements.count("COMMIT") == 1 + 5, statements


def test_no_statement_of_the_hot_paths_scans_the_history(home: Path, clock: FakeClock) -> None:
    with open_outbox(home, environ={}, clock=clock) as outbox:
        run = new_run(outbox)
        handles = [
            outbox.database._held(reading=reading).connection.driver_connection for reading in (False, True)
        ]
        statements: set[str] = set()
        for handle in handles:
            assert handle is not None
            handle.set_trace_callback(statements.add)

        log(outbox, run, 0, 0, 1)
        ack(outbox, must_claim(outbox))
        outbox.claims.claim("hub", {Kind.HEARTBEAT: TERMS.lease}, TERMS)
        log(outbox, run, 2)
        clock.advance(10)
        claim(outbox)
        clock.advance(TERMS.lease.total_seconds() + 10)
        claim(outbox)  # entries of a lost lease, sent before
        outbox.stats.next_due("hub", [Kind.METRICS])
        outbox.stats.next_due("hub", [Kind.HEARTBEAT])
        outbox.stats.running()
        outbox.stats.owed(run)

        for handle in handles:
            assert handle is not None
            handle.set_trace_callback(None)
        planned = [
            each for each in statements if each.startswith(("SELECT", "UPDATE", "INSERT", "WITH", "DELETE"))
        ]
        reader = handles[1]
        assert reader is not None
        plans = {each: [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {each}")] for each in planned}

    scans = {
        statement: step
        for statement, plan in plans.items()
        for step in plan
        if step.startswith("SCAN")
        and any(table in step for table in ("entries", "attempts", "budgets"))
        and "INDEX" not in step
    }
    assert len(plans) > 20
    # From owing lanes to their runs: the other direction scans every run that a home has ever had.
    assert not [
        plan for plan in plans.values() if any("runs_remote (destination=?)" in step for step in plan)
    ]
    assert any("INSERT INTO entries" in each for each in plans)
    assert scans == {}
    # The most frequent statements of training and worker find their rows directly, also in a long backlog.
    supersedes = [
        plan for each, plan in plans.items() if each.startswith("UPDATE entries SET state='superseded'")
    ]
    fresh = next(
        plan for each, plan in plans.items() if "batch IS NULL ORDER BY" in each.replace("entries.", "")
    )
    assert len(supersedes) >= 2  # of the enqueue, and of the claim
    assert any("outcome='lost'" in each for each in plans)
    for plan in supersedes:
        of_a_key = ("entries_waiting (lane_id=? AND rank", "entries_delivered (lane_id=? AND rank")
        assert any(each in step for step in plan for each in of_a_key), plan
        assert not any("newer" in step and step.endswith("(lane_id=?)") for step in plan), plan
    assert any("entries_waiting (lane_id=?" in step for step in fresh)
    assert not any("TEMP B-TREE" in step for step in fresh)


@pytest.mark.parametrize("pace", ["0.05", pytest.param("0", marks=pytest.mark.slow)])
def test_a_drain_of_a_long_backlog_uses_few_requests(hub: Sandbox, home: Path, pace: str) -> None:
    environ = environ_of(home, hub.url, HUBQUEUE_RATE_LIMITS__METRICS=pace)
    with open_outbox(home, environ=environ) as outbox:
        run = new_run(outbox, remote_id=None)
        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
        log(outbox, run, *range(2500))

    assert hubqueue(environ, "drain", "--timeout", "120").returncode == 0

    sent = [request for request in hub.requests if request.kind == "metrics"]
    assert [len(request.epochs) for request in sent] == [1000, 1000, 500]


def test_a_worker_claims_few_entries_while_others_write(home: Path, clock: FakeClock) -> None:
    terms = replace(TERMS, max_entries=1000)

    def claimed(outbox: Outbox, pace: float) -> int:
        lease = outbox.claims.claim("hub", {Kind.METRICS: timedelta(seconds=pace)}, terms)
        assert lease is not None
        ack(outbox, lease)
        clock.advance(10)
        return len(lease.batch.entries)

    with (
        open_outbox(home, environ={}, clock=clock) as worker,
        open_outbox(home, environ={}, clock=clock) as training,
    ):
        run = new_run(training)
        log(training, run, *range(500))
        assert claimed(worker, pace=0) == 50  # another process has just written these
        log(training, run, 500)
        assert claimed(worker, pace=0) == 50
        log(training, run, 501)
        assert claimed(worker, pace=3) == 402  # a rarely allowed request carries as many as possible
        log(training, run, *range(502, 902))
        assert claimed(worker, pace=0) == 50
        assert claimed(worker, pace=0) == 350, "no other process has written since"


def test_a_batch_has_a_cap_of_bytes(home: Path, clock: FakeClock) -> None:
    from hubqueue.domain.drafts import metrics_draft

    with open_outbox(home, environ={}, clock=clock) as outbox:
        run = new_run(outbox)
        text = '{"note": "' + "x" * 300_000 + '"}'
        for epoch in range(5):
            outbox.entries.enqueue(run, metrics_draft(text, epoch))

        lease = must_claim(outbox)

        assert len(lease.batch.entries) == 3


@pytest.mark.parametrize("move", ["prune", "cancel", "redrive"])
def test_the_cost_of_a_move_that_finds_nothing_does_not_grow_with_history(outbox: Outbox, move: str) -> None:
    run, idle, long_ago = new_run(outbox), new_run(outbox), outbox.database.now() - timedelta(days=1)
    handle = outbox.database._held(reading=False).connection.driver_connection
    assert handle is not None
    entries = outbox.entries
    moves: dict[str, Callable[[], object]] = {
        "prune": lambda: entries.prune(settled_before=long_ago, ended_before=long_ago),
        "cancel": lambda: entries.cancel(run_id=idle),
        "redrive": entries.redrive,
    }

    def instructions() -> int:
        counted: list[None] = []
        handle.set_progress_handler(lambda: counted.append(None), 1)
        moved = moves[move]()
        handle.set_progress_handler(None, 1)
        assert moved in (0, Moved(0), (Moved(0), Moved(0)))
        return len(counted)

    log(outbox, run, *range(100))
    ack(outbox, must_claim(outbox))
    few = instructions()
    for start in range(100, 1000, 100):
        log(outbox, run, *range(start, start + 100))
    with outbox.database.write() as tx:
        tx.exec_driver_sql("UPDATE entries SET state = 'delivered', settled_at = enqueued_at")

    assert instructions() <= few


def test_finished_rows_are_pruned(outbox: Outbox, clock: FakeClock) -> None:
    from hubqueue.worker.janitor import Janitor

    run = new_run(outbox)
    log(outbox, run, *range(20))
    ack(outbox, must_claim(outbox))
    clock.advance(40 * 86_400)

    assert Janitor(outbox, lambda _fact: None).prune() == 19  # the newest entry and the newest attempt stay

    assert [entry["key"] for entry in outbox.stats.entries()] == ["19"]
    assert outbox.stats.totals()["delivered"] == 20
