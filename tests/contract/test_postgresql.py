"""PostgreSQL only: a writer that waits for a row, deadlocks, and several homes on one database."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from postgres import Postgres, connect, wait_for_waiting
from sqlalchemy.engine import make_url
from stage import at_revision, log, must_claim, new_run, totals

from hubqueue.domain.errors import OutboxUnavailable
from hubqueue.outbox.outbox import Outbox, open_outbox


def test_of_two_concurrent_enqueues_of_one_key_one_stays_pending(home: Path, postgres: Postgres) -> None:
    url = postgres.new_database()
    with (
        open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}) as first,
        open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}) as second,
    ):
        run = new_run(first)

        def again(outbox: Outbox) -> threading.Thread:
            thread = threading.Thread(target=log, args=(outbox, run, 7))
            thread.start()
            return thread

        with connect(url) as holder:
            holder.execute("SELECT id FROM lanes FOR UPDATE")
            twins = [again(first), again(second)]
            wait_for_waiting(url, 2)
            holder.rollback()
        for each in twins:
            each.join(60)

        # The second one had read before the first one committed.
        assert {name: count for name, count in totals(first).items() if count} == {
            "enqueued": 2,
            "pending": 1,
            "superseded": 1,
        }


def test_a_lock_timeout_is_raised_as_an_outbox_error(home: Path, postgres: Postgres) -> None:
    url = postgres.new_database()
    with open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}) as outbox:
        run = new_run(outbox)
        with connect(url) as operator:
            operator.execute(f"ALTER DATABASE {make_url(url).database} SET lock_timeout = '100ms'")
        outbox.close()  # the next connection has the setting

        with connect(url) as holder:
            holder.execute("LOCK TABLE lanes")
            with pytest.raises(OutboxUnavailable, match="lock timeout"):
                log(outbox, run, 0)
            holder.rollback()

        log(outbox, run, 0)
        assert totals(outbox)["pending"] == 1


@pytest.mark.parametrize("move", ["redrive", "cancel", "resume"])
def test_a_move_of_an_operator_waits_for_a_lane_without_holding_locks(
    home: Path, postgres: Postgres, move: str
) -> None:
    url = postgres.new_database()
    with (
        open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}) as outbox,
        open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}) as operators,
    ):
        run = new_run(outbox)
        log(outbox, run, 0)
        outbox.settlement.bury(must_claim(outbox), reason="refused", started_at=None)
        log(outbox, run, 1)
        moves = {
            "redrive": operators.entries.redrive,
            "cancel": lambda: operators.entries.cancel(run_id=run),
            "resume": lambda: operators.registry.resume("hub"),
        }
        with ThreadPoolExecutor() as pool, connect(url) as settling:
            settling.execute("UPDATE lanes SET attempts = attempts")
            moving = pool.submit(moves[move])
            wait_for_waiting(url, 1)
            # As a settle continues. If the waiting move held any of these rows, PostgreSQL would end one of the two.
            settling.execute("UPDATE entries SET attempts = attempts")
            settling.execute("UPDATE destinations SET held = held")
            settling.commit()
            moving.result(60)


def test_an_upgrade_waits_for_a_training_without_holding_locks(home: Path, postgres: Postgres) -> None:
    url = postgres.new_database()
    at_revision(url, "0003")
    with ThreadPoolExecutor() as pool, connect(url) as training:
        training.execute("UPDATE lanes SET pending = pending")
        upgrading = pool.submit(lambda: open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}).close())
        wait_for_waiting(url, 1)
        training.execute("UPDATE entries SET attempts = attempts")
        training.commit()
        upgrading.result(60)


def test_two_homes_upgrade_one_database_once(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.new_database()
    at_revision(url, "0003")

    def open_from(name: str) -> None:
        open_outbox(tmp_path / name, environ={"HUBQUEUE_OUTBOX__URL": url}).close()

    with ThreadPoolExecutor() as pool, connect(url) as training:
        training.execute("UPDATE lanes SET pending = pending")
        upgrades = [pool.submit(open_from, name) for name in ("one", "two")]
        wait_for_waiting(url, 2)
        training.commit()
        for each in upgrades:
            each.result(60)


def test_several_homes_create_one_database_once(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.new_database()

    def open_from(name: str) -> None:
        open_outbox(tmp_path / name, environ={"HUBQUEUE_OUTBOX__URL": url}).close()

    with ThreadPoolExecutor() as pool:
        list(pool.map(open_from, ("one", "two", "three")))
