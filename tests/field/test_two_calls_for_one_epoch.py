"""Trainings log train and validation metrics of one epoch in two calls: what arrives at the hub has the names of both."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from postgres import Postgres, connect, wait_for_waiting
from sqlalchemy import update
from stage import (
    Bench,
    ack,
    at_revision,
    claim,
    environ_of,
    hubqueue,
    must_claim,
    new_run,
    platform_environ,
    python,
    totals,
    wait_until,
)

import hubqueue as package
from hubqueue.config.home import Home
from hubqueue.domain.drafts import metrics_draft
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.lane import Batch, Lease
from hubqueue.domain.lifecycle import State
from hubqueue.domain.outcome import Delivered, Outcome, Rejected, RetryLater
from hubqueue.integrations.hub_session.session import HUBTrainingSession
from hubqueue.outbox import salvage
from hubqueue.outbox.database.schema import REVISION, entries
from hubqueue.outbox.outbox import Outbox, open_outbox, replace_damaged
from hubqueue.producer.memory.backlog import Backlog
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock


def put(outbox: Outbox, run_id: str, values: Mapping[str, float], epoch: int = 0) -> int:
    return outbox.entries.enqueue(run_id, metrics_draft(json.dumps(values), epoch))[0]


def read(outbox: Outbox, entry_id: int) -> dict[str, float]:
    found: dict[str, float] = json.loads(outbox.stats.payload(entry_id) or "null")
    return found


def states(outbox: Outbox) -> dict[int, str]:
    assert sum(lane["bytes"] for run in outbox.stats.runs() for lane in run["lanes"]) == sum(
        row["size"] for row in outbox.stats.entries(state=State.PENDING)
    )
    totals(outbox)
    return {row["id"]: row["state"] for row in reversed(outbox.stats.entries())}


def bury(outbox: Outbox, lease: Lease) -> None:
    outbox.settlement.bury(lease, reason="refused", started_at=None)


# --- the enqueue, on every database


def test_what_waits_is_replaced_by_the_union(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    put(any_outbox, run, {"train/loss": 1, "lr": 0.1})
    second = put(any_outbox, run, {"val/loss": 2, "lr": 0.2})

    assert states(any_outbox) == {1: "superseded", 2: "pending"}
    assert read(any_outbox, second) == {"train/loss": 1, "val/loss": 2, "lr": 0.2}


def test_what_is_in_flight_or_delivered_is_followed_by_the_union(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    run = new_run(any_outbox)
    put(any_outbox, run, {"a": 1})
    lease = must_claim(any_outbox)
    second = put(any_outbox, run, {"b": 2})
    assert states(any_outbox) == {1: "pending", 2: "pending"}
    ack(any_outbox, lease)
    clock.advance(10)
    ack(any_outbox, must_claim(any_outbox))

    third = put(any_outbox, run, {"c": 3})
    fourth = put(any_outbox, run, {"b": 4})

    assert states(any_outbox) == {1: "delivered", 2: "delivered", 3: "superseded", 4: "pending"}
    assert read(any_outbox, second) == {"a": 1, "b": 2}
    assert read(any_outbox, third) == {"a": 1, "b": 2, "c": 3}
    assert read(any_outbox, fourth) == {"a": 1, "b": 4, "c": 3}


def test_another_epoch_and_another_run_have_their_own_values(any_outbox: Outbox) -> None:
    run, other = new_run(any_outbox), new_run(any_outbox, remote_id="model-2")
    put(any_outbox, run, {"a": 1})

    assert read(any_outbox, put(any_outbox, run, {"b": 2}, epoch=1)) == {"b": 2}
    assert read(any_outbox, put(any_outbox, other, {"b": 2})) == {"b": 2}


def test_a_dead_or_cancelled_value_does_not_come_back(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    put(any_outbox, run, {"a": 1})
    ack(any_outbox, must_claim(any_outbox))
    clock.advance(10)
    put(any_outbox, run, {"poison": 1})
    bury(any_outbox, must_claim(any_outbox))
    clock.advance(10)
    unwanted = put(any_outbox, run, {"mistake": 1})
    any_outbox.entries.cancel(ids=[unwanted])

    assert read(any_outbox, put(any_outbox, run, {"b": 2})) == {"a": 1, "b": 2}


def test_a_damaged_value_is_left_out_and_raises_nothing(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    put(any_outbox, run, {"a": 1})
    ack(any_outbox, must_claim(any_outbox))
    damaged = put(any_outbox, run, {"b": 2})
    with any_outbox.database.write() as tx:
        tx.execute(update(entries).where(entries.c.id == damaged).values(payload='{"b": 3}'))

    assert read(any_outbox, put(any_outbox, run, {"c": 3})) == {"a": 1, "c": 3}


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1e999}', "\\", "[" * 5000])
def test_a_value_of_another_program_raises_nothing(outbox: Outbox, text: str) -> None:
    run = new_run(outbox)
    outbox.entries.enqueue(run, metrics_draft(text, 0))

    assert read(outbox, put(outbox, run, {"b": 2})) == {"b": 2}


def test_lines_of_the_output_and_checkpoints_are_not_merged(outbox: Outbox) -> None:
    run = new_run(outbox)
    for text in ('{"a": 1}', '{"b": 2}'):
        newest, _ = outbox.entries.enqueue(run, Draft(Kind.CKPT, "last", 0, text))

    assert read(outbox, newest) == {"b": 2}


def test_the_union_of_threads_that_log_one_epoch_at_once_is_complete(any_outbox: Outbox) -> None:
    run, begin = new_run(any_outbox), threading.Barrier(4)

    def log(name: str) -> None:
        begin.wait()
        for number in range(5):
            put(any_outbox, run, {f"{name}{number}": number})

    threads = [threading.Thread(target=log, args=(name,)) for name in "abcd"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    (newest,) = (row["id"] for row in any_outbox.stats.entries(state=State.PENDING))
    assert read(any_outbox, newest).keys() == {f"{name}{number}" for name in "abcd" for number in range(5)}
    assert states(any_outbox)[newest] == "pending"


def test_of_two_homes_that_wait_for_one_lane_the_second_has_the_values_of_the_first(
    home: Path, postgres: Postgres
) -> None:
    url = postgres.new_database()
    environ = {"HUBQUEUE_OUTBOX__URL": url}
    with open_outbox(home, environ=environ) as first, open_outbox(home, environ=environ) as second:
        run = new_run(first)
        with connect(url) as holder:
            holder.execute("SELECT id FROM lanes FOR UPDATE")
            twins = [
                threading.Thread(target=put, args=(outbox, run, {name: 1}))
                for outbox, name in ((first, "a"), (second, "b"))
            ]
            for each in twins:
                each.start()
            wait_for_waiting(url, 2)
            holder.rollback()
        for each in twins:
            each.join(60)

        assert read(first, 2) == {"a": 1, "b": 1}


def test_looking_for_earlier_values_costs_the_same_with_a_long_history(outbox: Outbox) -> None:
    """Counted in instructions of SQLite: of an epoch of its own, and of one that was logged before."""
    run = new_run(outbox)
    handle = outbox.database._held(reading=False).connection.driver_connection
    assert handle is not None

    def instructions(epoch: int) -> int:
        counted: list[None] = []
        handle.set_progress_handler(lambda: counted.append(None), 1)
        put(outbox, run, {"loss": 1}, epoch)
        handle.set_progress_handler(None, 1)
        return len(counted)

    def deliver() -> None:
        with outbox.database.write() as tx:
            tx.exec_driver_sql("UPDATE entries SET state = 'delivered', settled_at = enqueued_at, batch = 1")
            tx.exec_driver_sql(
                "UPDATE lanes SET delivered = enqueued, superseded = 0, pending = 0, bytes = 0"
            )

    for epoch in range(10):
        put(outbox, run, {"loss": 1}, epoch)
    deliver()
    new, again = instructions(10), instructions(3)
    for epoch in [*range(20, 1000), *[3] * 1000]:
        put(outbox, run, {"loss": 1}, epoch)
    deliver()

    assert instructions(2000) <= new + 20
    assert instructions(3) <= again + 20


# --- redrive


def test_a_redrive_sends_the_names_that_a_newer_value_lacks(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    dead = put(any_outbox, run, {"train/loss": 1, "lr": 0.1})
    bury(any_outbox, must_claim(any_outbox))
    clock.advance(10)
    put(any_outbox, run, {"val/loss": 2, "lr": 0.2})
    ack(any_outbox, must_claim(any_outbox))

    back, outdated = any_outbox.entries.redrive()

    assert (back.count, outdated.count) == (1, 0)
    assert states(any_outbox) == {dead: "superseded", 2: "delivered", 3: "pending"}
    assert read(any_outbox, 3) == {"train/loss": 1, "val/loss": 2, "lr": 0.2}
    assert "entry 3" in any_outbox.stats.entries(ids=[dead])[0]["reason"]


def test_a_redrive_of_a_value_that_a_newer_one_has_sends_nothing(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    run = new_run(any_outbox)
    put(any_outbox, run, {"lr": 0.1})
    bury(any_outbox, must_claim(any_outbox))
    clock.advance(10)
    put(any_outbox, run, {"val/loss": 2, "lr": 0.2})

    back, outdated = any_outbox.entries.redrive()

    assert (back.count, outdated.count) == (0, 1)
    assert states(any_outbox) == {1: "superseded", 2: "pending"}


def test_dead_values_of_one_epoch_are_redriven_as_one(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    for name in "abc":
        put(any_outbox, run, {name: 1, "last": ord(name)})
        bury(any_outbox, must_claim(any_outbox))
        clock.advance(10)

    back, outdated = any_outbox.entries.redrive(ids=[3])
    assert (back.count, outdated.count) == (1, 0)
    ack(any_outbox, must_claim(any_outbox))
    any_outbox.entries.redrive()

    newest = max(number for number, state in states(any_outbox).items() if state == "pending")
    assert read(any_outbox, newest) == {"a": 1, "b": 1, "c": 1, "last": ord("c")}


def test_a_dead_value_that_is_all_there_is_comes_back_with_its_bytes(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    run = new_run(any_outbox)
    put(any_outbox, run, {"a": 1})
    ack(any_outbox, must_claim(any_outbox))
    clock.advance(10)
    dead = put(any_outbox, run, {"b": 2})
    bury(any_outbox, must_claim(any_outbox))

    any_outbox.entries.redrive()

    assert states(any_outbox) == {1: "delivered", dead: "pending"}
    assert read(any_outbox, dead) == {"a": 1, "b": 2}


def test_a_value_that_is_refused_again_keeps_nothing_of_its_epoch_from_the_hub(
    outbox: Outbox, clock: FakeClock
) -> None:
    def answer(batch: Batch) -> Outcome:
        poison = any("poison" in entry.payload for entry in batch.entries)
        return Rejected("refused") if poison else Delivered()

    run = new_run(outbox)
    put(outbox, run, {"poison": 1})
    with Bench(outbox, answer) as bench:
        bench.step()
        clock.advance(10)
        put(outbox, run, {"good": 1})
        outbox.entries.redrive()
        for _ in range(3):
            bench.step()
            clock.advance(10)

        delivered = [read(outbox, row["id"]) for row in outbox.stats.entries(state=State.DELIVERED)]
        assert delivered == [{"good": 1}]
        assert totals(outbox)["dead"] == 1
        assert read(outbox, put(outbox, run, {"more": 1})) == {"good": 1, "more": 1}


def test_the_union_is_sent_after_the_retry_of_an_older_value(outbox: Outbox, clock: FakeClock) -> None:
    answers: list[Outcome] = [Delivered(), Delivered(), RetryLater("503")]

    def answer(batch: Batch) -> Outcome:
        return answers.pop() if batch.kind is Kind.METRICS else Delivered()

    run = new_run(outbox)
    put(outbox, run, {"a": 1})
    with Bench(outbox, answer) as bench:
        lease = must_claim(outbox)
        put(outbox, run, {"b": 2})
        outbox.settlement.retry(lease, at=outbox.database.now(), reason="503", started_at=None)
        for _ in range(4):
            clock.advance(400)
            bench.step()

        sent = [json.loads(each.payload) for batch in bench.transport.batches for each in batch.entries]
        assert sent == [{"a": 1}, {"a": 1}, {"a": 1, "b": 2}]
        assert bench.transport.batches[0].idempotency_key == lease.batch.idempotency_key
        assert claim(outbox) is None


# --- a training


CALLS = """
import hubqueue, os, sys
run = hubqueue.start_run("yolov8n.pt", worker="none", resume=sys.argv[1] or None, strict=True)
run.log_metrics({sys.argv[2]: float(sys.argv[3])}, epoch=0)
print("RUN", run.id, flush=True)
run.finish(timeout=0) if sys.argv[4] else os._exit(0)  # a run that is resumed was interrupted
"""


def call(environ: Mapping[str, str], run: str, name: str, value: float, *, end: bool = False) -> str:
    out, _ = python(CALLS, environ, run, name, str(value), "end" if end else "").communicate(timeout=120)
    return str(out).split("RUN ")[1].split()[0]


@pytest.mark.usefixtures("migrated_home")
@pytest.mark.parametrize("between", [True, False], ids=["delivered between", "all at once"])
def test_a_hub_has_the_names_of_every_process_of_a_run(hub: Sandbox, home: Path, *, between: bool) -> None:
    environ = environ_of(home, hub.url)
    run = call(environ, "", "train/loss", 1)
    for name, value in (("val/loss", 2), ("lr", 3)):
        if between:
            assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0
        assert call(environ, run, name, value) == run
    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0

    (model,) = hub.models
    assert hub.metrics(model)[0] == {"train/loss": 1, "val/loss": 2, "lr": 3}


@pytest.mark.usefixtures("migrated_home")
def test_platform_has_the_names_of_both_calls(hub: Sandbox, home: Path) -> None:
    environ = platform_environ(home, hub.url)
    run = call(environ, "", "train/loss", 1)
    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0
    call(environ, run, "val/loss", 2)
    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0

    *_, training = hub.runs  # its second process began the run again
    assert hub.run(training).epochs[0]["metrics"] == {"train/loss": 1, "val/loss": 2}


@pytest.mark.usefixtures("migrated_home")
def test_a_shell_that_logs_an_epoch_in_two_commands_loses_no_name(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    for pair in ("a=1", "b=2", "a=3"):
        done = hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "5", pair)
        assert done.returncode == 0, done.stderr
    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0

    (model,) = hub.models
    assert hub.metrics(model)[5] == {"a": 3, "b": 2}


@pytest.mark.usefixtures("migrated_home")
def test_the_queue_of_a_session_keeps_the_names_of_both_writes(
    hub: Sandbox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULTRALYTICS_HUB_API", hub.url)
    monkeypatch.setenv("HUB_API_KEY", "key-of-the-tests")
    session = HUBTrainingSession("yolov8n.pt", home=home, worker="none")
    session.create_model({"epochs": 1})

    session.metrics_queue[0] = '{"train/loss": 1}'
    session.metrics_queue[0] = '{"val/loss": NaN}'

    assert json.loads(session.metrics_queue[0]) == {"train/loss": 1, "val/loss": None}
    session.alive = False


def test_names_that_wait_in_memory_while_the_disk_refuses_are_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    run = package.start_run("yolov8n.pt", worker="none")
    outbox = run.outbox
    assert outbox is not None
    run.log_metrics({"saved": 0}, epoch=0)
    with outbox.database.write() as tx:
        tx.exec_driver_sql(
            "CREATE TRIGGER refusing BEFORE INSERT ON entries BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    assert run.log_metrics({"train/loss": 1}, epoch=0) is None
    assert run.log_metrics({"val/loss": 2}, epoch=0) is None
    with outbox.database.write() as tx:
        tx.exec_driver_sql("DROP TRIGGER refusing")

    newest = run.log_metrics({"lr": 3}, epoch=0)

    assert newest is not None
    assert read(outbox, newest) == {"saved": 0, "train/loss": 1, "val/loss": 2, "lr": 3}
    assert run.finish(timeout=0).unsaved == 0


def test_a_call_whose_confirmation_was_lost_is_found_in_the_union(outbox: Outbox) -> None:
    run, draft = new_run(outbox), metrics_draft('{"b": 2}', 0)
    put(outbox, run, {"a": 1})
    saved, _ = outbox.entries.enqueue(run, draft)

    assert outbox.stats.saved(run, draft, after=0) == saved
    assert outbox.stats.saved(run, metrics_draft('{"b": 3}', 0), after=0) is None


def test_drafts_of_one_epoch_are_one_in_memory() -> None:
    removed: list[bool] = []
    backlog = Backlog(lambda _draft, _unsure, replaced: removed.append(replaced))
    for text in ('{"a": 1}', '{"b": 2}', '{"a": 3}'):
        backlog.put(metrics_draft(text, 7))
    saved: list[str] = []

    backlog.save(lambda draft, _unsure: saved.append(draft.payload) or 1)  # type: ignore[func-returns-value]

    assert [json.loads(text) for text in saved] == [{"a": 3, "b": 2}]
    assert removed == [True, True]


# --- damage, and an upgrade


def damaged(home: Path) -> None:
    """Make an outbox that SQLite cannot read, though the leaves of its tables are intact."""
    connection = sqlite3.connect(home / "outbox.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray((home / "outbox.db").read_bytes())
    for start in range(4096, len(data), 4096):
        if data[start] != 0x0D:
            data[start : start + 4096] = bytes(4096)
    (home / "outbox.db").write_bytes(data)


@pytest.mark.parametrize("first", ["dead", "delivered", "in flight", "waiting"])
def test_what_is_saved_from_a_damaged_outbox_has_all_names(home: Path, clock: FakeClock, first: str) -> None:
    with open_outbox(home, environ={}, clock=clock) as outbox:
        run = new_run(outbox)
        put(outbox, run, {"a": 1, "b": 1})
        lease = None if first == "waiting" else must_claim(outbox)
        if lease and first != "in flight":
            bury(outbox, lease) if first == "dead" else ack(outbox, lease)
        put(outbox, run, {"b": 2})
        config, located = outbox.config, outbox.home
    damaged(home)
    replace_damaged(located, config)

    with open_outbox(home, environ={}, clock=clock) as outbox:
        salvage.salvage(outbox)
        waiting = list(outbox.stats.texts(run, Kind.METRICS, failed=False))

    assert [(key, json.loads(text)) for _, key, text in waiting] == [("0", {"a": 1, "b": 2})]


def test_what_a_hub_has_already_is_not_owed_after_damage(home: Path, clock: FakeClock) -> None:
    with open_outbox(home, environ={}, clock=clock) as outbox:
        run = new_run(outbox)
        put(outbox, run, {"a": 1})
        bury(outbox, must_claim(outbox))
        clock.advance(10)
        put(outbox, run, {"a": 2, "b": 2})
        put(outbox, run, {"other": 2}, epoch=1)
        ack(outbox, must_claim(outbox))
        put(outbox, run, {"waits": 2}, epoch=2)
        config, located = outbox.config, outbox.home
    damaged(home)
    replace_damaged(located, config)

    with open_outbox(home, environ={}, clock=clock) as outbox:
        salvage.salvage(outbox)
        assert [key for _, key, _ in outbox.stats.texts(run, Kind.METRICS, failed=False)] == ["2"]


def test_values_that_an_older_hubqueue_has_delivered_are_found_after_the_upgrade(
    home: Path, clock: FakeClock
) -> None:
    Home.locate(home, {}).create()
    at_revision(
        f"sqlite:///{home / 'outbox.db'}",
        "0006",
        "INSERT INTO destinations (name, label, type, url) VALUES ('hub', 'hub', 'hub', 'https://x.test')",
        "INSERT INTO runs (id, destination, model, remote_id, state, created_at) VALUES"
        " ('0bf51cd3352d', 'hub', 'm', 'm', 'running', 1)",
        "INSERT INTO lanes (id, run_id, kind, enqueued, delivered) VALUES (1, '0bf51cd3352d', 'metrics', 1, 1)",
        "INSERT INTO entries (id, lane_id, key, rank, state, payload, size, final, enqueued_at, settled_at)"
        " VALUES (1, 1, '0', 0, 'delivered', '{\"a\": 1}', 8, 0, 1, 1)",
    )
    with open_outbox(home, environ={}, clock=clock) as outbox:
        assert outbox.database.describe()["revision"] == REVISION
        assert read(outbox, put(outbox, "0bf51cd3352d", {"b": 2})) == {"a": 1, "b": 2}


@pytest.mark.usefixtures("migrated_home")
def test_a_union_that_follows_a_live_worker_arrives(hub: Sandbox, home: Path) -> None:
    """A training that logs twice while its own worker sends: whatever was in flight, the hub ends with both names."""
    code = """
import hubqueue
run = hubqueue.start_run("yolov8n.pt", worker="thread", strict=True)
for epoch in range(20):
    run.log_metrics({"train/loss": epoch}, epoch=epoch)
    run.log_metrics({"val/loss": epoch}, epoch=epoch)
print("LEFT", run.finish(timeout=100).entries)
"""
    out, _ = python(code, environ_of(home, hub.url, HUBQUEUE_RATE_LIMITS__METRICS="0")).communicate(
        timeout=200
    )
    assert "LEFT 0" in out, out
    wait_until(lambda: hub.models)

    (model,) = hub.models
    assert hub.metrics(model) == {epoch: {"train/loss": epoch, "val/loss": epoch} for epoch in range(20)}
