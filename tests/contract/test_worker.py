"""The worker, stepped by hand and as a process: what it sends, in which order, and how it ends."""

from __future__ import annotations

import json
import os
import threading
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from stage import (
    PATIENCE,
    TERMS,
    ZERO,
    Bench,
    end,
    environ_of,
    hubqueue,
    kill,
    log,
    new_run,
    python,
    save_snapshot,
    start_worker,
    totals,
    wait_until,
)

from hubqueue.destinations.hub.registration import registration_draft
from hubqueue.domain.drafts import Checkpoint
from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Batch
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.outcome import Delivered, Outcome, Remote, RetryLater
from hubqueue.outbox.locks import Lock
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock
from hubqueue.worker import events
from hubqueue.worker import log as journal
from hubqueue.worker.janitor import Janitor

pytestmark = pytest.mark.usefixtures("migrated_home")


def test_a_run_is_registered_first_and_bound_late(outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(outbox, remote_id=None)
    log(outbox, run, 0, 1)
    outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))

    with Bench(outbox) as bench:
        bench.step()
        bench.step()

    assert bench.sent[0] == (Kind.REGISTRATION, ["registration"])
    assert (Kind.METRICS, ["0", "1"]) in bench.sent
    assert events.RunRegistered(run, f"model-{run}", f"https://hub.example/models/model-{run}") in bench.facts


def test_heartbeats_go_at_once_and_then_every_300_seconds(outbox: Outbox, clock: FakeClock) -> None:
    new_run(outbox)

    with Bench(outbox) as bench:
        assert bench.step() == 1
        clock.advance(299)
        assert bench.step() == 0
        clock.advance(1)
        assert bench.step() == 1

    assert [kind for kind, _ in bench.sent] == [Kind.HEARTBEAT, Kind.HEARTBEAT]


def test_a_failed_heartbeat_is_not_queued(outbox: Outbox, clock: FakeClock) -> None:
    new_run(outbox)
    with Bench(outbox, lambda _batch: RetryLater("503")) as bench:
        bench.step()
        clock.advance(3000)
        assert bench.step() == 1
        assert bench.step() == 0

    assert totals(outbox) == {}


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.FAILED, RunState.INTERRUPTED])
def test_a_run_that_has_ended_has_no_heartbeat(outbox: Outbox, clock: FakeClock, state: RunState) -> None:
    run = new_run(outbox)
    outbox.registry.end_run(run, state)

    with Bench(outbox) as bench:
        assert bench.step() == 0


def test_the_agent_id_is_adopted_and_never_reset(outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(outbox)
    first, second = (Remote(remember={"agent_id": name}) for name in ("agent-1", "agent-2"))
    remotes = iter([first, Remote(), second, Remote()])

    with Bench(outbox, lambda _batch: Delivered(next(remotes))) as bench:
        for _ in range(4):
            bench.step()
            clock.advance(300)

    assert [batch.run.remembered.get("agent_id") for batch in bench.transport.batches] == [
        None,
        "agent-1",
        "agent-1",
        "agent-2",
    ]
    row = outbox.stats.run(run)
    assert row is not None
    assert json.loads(row["remembered"]) == {"agent_id": "agent-2"}


def test_cancelled_reaches_the_run(outbox: Outbox) -> None:
    run = new_run(outbox)
    log(outbox, run, 0)

    with Bench(outbox, lambda _batch: Delivered(Remote(cancelled=True))) as bench:
        bench.step()

    row = outbox.stats.run(run)
    assert row is not None
    assert row["cancelled"]
    assert events.RunCancelled(run) in bench.facts


def test_a_defect_in_a_transport_costs_a_retry_and_no_entry(outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(outbox)
    log(outbox, run, 0)

    def explode(_batch: Batch) -> Outcome:
        raise ZeroDivisionError("a defect")

    with Bench(outbox, explode) as bench:
        bench.step()
        assert totals(outbox) == {"enqueued": 1, "pending": 1, "retrying": 1}
        assert "ZeroDivisionError" in outbox.status()["runs"][0]["lanes"][1]["last_error"]


def test_an_outcome_is_kept_when_the_next_claim_fails(home: Path, clock: FakeClock) -> None:
    environ = {"HUBQUEUE_RATE_LIMITS__METRICS": "0", "HUBQUEUE_WORKER__BATCH_ENTRIES": "1"}
    with open_outbox(home, environ=environ, clock=clock) as outbox:
        run = new_run(outbox)
        log(outbox, run, 0, 1)
        outbox.registry.end_run(run, RunState.FINISHED)

        def damage_the_next(_batch: Batch) -> Outcome:
            with outbox.database.write() as tx:
                tx.exec_driver_sql("UPDATE entries SET size = 'damaged' WHERE key = '1'")
            return Delivered()

        bench = Bench(outbox, damage_the_next)
        bench.worker.scan()
        pool = next(pool for pool in bench.worker._pools if Kind.METRICS in pool.paces)
        lease = outbox.claims.claim("hub", pool.paces, pool.terms)
        assert lease is not None

        following = bench.worker._delivery.attempt(
            lease, threading.Event(), partial(bench.worker._follow, pool)
        )

        assert following is None
        assert bench.sent == [(Kind.METRICS, ["0"])]
        assert totals(outbox) == {"enqueued": 2, "pending": 1, "delivered": 1}
        assert [row["outcome"] for row in outbox.stats.attempts()] == ["delivered"]
        assert sum(isinstance(fact, events.BatchDelivered) for fact in bench.facts) == 1


def test_nothing_is_emitted_or_removed_before_it_is_committed(
    home: Path, clock: FakeClock, tmp_path: Path
) -> None:
    """A settle emits and deletes only what is committed: while its transaction is open, neither has happened."""
    (tmp_path / "last.pt").write_bytes(b"weights")
    with open_outbox(home, environ={}, clock=clock) as outbox:
        run = new_run(outbox)
        save_snapshot(outbox, run, Checkpoint(tmp_path / "last.pt", 0))
        bench, seen = Bench(outbox), list[tuple[int, int]]()
        bench.worker.scan()
        lease = outbox.claims.claim("hub", {Kind.CKPT: ZERO}, TERMS)
        assert lease is not None

        def observe(_tx: object) -> None:
            emitted = sum(isinstance(fact, events.BatchDelivered) for fact in bench.facts)
            seen.append((emitted, outbox.spool.bytes_used()))

        bench.worker._delivery.attempt(lease, threading.Event(), observe)

        assert seen == [(0, 7)]
        assert outbox.spool.bytes_used() == 0
        assert sum(isinstance(fact, events.BatchDelivered) for fact in bench.facts) == 1


def test_stopping_aborts_and_gives_back_what_is_in_flight(outbox: Outbox) -> None:
    run = new_run(outbox)
    log(outbox, run, 0)
    bench = Bench(outbox)
    reached = threading.Event()

    class Slow:
        def send(self, batch: Batch, attempt: object) -> Outcome:
            from hubqueue.domain.outcome import Aborted

            reached.set()
            attempt.stop.wait(60)  # type: ignore[attr-defined]
            return Aborted("the worker stops")

        def close(self) -> None:
            pass

    from hubqueue.worker.worker import Worker

    worker = Worker(outbox, emit=bench.facts.append, dial=lambda *_: Slow())  # type: ignore[arg-type,return-value]
    worker.start()
    worker.step()
    assert reached.wait(PATIENCE)

    worker.stop(ZERO)

    assert totals(outbox) == {"enqueued": 1, "pending": 1}
    assert worker.step() == 0


def test_two_workers_share_the_work_and_send_nothing_twice(hub: Sandbox, home: Path) -> None:
    environ = environ_of(
        home, hub.url, HUBQUEUE_WORKER__BATCH_ENTRIES="5", HUBQUEUE_RATE_LIMITS__METRICS="0.01"
    )
    with open_outbox(home, environ=environ) as outbox:
        for _ in range(4):
            run = new_run(outbox, remote_id=None)
            outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
            log(outbox, run, *range(50))
        workers = [start_worker(environ) for _ in range(3)]
        wait_until(lambda: not outbox.stats.owed().entries)
        for worker in workers:
            end(worker)

    sent = [
        (request.model_id, epoch)
        for request in hub.requests
        if request.kind == "metrics"
        for epoch in request.epochs
    ]
    assert len(sent) == len(set(sent)) == 200
    assert not any(request.replayed for request in hub.requests)


def test_the_leases_of_a_killed_worker_are_taken_back_at_once(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url, HUBQUEUE_WORKER__LEASE="3600")
    with open_outbox(home, environ=environ) as outbox:
        run = new_run(outbox, remote_id=None)
        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
        hub.fail("registration:silence:seconds=100:times=1")
        worker = start_worker(environ)
        wait_until(lambda: any(request.kind == "registration" for request in hub.requests))

        kill(worker)
        assert hubqueue(environ, "drain", "--timeout", "90").returncode == 0

        history = [row["outcome"] for row in outbox.stats.attempts() if row["kind"] == "registration"]
        assert history == ["delivered", "lost"]


def test_the_janitor_marks_a_run_whose_process_has_died(outbox: Outbox) -> None:
    run = new_run(outbox)
    lock = Lock(outbox.run_lock(run))
    assert lock.try_acquire()
    facts: list[events.Fact] = []
    janitor = Janitor(outbox, facts.append)

    janitor.scan()
    assert facts == []
    lock.release()
    janitor.scan()

    assert facts == [events.RunInterrupted(run)]
    assert [row["state"] for row in outbox.stats.runs()] == ["interrupted"]


def test_the_janitor_sweeps_orphans_and_nothing_that_is_owed(outbox: Outbox, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    run = new_run(outbox)
    save_snapshot(outbox, run, Checkpoint(tmp_path / "last.pt", 0))
    kept = {path.name for path in outbox.spool.path.glob("[!.]*")}
    for name in ("orphan-000000000000.ckpt", "half-000000000000.ckpt.part"):
        (outbox.spool.path / name).write_bytes(b"x")

    young = outbox.spool.sweep(outbox.entries.snapshots_kept, older_than=timedelta(hours=1), now=_now())
    old = outbox.spool.sweep(outbox.entries.snapshots_kept, older_than=timedelta(hours=1), now=_now() + 7200)

    assert young == ()
    assert len(old) == 2
    assert {path.name for path in outbox.spool.path.glob("[!.]*")} == kept


def test_a_resumed_model_continues_its_run(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    code = """
import hubqueue, sys
run = hubqueue.start_run(sys.argv[1], worker="none", strict=True)
run.log_metrics({"loss": 1}, epoch=int(sys.argv[2]))
print(run.id)
"""
    model = "abcdefghij0123456789"
    first = python(code, environ, model, "0").communicate(timeout=60)[0].strip()
    second = (
        python(code, environ, f"https://hub.ultralytics.com/models/{model}", "1")
        .communicate(timeout=60)[0]
        .strip()
    )

    assert first == second
    shown = json.loads(hubqueue(environ, "status", "--json").stdout)
    assert [run["model"] for run in shown["runs"]] == [model]
    assert shown["totals"]["pending"] == 2


def test_a_late_job_runs_after_a_jump_of_the_schedulers_clock() -> None:
    from hubqueue.worker.scheduler import Scheduler

    calls: list[int] = []
    again = threading.Event()

    def job() -> float:
        calls.append(1)
        again.set()
        return 3600.0

    scheduler = Scheduler({"job": job})
    scheduler.start()
    assert again.wait(PATIENCE)
    again.clear()

    scheduler.wake("job")
    assert again.wait(PATIENCE)
    scheduler._expected["job"] -= 7200  # how a late date looks on the monotonic clock
    again.clear()
    wait_until(lambda: not scheduler._running)
    scheduler._expected["job"] -= 7200
    scheduler.tend()

    assert again.wait(PATIENCE)
    scheduler.stop()


def test_wakes_during_a_job_are_not_lost() -> None:
    from hubqueue.worker.scheduler import Scheduler

    count, seen = 0, threading.Condition()

    def job() -> float:
        nonlocal count
        with seen:
            count += 1
            first = count == 1
            seen.notify_all()
        if first:
            scheduler.wake("job")
        return 3600.0

    scheduler = Scheduler({"job": job})
    scheduler.start()

    with seen:
        assert seen.wait_for(lambda: count >= 2, PATIENCE)
    scheduler.stop()


@pytest.mark.parametrize("times", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_a_scheduler_may_be_stopped_while_it_submits_its_jobs(times: int) -> None:
    from hubqueue.worker.scheduler import Scheduler

    # A thread of APScheduler that fails here fails the test: pytest turns it into an error.
    for _ in range(times):
        called = threading.Event()

        def job(called: threading.Event = called) -> float:
            called.set()
            return 3600.0

        scheduler = Scheduler({str(each): job for each in range(20)})
        scheduler.start()
        assert called.wait(PATIENCE)
        scheduler.stop()


def test_every_fact_is_worded() -> None:
    import dataclasses
    import typing

    for kind in typing.get_args(events.Fact):
        hints = typing.get_type_hints(kind)
        fact = kind(*(_example(hints[field.name]) for field in dataclasses.fields(kind)))
        worded = journal.word(fact)
        assert kind is events.UploadProgressed or (worded is not None and "\n" not in worded[1])


def _example(hint: object) -> object:
    from datetime import UTC, datetime

    examples = {
        str: "x",
        int: 1,
        Kind: Kind.METRICS,
        timedelta: timedelta(seconds=1),
        datetime: datetime(2026, 1, 1, tzinfo=UTC),
    }
    return examples.get(hint, "x")  # type: ignore[call-overload]


def _now() -> float:
    probe = Path(os.environ.get("TMPDIR", "/tmp")) / f"hubqueue-now-{os.getpid()}"
    probe.write_bytes(b"")
    moment = probe.stat().st_mtime
    probe.unlink()
    return moment + 1
