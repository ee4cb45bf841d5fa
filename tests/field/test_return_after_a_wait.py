"""A hub that asks to wait (429) gets its requests back one after another, not all of them in one instant."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path

from stage import Bench, log, must_claim, new_run

from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Delivered, Outcome, RetryLater, Scope
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.testing import FakeClock

RUNS, ASKED = 20, 60


def trainings(outbox: Outbox) -> list[str]:
    return [new_run(outbox, remote_id=f"model-{number}") for number in range(RUNS)]


def ask_to_wait(bench: Bench, seconds: float = ASKED) -> None:
    """Send one request, whose response makes all lanes wait."""
    outcome = RetryLater("429", timedelta(seconds=seconds), Scope.DESTINATION)
    before, bench.transport._answer = bench.transport._answer, lambda _batch: outcome
    bench.worker._delivery.attempt(must_claim(bench.outbox, Kind.METRICS), bench.worker._abort)
    bench.transport._answer = before


def returns(outbox: Outbox) -> dict[str, str]:
    """When each run may send metrics, as the status shows it."""
    return {
        run["id"]: lane["next_send_at"]
        for run in outbox.status()["runs"]
        for lane in run["lanes"]
        if lane["kind"] == Kind.METRICS
    }


def each_second(bench: Bench, clock: FakeClock, seconds: int) -> list[int]:
    """How many runs sent their first metrics in each of these seconds."""
    counts, seen = [], set[str]()
    for _ in range(seconds):
        begin = len(bench.transport.batches)
        while bench.step():
            pass
        those = {each.run.id for each in bench.transport.batches[begin:] if each.kind is Kind.METRICS}
        counts.append(len(those - seen))
        seen |= those
        clock.advance(1)
    return counts


def test_twenty_trainings_do_not_return_in_one_instant_after_a_wait_that_the_hub_asked_for(
    outbox: Outbox, clock: FakeClock
) -> None:
    runs = trainings(outbox)
    for run in runs[: RUNS // 2]:
        log(outbox, run, 0)
    with Bench(outbox) as bench:
        ask_to_wait(bench)
        for run in runs[RUNS // 2 :]:  # nothing of these has waited before
            log(outbox, run, 0)
        counts = each_second(bench, clock, 2 * ASKED + 5)

    assert sum(counts[:ASKED]) == 0
    assert max(counts[ASKED:]) <= 3
    assert sum(counts[ASKED:]) == RUNS


def test_a_restart_in_such_a_wait_does_not_bring_all_trainings_back_together(
    home: Path, clock: FakeClock
) -> None:
    with open_outbox(home, environ={}, clock=clock) as outbox:
        for run in trainings(outbox):
            log(outbox, run, 0)
        with Bench(outbox) as bench:
            ask_to_wait(bench)
            before = returns(outbox)
    with open_outbox(home, environ={}, clock=clock) as outbox, Bench(outbox) as bench:
        after = returns(outbox)
        clock.advance(ASKED)
        counts = each_second(bench, clock, ASKED + 5)

    assert after == before
    assert max(Counter(moment[:19] for moment in after.values()).values()) <= 3
    assert max(counts) <= 3
    assert sum(counts) == RUNS


def test_a_short_wait_after_a_long_one_does_not_bring_the_rest_back_together(
    outbox: Outbox, clock: FakeClock
) -> None:
    for run in trainings(outbox):
        log(outbox, run, 0)
    with Bench(outbox) as bench:
        ask_to_wait(bench)
        clock.advance(ASKED + 10)
        ask_to_wait(bench, seconds=1)
        counts = each_second(bench, clock, ASKED + 5)

    assert max(counts[1:]) <= 4


def test_two_waits_do_not_bring_the_same_training_back_last_each_time(
    outbox: Outbox, clock: FakeClock
) -> None:
    runs = trainings(outbox)
    with Bench(outbox) as bench:
        lasts = set()
        for epoch in range(8):
            for run in runs:
                log(outbox, run, epoch)
            ask_to_wait(bench)
            moments = returns(outbox)
            lasts.add(max(moments, key=lambda run: moments[run]))
            clock.advance(2 * ASKED + 5)
            while bench.step():
                clock.advance(3)

    assert len(lasts) > 1


def test_the_heartbeats_of_all_runs_start_when_the_wait_is_over(outbox: Outbox, clock: FakeClock) -> None:
    for run in trainings(outbox):
        log(outbox, run, 0)

    def respond(_batch: Batch) -> Outcome:
        return Delivered()

    with Bench(outbox, respond) as bench:
        ask_to_wait(bench)
        clock.advance(ASKED + 1)
        while bench.step():
            pass

    beats = {each.run.id for each in bench.transport.batches if each.kind is Kind.HEARTBEAT}
    assert len(beats) == RUNS
