"""P4: a poisoned entry never blocks its neighbours, an upload never delays a metric or a heartbeat, and one run's
trouble never slows another's."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest
from stage import PATIENCE, Bench, ckpt, environ_of, log, new_run, totals

from hubqueue.destinations.base import Attempt
from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Delivered, Outcome, Rejected, RetryLater, Scope
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock, MemoryTransport
from hubqueue.worker.events import Fact
from hubqueue.worker.worker import Worker

pytestmark = pytest.mark.usefixtures("migrated_home")


def test_a_poisoned_epoch_is_buried_alone(outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(outbox)
    log(outbox, run, *range(40))

    def respond(batch: Batch) -> Outcome:
        poisoned = any(entry.key == "13" for entry in batch.entries)
        return Rejected("400 Bad Request: epoch 13") if poisoned else Delivered()

    with Bench(outbox, respond) as bench:
        while outbox.stats.owed().entries:
            bench.step()
            clock.advance(3)

    assert totals(outbox) == {"enqueued": 41 - 1, "delivered": 39, "dead": 1}


def test_the_failures_of_one_lane_do_not_delay_the_others(outbox: Outbox, clock: FakeClock) -> None:
    troubled, other = new_run(outbox), new_run(outbox, remote_id="other")
    outcomes: list[Outcome] = [
        *[RetryLater("503") for _ in range(30)],
        RetryLater("429", timedelta(seconds=5), Scope.DESTINATION),
    ]
    log(outbox, troubled, 0)

    with Bench(outbox, lambda batch: outcomes.pop(0) if outcomes else Delivered()) as bench:
        while outcomes:
            clock.advance(300)
            bench.worker._pools = tuple(pool for pool in bench.worker._pools if Kind.METRICS in pool.paces)
            bench.step()
        log(outbox, other, 0)
        clock.advance(12)  # the wait that the hub requested, and as long again, in which all lanes return

        assert bench.step() == 1
        assert bench.transport.batches[-1].run.id == other


def test_an_epoch_that_crashes_the_hub_does_not_block_its_lane(outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(outbox)
    log(outbox, run, *range(8))

    def respond(batch: Batch) -> Outcome:
        poisoned = any(entry.key == "5" for entry in batch.entries)
        return RetryLater("500 Internal Server Error", suspect=True) if poisoned else Delivered()

    with Bench(outbox, respond) as bench:
        for epoch in range(8, 40):
            log(outbox, run, epoch)
            bench.step()
            clock.advance(310)

    counted = totals(outbox)
    assert counted["delivered"] == 39
    assert (counted["pending"], counted["retrying"]) == (1, 1)


def test_an_upload_delays_neither_metrics_nor_heartbeats(outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(outbox)
    ckpt(outbox, run, "last")
    release = threading.Event()

    class Slow(MemoryTransport):
        def send(self, batch: Batch, attempt: Attempt) -> Outcome:
            if batch.kind is Kind.CKPT:
                release.wait(60)
            return super().send(batch, attempt)

    bench = Bench(outbox)
    bench.transport = Slow()
    bench.worker = Worker(outbox, emit=bench.facts.append, dial=bench.transport.dial)
    with bench:
        bench.worker.step()
        for epoch in range(5):
            log(outbox, run, epoch)
            bench.worker.step()
            _settled(outbox, epoch + 1)
            clock.advance(3)
        kinds = [batch.kind for batch in bench.transport.batches]
        release.set()

    assert kinds.count(Kind.METRICS) == 5
    assert Kind.HEARTBEAT in kinds
    assert Kind.CKPT not in kinds


def test_a_run_whose_hub_is_silent_does_not_slow_another(
    hub: Sandbox, home: Path, clock: FakeClock, tmp_path: Path
) -> None:
    with Sandbox(tmp_path / "second") as second:
        environ = environ_of(
            home,
            hub.url,
            HUBQUEUE_DESTINATIONS__SECOND__TYPE="hub",
            HUBQUEUE_DESTINATIONS__SECOND__URL=second.url,
            HUBQUEUE_KEY_SECOND="key-of-the-tests",
        )
        hub.fail("any:silence:seconds=60")
        facts: list[Fact] = []
        with open_outbox(home, environ=environ, clock=clock) as outbox:
            from hubqueue.destinations.hub.registration import registration_draft

            outbox.note_destinations()
            for destination in ("hub", "second"):
                run, _ = outbox.registry.start_run(
                    destination=destination, model="m.pt", kinds=(Kind.REGISTRATION, Kind.METRICS)
                )
                outbox.entries.enqueue(run, registration_draft("m.pt", {}))
                log(outbox, run, 0)
            worker = Worker(outbox, emit=facts.append)
            worker.start()
            worker.step()
            assert second.wait_until(lambda: bool(second.models))
            _settled(outbox, 1)
            clock.advance(3)
            worker.step()
            assert second.wait_until(lambda: bool(second.metrics(second.models[0])))
            hub.stop()
            worker.stop()


@pytest.mark.parametrize("runs", [12])
def test_a_slow_run_takes_one_thread_and_no_more(outbox: Outbox, clock: FakeClock, runs: int) -> None:
    release = threading.Event()
    slow = new_run(outbox, remote_id="slow")
    log(outbox, slow, 0)

    class Slow(MemoryTransport):
        def send(self, batch: Batch, attempt: Attempt) -> Outcome:
            if batch.run.id == slow:
                release.wait(60)
            return super().send(batch, attempt)

    transport = Slow()
    worker = Worker(outbox, emit=lambda _fact: None, dial=transport.dial)
    worker.start()
    worker.step()
    others = [new_run(outbox, remote_id=f"run-{n}") for n in range(runs)]
    for run in others:
        log(outbox, run, 0)
    while outbox.stats.totals()["delivered"] < runs:
        worker.step()
    release.set()
    assert worker.wait_free(PATIENCE)
    worker.stop()

    assert totals(outbox) == {"enqueued": runs + 1, "delivered": runs + 1}


def _settled(outbox: Outbox, delivered: int) -> None:
    from stage import wait_until

    wait_until(lambda: outbox.stats.totals()["delivered"] >= delivered)
