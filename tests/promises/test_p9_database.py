"""P9: the password of a database is in no status, no check, no error, no log line and no traceback."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path

import pytest
from postgres import Postgres
from sqlalchemy import text
from stage import PATIENCE, environ_of, hubqueue, log, new_run, python

from hubqueue.outbox.database.address import Address
from hubqueue.outbox.outbox import open_outbox

PASSWORD = "Zq8-kW3vXm2Lp"
SHORT = "pw7!"


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        (f"postgresql+psycopg://me:{PASSWORD}@db:5432/q", "postgresql+psycopg://***@db:5432/q"),
        (f"postgresql://me:{SHORT}@db/q?host=/run", "postgresql://***@db/q?host=/run"),
        (
            f"postgresql://db/q?password={PASSWORD}&sslmode=require",
            "postgresql://db/q?password=***&sslmode=require",
        ),
        (f"postgresql://db/q?user=me&sslpassword={SHORT}", "postgresql://db/q?user=me&sslpassword=***"),
        ("postgresql://db/q?passfile=/home/me/.pgpass", "postgresql://db/q?passfile=***"),
        (f"postgresql://db/q?pasword={PASSWORD}", "postgresql://db/q?pasword=***"),
        ("postgresql+psycopg://me@db/q", "postgresql+psycopg://***@db/q"),
        ("postgresql://me:a?b/c=d@db/q", "postgresql://***@db/q"),
        ("postgresql://db/q?sECRET", "postgresql://db/q?***"),
        ("sqlite:////var/lib/outbox.db", "sqlite:////var/lib/outbox.db"),
    ],
)
def test_an_address_is_shown_without_its_passwords(url: str, seen: str) -> None:
    assert Address(url).shown == seen
    assert PASSWORD not in repr(Address(url))


@pytest.mark.parametrize(
    "rest",
    [
        f"me:{PASSWORD}@127.0.0.1:9/q",
        f"me:{SHORT}@127.0.0.1:9/q",
        f"127.0.0.1:9/q?user=me&password={PASSWORD}",
        f"127.0.0.1:9/q?pasword={PASSWORD}",
        f"127.0.0.1:9/q?pasword={SHORT}",
        f"127.0.0.1:9/q?sslmode={PASSWORD}x",
        f"127.0.0.1:9/q?user=me&password={PASSWORD}&connect_timeout={SHORT}",
    ],
)
def test_no_command_shows_a_password_that_a_driver_quotes(home: Path, rest: str) -> None:
    environ = environ_of(home, HUBQUEUE_OUTBOX__URL=f"postgresql+psycopg://{rest}")

    shown = [
        hubqueue(environ, *words.split()) for words in ("status", "check --json", "enqueue run yolo26n.pt")
    ]
    code = "import logging; logging.basicConfig(level=1); from hubqueue.outbox.outbox import open_outbox; open_outbox()"
    process = python(code, environ)
    raised, _ = process.communicate(timeout=PATIENCE)

    output = "".join(each.stdout + each.stderr for each in shown) + (raised or "")
    secret = PASSWORD if "sslmode" not in rest else "never shown"
    assert process.returncode == 1
    assert "Traceback" in output
    assert secret not in output
    if f"sslmode={PASSWORD}" not in rest and "connect_timeout" not in rest:
        assert SHORT not in output


@pytest.mark.usefixtures("migrated_home")
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_no_error_and_no_log_line_shows_the_values_of_a_statement(
    home: Path, backend: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    server: Postgres | None = request.getfixturevalue("postgres") if backend == "postgresql" else None
    environ = {"HUBQUEUE_OUTBOX__URL": server.new_database()} if server is not None else {}
    caplog.set_level(logging.DEBUG)

    with open_outbox(home, environ=environ) as outbox:
        run = new_run(outbox)
        (entry,) = log(outbox, run, 0)
        with pytest.raises(Exception, match=r"(?i)check|constraint") as caught, outbox.database.write() as tx:
            tx.execute(
                text("UPDATE entries SET payload = :payload, state = :state WHERE id = :id"),
                {"payload": "the-payload-of-it", "state": "no-state-at-all", "id": entry},
            )

    trace = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "UPDATE entries" in trace
    assert "the-payload-of-it" not in trace
