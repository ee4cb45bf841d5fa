"""What a destination must remember of a run, and the rows of its budgets, on every database."""

from __future__ import annotations

import json
import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from postgres import Postgres, connect, wait_for_waiting
from sqlalchemy import select
from stage import TERMS, Bench, ckpt, claim, log, must_claim, new_run, totals

from hubqueue.config.registry import declaration
from hubqueue.domain.budget import Allowance, Budget
from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Lease
from hubqueue.domain.outcome import MOST_REMEMBERED, Delivered, Remote, Scope
from hubqueue.outbox import salvage
from hubqueue.outbox.database.schema import EPOCH, budgets
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.testing import FakeClock

FEW = replace(TERMS, budget=Budget(requests=100, uploads=10, per_claim=declaration("platform").costs))


def settle(outbox: Outbox, lease: Lease, **remember: str | int | None) -> None:
    outbox.settlement.ack(lease, started_at=None, remote=Remote(remember=remember))


def known(outbox: Outbox, run: str, clock: FakeClock) -> dict[str, str | int]:
    """What the next batch of a run has."""
    clock.advance(1000)
    log(outbox, run, int(clock.elapsed()))
    lease = must_claim(outbox, Kind.METRICS)
    outbox.settlement.release(lease, reason="only a question", started_at=None)
    return dict(lease.batch.run.remembered)


def test_lanes_that_are_under_way_together_keep_each_others_names(
    any_outbox: Outbox, clock: FakeClock
) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    ckpt(any_outbox, run, "last")
    metrics, upload = must_claim(any_outbox, Kind.METRICS), must_claim(any_outbox, Kind.CKPT)

    settle(any_outbox, metrics, run="7", step=3)
    settle(any_outbox, upload, file="gs://a")

    assert known(any_outbox, run, clock) == {"run": "7", "step": 3, "file": "gs://a"}


def test_two_settles_at_the_same_moment_keep_each_others_names(
    home: Path, postgres: Postgres, clock: FakeClock
) -> None:
    environ = {"HUBQUEUE_OUTBOX__URL": postgres.new_database()}
    with open_outbox(home, environ=environ, clock=clock) as outbox, ThreadPoolExecutor() as pool:
        run = new_run(outbox)
        log(outbox, run, 0)
        ckpt(outbox, run, "last")
        metrics, upload = must_claim(outbox, Kind.METRICS), must_claim(outbox, Kind.CKPT)

        with outbox.database.write() as tx:
            outbox.settlement.ack(
                metrics, started_at=None, remote=Remote(remember={"run": "7", "more": 1}), within=tx
            )
            other = pool.submit(settle, outbox, upload, file="gs://a")
            wait_for_waiting(environ["HUBQUEUE_OUTBOX__URL"], 1)
        other.result(60)

        assert known(outbox, run, clock) == {"run": "7", "more": 1, "file": "gs://a"}


def test_a_name_that_is_not_mentioned_stays(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    for remember in ({"agent_id": "a", "n": 1}, {}, {"agent_id": None, "n": 2}, {"other": "'\"\\é"}):
        clock.advance(1000)
        log(any_outbox, run, int(clock.elapsed()))
        settle(any_outbox, must_claim(any_outbox, Kind.METRICS), **remember)

    assert known(any_outbox, run, clock) == {"agent_id": "a", "n": 2, "other": "'\"\\é"}


def test_what_has_no_room_is_left_out_and_said(
    any_outbox: Outbox, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    run, long = new_run(any_outbox), "x" * (MOST_REMEMBERED // 3)
    for name in "abcd":
        clock.advance(1000)
        log(any_outbox, run, int(clock.elapsed()))
        with caplog.at_level(logging.WARNING, "hubqueue"):
            settle(any_outbox, must_claim(any_outbox, Kind.METRICS), **{name: long})

    assert known(any_outbox, run, clock).keys() == {"a", "b"}
    assert [record.args and record.args[0] for record in caplog.records] == [run, run]
    assert totals(any_outbox)["delivered"] == 4


@pytest.mark.parametrize("value", ["x" * MOST_REMEMBERED, "two\nlines", "\0", 1.5, ["a"], {"a": 1}])
def test_only_a_little_plain_content_can_be_remembered(value: object) -> None:
    with pytest.raises(ValueError, match="cannot remember"):
        Remote(remember={"name": value})  # type: ignore[dict-item]


def test_nobody_changes_what_is_remembered() -> None:
    given = {"name": "value"}
    remote = Remote(remember=given)
    given["name"] = "other"

    assert remote.remember == {"name": "value"}
    with pytest.raises(TypeError):
        remote.remember["name"] = "other"  # type: ignore[index]


@pytest.mark.parametrize("damage", ["'{\"run\": '", "'[]'", "x'7b7d'", "17", "''"])
def test_a_run_whose_memory_is_damaged_waits_for_a_person_and_no_other_does(
    home: Path, clock: FakeClock, damage: str
) -> None:
    with open_outbox(home, environ={}, clock=clock) as outbox, Bench(outbox) as bench:
        bad, good = new_run(outbox, remote_id="bad"), new_run(outbox, remote_id="good")
        log(outbox, bad, 0)
        log(outbox, good, 0)
        with outbox.database.write() as tx:
            tx.exec_driver_sql(f"UPDATE runs SET remembered = {damage} WHERE id = '{bad}'")

        bench.step()

        assert [batch.run.id for batch in bench.transport.batches if batch.kind is Kind.METRICS] == [good]
        held = {run["id"]: run["held"] for run in outbox.status()["runs"]}
        assert held == {
            bad: "what hub needs to know of the run was damaged in the outbox",
            good: None,
        }
        assert outbox.database.integrity() == "ok"

        assert outbox.registry.resume("hub").runs == 1
        clock.advance(10)
        bench.step()
        assert totals(outbox) == {"enqueued": 2, "delivered": 2}


def test_a_settle_replaces_damage(any_outbox: Outbox, clock: FakeClock) -> None:
    if any_outbox.database.backend != "sqlite":
        pytest.skip("PostgreSQL finds its damage itself")
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    lease = must_claim(any_outbox)
    with any_outbox.database.write() as tx:
        tx.exec_driver_sql("UPDATE runs SET remembered = '{\"a'")

    settle(any_outbox, lease, agent_id="agent-1")

    assert known(any_outbox, run, clock) == {"agent_id": "agent-1"}


def test_what_is_remembered_comes_over_from_a_damaged_outbox(home: Path, clock: FakeClock) -> None:
    with open_outbox(home, environ={}, clock=clock) as outbox:
        run = new_run(outbox)
        log(outbox, run, 0)
        settle(outbox, must_claim(outbox), run="7", step=3)
        log(outbox, run, 1)
    with sqlite3.connect(home / "outbox.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    (home / "outbox.db").rename(home / "outbox.db.damaged-20260101T000000")

    with open_outbox(home, environ={}, clock=clock) as outbox:
        (saved,) = salvage.salvage(outbox)
        assert (saved.runs, saved.entries, saved.lost) == (1, 1, [])
        assert must_claim(outbox).batch.run.remembered == {"run": "7", "step": 3}


def test_the_index_of_the_budgets_is_not_taken_for_that_of_the_runs(home: Path, clock: FakeClock) -> None:
    with open_outbox(home, environ={}, clock=clock) as outbox:
        run = new_run(outbox)
        log(outbox, run, 0)
        must_claim(outbox, terms=FEW)
    with sqlite3.connect(home / "outbox.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()

    assert salvage._read(home / "outbox.db").model_hints == {1: ("hub", "model-1")}


# --- the budgets


def spent(outbox: Outbox) -> dict[str, timedelta]:
    """From when on each limit has room, from now on."""
    with outbox.database.read() as connection:
        rows = connection.execute(select(budgets.c.name, budgets.c.free_at))
        return {name: free_at - outbox.database.now() for name, free_at in rows}


def test_a_claim_takes_from_each_limit_what_its_kind_costs(any_outbox: Outbox, clock: FakeClock) -> None:
    requests, uploads = Allowance(100), Allowance(10)
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    ckpt(any_outbox, run, "last")

    must_claim(any_outbox, Kind.METRICS, terms=FEW)
    assert spent(any_outbox) == {"requests": requests.interval - requests.saved}
    must_claim(any_outbox, Kind.CKPT, terms=FEW)

    now = spent(any_outbox)
    assert now["uploads"] == pytest.approx(uploads.interval - uploads.saved, abs=timedelta(microseconds=2))
    assert now["requests"] == pytest.approx(
        3 * requests.interval - requests.saved, abs=timedelta(microseconds=2)
    )


def test_a_lane_waits_for_the_limits_that_its_kind_costs(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    ckpt(any_outbox, run, "last")
    later = any_outbox.database.now() + timedelta(seconds=90)
    with any_outbox.database.write() as tx:
        tx.execute(
            budgets.insert(),
            [
                {"destination": "hub", "name": "uploads", "free_at": later},
                {"destination": "another", "name": "requests", "free_at": later},
            ],
        )

    def due(kind: Kind) -> object:
        return any_outbox.stats.next_due("hub", [kind])

    (shown,) = any_outbox.stats.runs()
    sending = {lane["kind"]: lane["next_send_at"] for lane in shown["lanes"]}
    assert (due(Kind.METRICS), due(Kind.CKPT), due(Kind.HEARTBEAT)) == (EPOCH, later, EPOCH)
    assert (sending["metrics"], sending["ckpt"], sending["heartbeat"]) == (EPOCH, later, EPOCH)
    assert claim(any_outbox, Kind.CKPT, terms=FEW) is None
    assert claim(any_outbox, Kind.METRICS, terms=FEW) is not None
    clock.advance(90)
    assert claim(any_outbox, Kind.CKPT, terms=FEW) is not None


def test_a_claim_that_another_one_overtakes_takes_of_no_limit(
    home: Path, postgres: Postgres, clock: FakeClock
) -> None:
    url = postgres.new_database()
    with (
        open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}, clock=clock) as outbox,
        ThreadPoolExecutor() as pool,
    ):
        run = new_run(outbox)
        ckpt(outbox, run, "last")
        with outbox.database.write() as tx:
            rows = [
                {"destination": "hub", "name": name, "free_at": EPOCH} for name in ("requests", "uploads")
            ]
            tx.execute(budgets.insert(), rows)

        with connect(url) as other:
            other.execute("UPDATE budgets SET free_at = 4000000000000000 WHERE name = 'uploads'")
            claiming = pool.submit(claim, outbox, Kind.CKPT, terms=FEW)
            wait_for_waiting(url, 1)
            other.commit()

        assert claiming.result(60) is None
        # As before, less what cannot be saved up anyway.
        unused = spent(outbox)["requests"] + Allowance(100).saved
        assert unused == pytest.approx(timedelta(0), abs=timedelta(microseconds=2))
        log(outbox, run, 0)
        assert must_claim(outbox, Kind.METRICS, terms=FEW).token == 1


def test_a_held_run_keeps_what_it_remembers_when_it_is_resumed(any_outbox: Outbox, clock: FakeClock) -> None:
    run = new_run(any_outbox)
    log(any_outbox, run, 0)
    settle(any_outbox, must_claim(any_outbox), agent_id="agent-1", n=7)
    clock.advance(10)
    log(any_outbox, run, 1)
    any_outbox.settlement.release(must_claim(any_outbox), reason="404", started_at=None, hold=Scope.RUN)

    assert any_outbox.registry.resume("hub").runs == 1

    assert known(any_outbox, run, clock) == {"agent_id": "agent-1", "n": 7}


def test_an_outcome_can_be_compared_and_hashed() -> None:
    assert Delivered(Remote(remember={"a": "b"})) == Delivered(Remote(remember={"a": "b", "c": None}))
    assert hash(Delivered(Remote(remember={"a": "b"})))
    assert json.dumps(dict(Remote(remember={"a": 1}).remember)) == '{"a": 1}'
