"""P10 on damaged databases: the small scale of the torture, and rows that can no longer be read."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from stage import Bench, claim, environ_of, hubqueue, log, new_run, totals
from torture import damage

from hubqueue.domain.errors import OutboxDamaged
from hubqueue.outbox.outbox import open_outbox
from hubqueue.testing import FakeClock


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_damaged_outbox_is_never_reported_as_a_smaller_healthy_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = damage.main(["--seed", "5", "--scale", "quick"])

    assert failed == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "damage",
    [
        "payload = replace(payload, '1', '7')",  # still JSON, but the wrong number
        "key = '17'",
        "checksum = NULL, payload = '{\"loss\": 1.'",  # an older hubqueue wrote no checksum
        "checksum = NULL, payload = CAST(x'7b226c6f7373223a2022ff227d' AS TEXT)",
        "checksum = NULL, payload = '[]'",
        "payload = CAST(payload AS BLOB)",  # one flipped bit in a row's header turns a text into bytes
        "key = CAST(key AS BLOB)",
        "checksum = NULL, payload = CAST(payload AS BLOB)",
    ],
)
def test_a_damaged_payload_is_dead_and_its_neighbours_are_sent(
    home: Path, clock: FakeClock, damage: str
) -> None:
    with open_outbox(home, environ={}, clock=clock) as outbox, Bench(outbox) as bench:
        log(outbox, new_run(outbox), 0, 1, 2, 3)
        _execute(home, f"UPDATE entries SET {damage} WHERE key = '2'")
        for _ in range(12):
            bench.step()
            clock.advance(10)

        assert totals(outbox) == {"enqueued": 4, "delivered": 3, "dead": 1}
        (dead,) = [each for each in outbox.stats.entries() if each["state"] == "dead"]
        assert dead["id"] == 3
        assert "damaged in the outbox" in dead["reason"]


@pytest.mark.parametrize(
    "damage", ["entries SET size = 'x'", "lanes SET failures = 'x'", "lanes SET retry_at = -1"]
)
def test_an_invalid_number_is_damage(home: Path, damage: str) -> None:
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox), 0)
        _execute(home, f"UPDATE {damage}")

        assert (
            outbox.database.integrity() == f"invalid number in {damage.replace(' SET ', '.').split(' =')[0]}"
        )
        if "size" in damage:
            with pytest.raises(OutboxDamaged):
                claim(outbox)


def test_check_names_the_entry_whose_payload_is_damaged(home: Path) -> None:
    environ = environ_of(home)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=1")
    _execute(home, "UPDATE entries SET payload = substr(payload, 2) WHERE key = '0'")

    shown = hubqueue(environ, "check", "--offline")

    assert shown.returncode == 1
    assert "the payload of entry 2 is damaged" in shown.stdout
    assert "hubqueue cancel 2" in shown.stdout


@pytest.mark.parametrize("column", ["snapshot_mtime_ns", "payload"])
def test_tables_that_differ_from_the_migrations_are_damage(home: Path, column: str) -> None:
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox), 0)
    _execute(home, "PRAGMA writable_schema = ON")
    connection = sqlite3.connect(home / "outbox.db")
    connection.execute("PRAGMA writable_schema = ON")
    other = column[:-1] + "\N{LATIN SMALL LETTER E WITH ACUTE}"
    connection.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?)", (column, other))
    connection.commit()
    connection.close()

    with pytest.raises(OutboxDamaged), open_outbox(home, environ={}) as outbox:
        outbox.database.integrity()


def _execute(home: Path, statement: str) -> None:
    connection = sqlite3.connect(home / "outbox.db")
    connection.execute(statement)
    connection.commit()
    connection.close()
