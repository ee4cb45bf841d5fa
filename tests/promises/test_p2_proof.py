"""P2: an entry becomes delivered only on a validated response.

Any response but a complete, parseable success leaves the entry pending (or dead, where it was refused for good).
The sandbox injects faults over real sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import PATIENCE, environ_of, log, new_run, totals

from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock
from hubqueue.worker.worker import Worker

pytestmark = pytest.mark.usefixtures("migrated_home")

INVALID = [
    "cut-head",
    "cut-body",
    "reset",
    "close",
    "html",
    "empty",
    "gzip",
    "redirect",
    "302",
    "204",
    "lost-ack",
]
REFUSALS = {"400": "dead", "413": "dead", "422": "dead"}
LATER = ["408", "425", "429", "500", "502", "503", "504"]


@pytest.fixture
def registered(hub: Sandbox, home: Path, clock: FakeClock) -> Iterator[tuple[Outbox, Worker]]:
    """A run that the sandbox knows, and a worker to step."""
    environ = environ_of(home, hub.url, HUBQUEUE_DESTINATIONS__HUB__ANSWER_TIMEOUT="2")
    with open_outbox(home, environ=environ, clock=clock) as outbox:
        from hubqueue.destinations.hub.registration import registration_draft

        run = new_run(outbox, remote_id=None)
        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
        worker = Worker(outbox, emit=lambda _fact: None)
        worker.start()
        _step(worker)
        assert totals(outbox) == {"enqueued": 1, "delivered": 1}
        clock.advance(10)
        _step(worker)  # the heartbeat
        log(outbox, run, 0)
        yield outbox, worker
        worker.stop()


def _step(worker: Worker) -> None:
    worker.step()
    assert worker.wait_free(PATIENCE)


@pytest.mark.parametrize("fault", INVALID)
def test_an_invalid_response_is_no_delivery(
    registered: tuple[Outbox, Worker], hub: Sandbox, clock: FakeClock, fault: str
) -> None:
    outbox, worker = registered
    hub.fail(f"metrics:{fault}:times=1")

    _step(worker)
    assert totals(outbox) == {"enqueued": 2, "delivered": 1, "pending": 1, "retrying": 1}
    assert outbox.stats.runs()[0]["lanes"][1]["last_error"]

    clock.advance(400)
    _step(worker)
    assert totals(outbox) == {"enqueued": 2, "delivered": 2}
    assert hub.metrics(hub.models[0]) == {0: {"loss": 1.0}}


@pytest.mark.parametrize("status", LATER)
def test_a_hub_error_is_retried(registered: tuple[Outbox, Worker], hub: Sandbox, status: str) -> None:
    outbox, worker = registered
    hub.fail(f"metrics:{status}:times=1")

    _step(worker)

    assert totals(outbox)["retrying"] == 1


@pytest.mark.parametrize(("status", "state"), REFUSALS.items())
def test_a_refused_entry_is_dead_with_its_reason(
    registered: tuple[Outbox, Worker], hub: Sandbox, status: str, state: str
) -> None:
    outbox, worker = registered
    hub.fail(f"metrics:{status}:times=1")

    _step(worker)

    (row,) = (row for row in outbox.stats.entries() if row["kind"] == "metrics")
    assert row["state"] == state
    assert status in row["reason"]


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_refused_key_holds_the_destination_and_keeps_everything(
    registered: tuple[Outbox, Worker], hub: Sandbox, clock: FakeClock, status: str
) -> None:
    outbox, worker = registered
    hub.fail(f"metrics:{status}:times=1")

    _step(worker)
    clock.advance(40)
    _step(worker)

    shown = outbox.status()
    assert status in shown["destinations"][0]["held"]
    assert (shown["totals"]["pending"], shown["totals"]["dead"], shown["healthy"]) == (1, 0, False)
    outbox.registry.resume("hub")
    _step(worker)
    assert totals(outbox) == {"enqueued": 2, "delivered": 2}


@pytest.mark.parametrize("status", ["404", "410"])
def test_an_unknown_model_holds_only_its_run(
    registered: tuple[Outbox, Worker], hub: Sandbox, status: str
) -> None:
    outbox, worker = registered
    hub.fail(f"metrics:{status}:times=1")

    _step(worker)

    shown = outbox.status()
    assert shown["destinations"][0]["held"] is None
    assert status in shown["runs"][0]["held"]
    assert shown["totals"]["pending"] == 1


def test_an_attempt_at_a_silent_hub_ends_after_the_answer_timeout(
    registered: tuple[Outbox, Worker], hub: Sandbox
) -> None:
    outbox, worker = registered
    hub.fail("metrics:silence:seconds=60")

    _step(worker)

    assert "no complete response" in outbox.stats.runs()[0]["lanes"][1]["last_error"]
    assert totals(outbox)["retrying"] == 1


@pytest.mark.parametrize("fault", ["null", "html", "cut-body"])
def test_a_registration_without_an_id_is_retried(
    hub: Sandbox, home: Path, clock: FakeClock, fault: str
) -> None:
    from hubqueue.destinations.hub.registration import registration_draft

    with open_outbox(home, environ=environ_of(home, hub.url), clock=clock) as outbox:
        run = new_run(outbox, remote_id=None)
        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
        hub.fail(f"registration:{fault}:times=1")
        worker = Worker(outbox, emit=lambda _fact: None)
        worker.start()

        _step(worker)
        assert totals(outbox) == {"enqueued": 1, "pending": 1, "retrying": 1}
        clock.advance(400)
        _step(worker)
        worker.stop()

        assert totals(outbox) == {"enqueued": 1, "delivered": 1}
        assert outbox.stats.runs()[0]["remote_id"] in hub.models
