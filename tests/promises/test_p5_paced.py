"""P5: request starts of one lane are never closer than its limit, and with a backlog the allowed rate is used."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path

import pytest
from stage import (
    TERMS,
    Bench,
    ack,
    ckpt,
    claim,
    end,
    environ_of,
    log,
    must_claim,
    new_run,
    start_worker,
    totals,
    wait_until,
)

from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Delivered, Outcome, RetryLater, Scope
from hubqueue.outbox.moves.claim import Terms
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock

pytestmark = pytest.mark.usefixtures("migrated_home")


def test_a_lane_waits_for_its_pace(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    ack(any_outbox, must_claim(any_outbox))
    log(any_outbox, run, 1)

    clock.advance(2.999)
    assert claim(any_outbox) is None
    clock.advance(0.001)
    assert claim(any_outbox) is not None


def test_the_first_checkpoint_does_not_wait(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    ckpt(any_outbox, run, "last")

    assert claim(any_outbox, Kind.CKPT) is not None


@pytest.mark.parametrize("seconds", [-31_536_000, 31_536_000])
def test_a_jump_of_the_wall_clock_changes_no_pace(
    any_outbox: Outbox, clock: FakeClock, seconds: float
) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    ack(any_outbox, must_claim(any_outbox))
    log(any_outbox, run, 1)

    clock.jump(seconds)
    assert claim(any_outbox) is None
    clock.advance(3)
    assert claim(any_outbox) is not None


def test_another_process_of_the_same_boot_keeps_the_pace_after_a_jump(home: Path, clock: FakeClock) -> None:
    with open_outbox(home, environ={}, clock=clock) as first:
        run = new_run(first)
        log(first, run, 0)
        ack(first, must_claim(first))
        log(first, run, 1)
    clock.jump(31_536_000)

    with open_outbox(home, environ={}, clock=clock) as second:
        assert claim(second) is None
        clock.advance(3)
        assert claim(second) is not None


@pytest.mark.parametrize("off", [1.0, -31_536_000.0])
def test_a_reboot_keeps_the_pace_and_a_clock_set_back_stops_no_lane(
    home: Path, clock: FakeClock, off: float
) -> None:
    with open_outbox(home, environ={}, clock=clock) as before:
        run = new_run(before)
        log(before, run, 0)
        ack(before, must_claim(before))
        log(before, run, 1)
    clock.reboot(off)

    with open_outbox(home, environ={}, clock=clock) as after:
        assert claim(after) is None
        clock.advance(3)
        assert claim(after) is not None


def test_a_kill_between_claim_and_response_keeps_the_pace(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    ckpt(any_outbox, run, "last")
    must_claim(any_outbox)

    any_outbox.claims.reclaim([TERMS.worker])
    # The request may have started up to the grace after the claim: the spacing counts from there.
    clock.advance(900)
    assert claim(any_outbox) is None
    clock.advance(TERMS.start_grace.total_seconds())
    assert claim(any_outbox) is not None


def test_an_attempt_that_never_started_costs_no_pace(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    ckpt(any_outbox, run, "last")
    lease = must_claim(any_outbox)

    any_outbox.settlement.release(lease, reason="no connection was made", started_at=None)

    assert claim(any_outbox) is not None


def test_the_wait_of_a_429_holds_for_every_lane_of_the_destination(outbox: Outbox, clock: FakeClock) -> None:
    for name in ("a", "b"):
        run = new_run(outbox, remote_id=name)
        log(outbox, run, 0)
    outcomes: list[Outcome] = [RetryLater("429", timedelta(seconds=60), Scope.DESTINATION)]

    def respond(_batch: Batch) -> Outcome:
        return outcomes.pop() if outcomes else Delivered()

    with Bench(outbox, respond) as bench:
        # One thread at a time, so that the first outcome is settled before the second claim.
        lease = bench.worker._outbox.claims.claim("hub", {Kind.METRICS: timedelta(seconds=3)}, TERMS)
        assert lease is not None
        bench.worker._delivery.attempt(lease, bench.worker._abort)
        assert bench.step() == 0
        clock.advance(59)
        assert bench.step() == 0
        clock.advance(3)
        bench.step()
        # Both heartbeats, which had to wait too. The metrics lanes follow one after another.
        assert [kind for kind, _ in bench.sent].count(Kind.HEARTBEAT) == 2
        clock.advance(60)
        bench.step()

    assert totals(outbox) == {"enqueued": 2, "delivered": 2}


def test_retries_wait_for_the_pace_too(outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(outbox)
    ckpt(outbox, run, "last")
    lease = must_claim(outbox)
    outbox.settlement.retry(lease, at=outbox.database.now(), reason="503", started_at=outbox.database.now())

    clock.advance(899)
    assert claim(outbox, Kind.CKPT) is None
    clock.advance(1)
    assert claim(outbox, Kind.CKPT) is not None


def test_with_a_backlog_the_allowed_rate_is_used_and_never_exceeded(hub: Sandbox, home: Path) -> None:
    pace = 1.0
    settings = {"HUBQUEUE_RATE_LIMITS__METRICS": str(pace), "HUBQUEUE_WORKER__BATCH_ENTRIES": "1"}
    environ = environ_of(home, hub.url, **settings)
    with open_outbox(home, environ=environ) as outbox:
        run = new_run(outbox, remote_id=None)
        from hubqueue.destinations.hub.registration import registration_draft

        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
        log(outbox, run, *range(8))
        workers = [start_worker(environ), start_worker(environ)]
        try:
            wait_until(lambda: not outbox.stats.owed().entries)
        finally:
            for worker in workers:
                end(worker)
        starts = sorted(
            row["started_at"] for row in outbox.stats.attempts(limit=1000) if row["kind"] == "metrics"
        )

    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(starts)]
    assert len(gaps) == 7
    assert min(gaps) >= pace
    # Real seconds on a busy machine. The simulation, on a clock that the test moves, proves the promised 95 %.
    assert pace / sorted(gaps)[len(gaps) // 2] >= 0.75


def test_a_late_start_moves_the_spacing(outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(outbox)
    log(outbox, run, 0)
    lease = must_claim(outbox)

    clock.advance(20)  # the connection took so long
    outbox.settlement.restamp(lease, outbox.database.now(), TERMS.start_grace)
    outbox.claims.reclaim([TERMS.worker])  # and then the worker died
    clock.advance(3)

    assert claim(outbox, terms=Terms("worker-2", TERMS.lease, 10, 1000)) is None
    clock.advance(1)
    assert claim(outbox, terms=Terms("worker-2", TERMS.lease, 10, 1000)) is not None
