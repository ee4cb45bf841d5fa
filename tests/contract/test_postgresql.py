"""What only PostgreSQL can do: let a writer wait for a row, end one of two that wait for each other, serve several homes."""

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


def test_twins_that_waited_for_one_lane_leave_one_of_them_waiting(home: Path, postgres: Postgres) -> None:
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

        # Whoever came second asked before the first one had committed.
        assert {name: count for name, count in totals(first).items() if count} == {
            "enqueued": 2,
            "pending": 1,
            "superseded": 1,
        }


def test_a_writer_that_gave_up_waiting_says_so_in_our_words(home: Path, postgres: Postgres) -> None:
    url = postgres.new_database()
    with open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}) as outbox:
        run = new_run(outbox)
        with connect(url) as operator:
            operator.execute(f"ALTER DATABASE {make_url(url).database} SET lock_timeout = '100ms'")
        outbox.close()  # the next connection knows it

        with connect(url) as holder:
            holder.execute("LOCK TABLE lanes")
            with pytest.raises(OutboxUnavailable, match="lock timeout"):
                log(outbox, run, 0)
            holder.rollback()

        log(outbox, run, 0)
        assert totals(outbox)["pending"] == 1


@pytest.mark.parametrize("move", ["redrive", "cancel", "resume"])
def test_what_an_operator_does_waits_for_a_lane_with_nothing_in_its_hands(
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
            # As a settle goes on. Were any of these held by the one that waits, PostgreSQL would end one of the two.
            settling.execute("UPDATE entries SET attempts = attempts")
            settling.execute("UPDATE destinations SET held = held")
            settling.commit()
            moving.result(60)


def test_an_upgrade_waits_for_a_training_with_nothing_in_its_hands(home: Path, postgres: Postgres) -> None:
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


def test_two_homes_make_one_database_once(tmp_path: Path, postgres: Postgres) -> None:
    url = postgres.new_database()

    def open_from(name: str) -> None:
        open_outbox(tmp_path / name, environ={"HUBQUEUE_OUTBOX__URL": url}).close()

    with ThreadPoolExecutor() as pool:
        list(pool.map(open_from, ("one", "two", "three")))
