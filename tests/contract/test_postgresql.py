"""What only PostgreSQL can do: let a writer wait for a row, and give the waiting up."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psycopg
import pytest
from postgres import Postgres
from sqlalchemy.engine import make_url
from stage import log, new_run, totals

from hubqueue.errors import OutboxUnavailable
from hubqueue.outbox import Outbox, open_outbox


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    parts = make_url(url)
    return psycopg.connect(host=str(parts.query["host"]), user=parts.username, dbname=parts.database)


def wait_for_waiting(url: str, count: int) -> None:
    """Until so many backends of this database wait for a lock of another one."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with connect(url) as connection:
        connection.autocommit = True
        until = time.monotonic() + 60
        while connection.execute(query).fetchone() != (count,):
            assert time.monotonic() < until, "nobody waits"
            threading.Event().wait(0.02)


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
