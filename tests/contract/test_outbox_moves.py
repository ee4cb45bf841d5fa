"""The moves of the outbox, on every database: each ends in the right state, and every entry stays counted."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text
from stage import PACES, TERMS, ack, ckpt, claim, keys, log, must_claim, new_run, totals

from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.errors import LeaseLost
from hubqueue.domain.outcome import Remote, Scope
from hubqueue.outbox.moves.batch import STUCK_AFTER
from hubqueue.outbox.moves.claim import Terms
from hubqueue.outbox.outbox import Outbox
from hubqueue.testing import FakeClock

OTHER = Terms("worker-2", TERMS.lease, TERMS.max_entries, TERMS.max_bytes)


def test_metrics_are_sent_by_epoch_in_one_batch(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 2, 0, 1)

    lease = must_claim(any_outbox)

    assert keys(lease) == ["0", "1", "2"]
    assert totals(any_outbox) == {"enqueued": 3, "pending": 3, "in_flight": 3}


def test_an_ack_delivers_the_whole_batch(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0, 1)

    ack(any_outbox, must_claim(any_outbox))

    assert totals(any_outbox) == {"enqueued": 2, "delivered": 2}
    assert any_outbox.stats.owed().bytes == 0


def test_logging_an_epoch_again_supersedes_the_waiting_entry(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0, value=1.0)

    log(any_outbox, run, 0, value=2.0)

    lease = must_claim(any_outbox)
    assert [entry.payload for entry in lease.batch.entries] == ['{"loss": 2.0}']
    assert totals(any_outbox) == {"enqueued": 2, "pending": 1, "superseded": 1, "in_flight": 1}


def test_a_newer_value_follows_an_entry_in_flight(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0, value=1.0)
    lease = must_claim(any_outbox)

    log(any_outbox, run, 0, value=2.0)
    ack(any_outbox, lease)

    assert totals(any_outbox) == {"enqueued": 2, "delivered": 1, "pending": 1}
    clock.advance(3)
    assert must_claim(any_outbox).batch.entries[0].payload == '{"loss": 2.0}'


def test_a_retry_carries_the_same_entries_whatever_was_logged_since(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0, 1, 2, value=1.0)
    lease = must_claim(any_outbox)
    log(any_outbox, run, 1, value=2.0)
    any_outbox.settlement.retry(lease, at=any_outbox.database.now(), reason="503", started_at=None)
    log(any_outbox, run, 2, value=3.0)
    log(any_outbox, run, 2, value=4.0)  # replaces the one before, which nobody has tried

    clock.advance(10)
    again = must_claim(any_outbox)
    ack(any_outbox, again)
    clock.advance(10)
    newer = must_claim(any_outbox)

    assert again.batch.idempotency_key == lease.batch.idempotency_key
    assert [entry.payload for entry in again.batch.entries] == ['{"loss": 1.0}'] * 3
    assert [entry.payload for entry in newer.batch.entries] == ['{"loss": 2.0}', '{"loss": 4.0}']
    assert totals(any_outbox) == {
        "enqueued": 6,
        "delivered": 3,
        "superseded": 1,
        "pending": 2,
        "in_flight": 2,
    }


def test_an_older_value_is_never_sent_after_a_newer_one(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0, 1, value=1.0)
    for _ in range(STUCK_AFTER):
        clock.advance(10)
        lease = must_claim(any_outbox)
        any_outbox.settlement.retry(lease, at=any_outbox.database.now(), reason="503", started_at=None)
    log(any_outbox, run, 0, value=2.0)

    clock.advance(10)
    newer = must_claim(any_outbox)  # of another batch than the one that fails
    ack(any_outbox, newer)
    clock.advance(10)
    rest = must_claim(any_outbox)

    assert [(each.key, each.payload) for each in newer.batch.entries] == [("0", '{"loss": 2.0}')]
    assert [(each.key, each.payload) for each in rest.batch.entries] == [("1", '{"loss": 1.0}')]


def test_a_lane_is_leased_once(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    must_claim(any_outbox)

    log(any_outbox, run, 1)
    clock.advance(TERMS.lease.total_seconds() / 2)  # much longer than the pace

    assert claim(any_outbox, terms=OTHER) is None


def test_a_stale_lease_cannot_settle(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    stale = must_claim(any_outbox)
    clock.advance(TERMS.lease.total_seconds() + 1)
    fresh = must_claim(any_outbox, terms=OTHER)
    settlement = any_outbox.settlement

    for settle in (
        lambda: settlement.ack(stale, started_at=None, remote=Remote()),
        lambda: settlement.retry(stale, at=any_outbox.database.now(), reason="late", started_at=None),
        lambda: settlement.split(stale, reason="late", started_at=None),
        lambda: settlement.bury(stale, reason="late", started_at=None),
        lambda: settlement.release(stale, reason="late", started_at=None, hold=Scope.DESTINATION),
        lambda: settlement.restamp(stale, any_outbox.database.now(), TERMS.start_grace),
    ):
        with pytest.raises(LeaseLost):
            settle()

    assert totals(any_outbox) == {"enqueued": 1, "pending": 1, "in_flight": 1}
    ack(any_outbox, fresh)
    assert totals(any_outbox) == {"enqueued": 1, "delivered": 1}


def test_lanes_return_one_after_another_from_a_wait_that_all_share(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    for number in range(12):
        log(any_outbox, new_run(any_outbox, remote_id=f"model-{number}"), 0)
    now = any_outbox.database.now()
    ends, spread = now + timedelta(seconds=60), timedelta(seconds=60)
    any_outbox.settlement.retry(
        must_claim(any_outbox), at=now, reason="429", started_at=now, resumes_at=ends, spread=spread
    )

    counts = []
    for _ in range(121):
        counts.append(0)
        while (lease := claim(any_outbox, Kind.METRICS)) is not None:
            ack(any_outbox, lease)
            counts[-1] += 1
        clock.advance(1)

    assert sum(counts[:60]) == 0
    assert max(counts) <= 3
    assert sum(counts) == 12


def test_a_crash_counts_as_an_attempt(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    must_claim(any_outbox)

    clock.advance(TERMS.lease.total_seconds() + 1)
    again = must_claim(any_outbox, terms=OTHER)

    assert again.attempts == 2
    assert [row["outcome"] for row in any_outbox.stats.attempts()] == [None, "lost"]


@pytest.mark.parametrize(
    "other", ["enqueued_at = enqueued_at + 1", "checksum = checksum + 1", "checksum = NULL", "id = id + 1"]
)
def test_an_entry_with_any_difference_has_another_idempotency_key(
    any_outbox: Outbox, clock: FakeClock, other: str
) -> None:
    """An outbox that is restored from a copy gives the same ids to other entries."""
    log(any_outbox, new_run(any_outbox), 0)
    first = must_claim(any_outbox)
    any_outbox.settlement.release(first, reason="given back", started_at=None)
    with any_outbox.database.write() as tx:
        tx.execute(text(f"UPDATE entries SET {other}"))

    clock.advance(3)

    assert must_claim(any_outbox).batch.idempotency_key != first.batch.idempotency_key


def test_a_retry_carries_the_same_batch_and_the_same_key(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0, 1)
    first = must_claim(any_outbox)
    any_outbox.settlement.retry(
        first, at=any_outbox.database.now(), reason="503", started_at=any_outbox.database.now()
    )
    log(any_outbox, run, 2)

    clock.advance(3)
    second = must_claim(any_outbox)

    assert keys(second) == ["0", "1"]
    assert second.batch.idempotency_key == first.batch.idempotency_key
    assert second.batch.entries[0].payload == first.batch.entries[0].payload


def test_a_refused_batch_is_split_until_the_bad_entry_is_alone(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, *range(16))
    sent = []

    while (lease := claim(any_outbox)) is not None:
        sent.append(len(lease.batch.entries))
        now = any_outbox.database.now()
        if "11" not in keys(lease):
            ack(any_outbox, lease)
        elif len(lease.batch.entries) > 1:
            any_outbox.settlement.split(lease, reason="400", started_at=now)
        else:
            any_outbox.settlement.bury(lease, reason="400 Bad Request", started_at=now)
        clock.advance(3)

    assert totals(any_outbox) == {"enqueued": 16, "delivered": 15, "dead": 1}
    assert len(sent) <= 2 * 4 + 1
    assert [row["key"] for row in any_outbox.stats.entries() if row["state"] == "dead"] == ["11"]


def test_a_release_refunds_the_attempt(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    lease = must_claim(any_outbox)

    any_outbox.settlement.release(lease, reason="the worker stops", started_at=None)

    again = must_claim(any_outbox)
    assert again.attempts == 1
    assert again.batch.idempotency_key == lease.batch.idempotency_key


def test_a_held_destination_stops_every_run_until_it_is_resumed(any_outbox: Outbox) -> None:
    first, second = new_run(any_outbox, remote_id="a"), new_run(any_outbox, remote_id="b")
    log(any_outbox, first, 0)
    log(any_outbox, second, 0)

    any_outbox.settlement.release(
        must_claim(any_outbox), reason="401", started_at=None, hold=Scope.DESTINATION
    )
    assert claim(any_outbox) is None
    assert any_outbox.stats.owed().held == 2

    lifted = any_outbox.registry.resume("hub")
    assert (lifted.destination, lifted.runs) == ("401", 0)
    assert claim(any_outbox) is not None


def test_a_held_run_does_not_stop_another(any_outbox: Outbox) -> None:
    first, second = new_run(any_outbox, remote_id="a"), new_run(any_outbox, remote_id="b")
    log(any_outbox, first, 0)
    log(any_outbox, second, 0)

    lease = must_claim(any_outbox)
    any_outbox.settlement.release(lease, reason="404", started_at=None, hold=Scope.RUN)

    other = must_claim(any_outbox)
    assert {lease.batch.run.id, other.batch.run.id} == {first, second}


def test_nothing_is_sent_before_the_registration(any_outbox: Outbox) -> None:
    run = new_run(any_outbox, remote_id=None)
    log(any_outbox, run, 0)
    assert claim(any_outbox) is None

    any_outbox.entries.enqueue(run, Draft(Kind.REGISTRATION, "registration", 0, "{}"))
    lease = must_claim(any_outbox)
    assert lease.batch.kind is Kind.REGISTRATION
    assert claim(any_outbox) is None
    any_outbox.settlement.ack(lease, started_at=None, remote=Remote(id="model-9", url="https://hub/9"))

    sent = must_claim(any_outbox)
    assert (sent.batch.kind, sent.batch.run.remote_id) == (Kind.METRICS, "model-9")


def test_the_completion_is_sent_last(any_outbox: Outbox, clock: FakeClock) -> None:
    run, _ = any_outbox.registry.start_run(
        destination="hub", model="m", kinds=(Kind.METRICS, Kind.COMPLETION), remote_id="model-1"
    )
    any_outbox.entries.enqueue(run, Draft(Kind.COMPLETION, "completion", 0, "{}"))
    log(any_outbox, run, 0)
    paces = {**PACES, Kind.COMPLETION: timedelta(0)}

    first = any_outbox.claims.claim("hub", paces, TERMS)
    assert first is not None
    assert first.batch.kind is Kind.METRICS
    assert any_outbox.claims.claim("hub", paces, TERMS) is None
    ack(any_outbox, first)

    last = any_outbox.claims.claim("hub", paces, TERMS)
    assert last is not None
    assert last.batch.kind is Kind.COMPLETION


def test_a_newer_snapshot_supersedes_the_waiting_one_with_its_key(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    ckpt(any_outbox, run, "last", rank=-1)
    ckpt(any_outbox, run, "best", rank=-2)

    ckpt(any_outbox, run, "last", rank=-3)

    assert totals(any_outbox) == {"enqueued": 3, "pending": 2, "superseded": 1}
    assert keys(must_claim(any_outbox)) == ["best"]


def test_a_final_checkpoint_supersedes_all_waiting_ones_and_ignores_the_pace(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    ckpt(any_outbox, run, "last")
    ack(any_outbox, must_claim(any_outbox))
    ckpt(any_outbox, run, "last")
    ckpt(any_outbox, run, "best")
    assert claim(any_outbox) is None

    ckpt(any_outbox, run, "final", final=True)

    assert keys(must_claim(any_outbox)) == ["final"]
    assert totals(any_outbox) == {
        "enqueued": 4,
        "delivered": 1,
        "superseded": 2,
        "pending": 1,
        "in_flight": 1,
    }


def test_a_periodic_checkpoint_in_flight_is_not_retried_after_the_final_one(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    run = new_run(any_outbox)
    ckpt(any_outbox, run, "last")
    lease = must_claim(any_outbox)
    ckpt(any_outbox, run, "final", final=True)

    any_outbox.settlement.retry(lease, at=any_outbox.database.now(), reason="503", started_at=None)
    final = must_claim(any_outbox)
    assert keys(final) == ["final"]
    ack(any_outbox, final)

    clock.advance(10_000)
    assert claim(any_outbox) is None
    assert totals(any_outbox) == {"enqueued": 2, "delivered": 1, "superseded": 1}


def test_a_redrive_makes_dead_entries_pending_again(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    any_outbox.settlement.bury(must_claim(any_outbox), reason="400", started_at=None)
    assert totals(any_outbox) == {"enqueued": 1, "dead": 1}

    back, outdated = any_outbox.entries.redrive()

    assert (back.count, outdated.count) == (1, 0)
    lease = must_claim(any_outbox)
    assert lease.attempts == 1


def test_a_redrive_does_not_overwrite_a_newer_value(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0, value=1.0)
    any_outbox.settlement.bury(must_claim(any_outbox), reason="400", started_at=None)
    log(any_outbox, run, 0, value=2.0)
    log(any_outbox, run, 1)  # the newest entry is never pruned
    clock.advance(10)
    ack(any_outbox, must_claim(any_outbox))
    clock.advance(1_000_000)
    now = any_outbox.database.now()
    any_outbox.entries.prune(settled_before=now, ended_before=now)

    back, outdated = any_outbox.entries.redrive()

    assert (back.count, outdated.count) == (0, 1)
    assert totals(any_outbox) == {"enqueued": 3, "delivered": 2, "superseded": 1}


def test_a_response_to_a_cancelled_entry_is_ignored(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    (entry_id,) = log(any_outbox, run, 0)
    lease = must_claim(any_outbox)

    any_outbox.entries.cancel(ids=[entry_id])
    ack(any_outbox, lease)

    assert totals(any_outbox) == {"enqueued": 1, "cancelled": 1}


def test_ids_are_not_reused_after_a_prune(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    before = log(any_outbox, run, 0, 1)
    ack(any_outbox, must_claim(any_outbox))
    clock.advance(100)
    now = any_outbox.database.now()

    assert any_outbox.entries.prune(settled_before=now, ended_before=now) == 1
    (after,) = log(any_outbox, run, 2)

    assert after > max(before)


def test_a_prune_deletes_only_old_finished_entries_and_keeps_the_counts(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    ack(any_outbox, must_claim(any_outbox))
    clock.advance(100)
    log(any_outbox, run, 1)
    ack(any_outbox, must_claim(any_outbox))
    log(any_outbox, run, 2)

    cut = any_outbox.database.now() - timedelta(seconds=50)
    gone = any_outbox.entries.prune(settled_before=cut, ended_before=cut)

    assert gone == 2
    assert {row["key"] for row in any_outbox.stats.entries()} == {"1", "2"}
    assert totals(any_outbox) == {"enqueued": 3, "delivered": 2, "pending": 1}


def test_a_run_of_the_same_model_continues(any_outbox: Outbox) -> None:
    run = new_run(any_outbox, remote_id="model-7")
    log(any_outbox, run, 0)

    again, continues = any_outbox.registry.start_run(
        destination="hub", model="yolov8n.pt", kinds=[Kind.METRICS], remote_id="model-7"
    )

    assert (again, continues) == (run, True)


def test_the_database_refuses_wrong_sums(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)

    with pytest.raises(Exception, match="accounted"), any_outbox.database.write() as tx:
        tx.execute(text("UPDATE lanes SET pending = pending - 1 WHERE pending > 0"))

    assert totals(any_outbox) == {"enqueued": 1, "pending": 1}


def test_entries_of_an_unknown_kind_wait_and_the_status_shows_why(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    with any_outbox.database.write() as tx:
        tx.execute(
            text("INSERT INTO lanes (run_id, kind, enqueued, pending) VALUES (:run, 'hologram', 1, 1)"),
            {"run": run},
        )

    assert claim(any_outbox) is None

    shown = any_outbox.status()
    lane = next(lane for lane in shown["runs"][0]["lanes"] if lane["kind"] == "hologram")
    assert (lane["pending"], shown["healthy"]) == (1, False)
    assert "hologram" in lane["held"]
    assert any_outbox.stats.owed().held == 1


def test_a_released_batch_keeps_its_position_and_its_key(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 3, 4)
    first = must_claim(any_outbox)
    any_outbox.settlement.release(first, reason="the worker stops", started_at=any_outbox.database.now())
    log(any_outbox, run, 1)
    clock.advance(10)

    again = must_claim(any_outbox)

    assert keys(again) == ["3", "4"]
    assert again.batch.idempotency_key == first.batch.idempotency_key
