"""What is saved from a damaged outbox: every readable entry that is owed, once, in its order, and a correct count."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from stage import ack, ckpt, environ_of, hubqueue, log, must_claim, new_run, totals

from hubqueue.domain.drafts import FINAL_RANK
from hubqueue.domain.entry import Draft, Kind
from hubqueue.outbox import salvage
from hubqueue.outbox.database import pages
from hubqueue.outbox.database.sqlite import asides, report_of
from hubqueue.outbox.outbox import Outbox, open_outbox, replace_damaged
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock

PAGE = 4096


def spoil(home: Path, *, keep: frozenset[int] = frozenset({0})) -> int:
    """Zero every page of the outbox that is no leaf of a table (and not in `keep`). Returns how many."""
    path = home / "outbox.db"
    data = bytearray(path.read_bytes())
    count = 0
    for number in range(len(data) // PAGE):
        start = number * PAGE
        if number not in keep and data[start] != 0x0D:
            data[start : start + PAGE] = bytes(PAGE)
            count += 1
    path.write_bytes(data)
    return count


def set_aside(home: Path) -> Path:
    with open_outbox(home, environ={}, set_aside_damaged=True) as outbox:
        config, located = outbox.config, outbox.home
    aside = replace_damaged(located, config)
    return aside or asides(home / "outbox.db")[-1]


def checkpointed(home: Path) -> None:
    """Write the write-ahead log into the file, as the last close of a database does."""
    connection = sqlite3.connect(home / "outbox.db")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def texts(outbox: Outbox, run: str) -> list[str]:
    return [key for _, key, _ in outbox.stats.texts(run, Kind.METRICS, failed=False)]


def test_the_columns_are_those_of_the_tables(home: Path) -> None:
    open_outbox(home, environ={}).close()
    connection = sqlite3.connect(home / "outbox.db")

    for table, names in salvage.COLUMNS.items():
        assert tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})")) == names


def test_rows_are_read_without_the_tree_above_them(home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        run = new_run(outbox)
        log(outbox, run, *range(500))
    checkpointed(home)
    assert spoil(home) > 3

    found = [
        row for row in pages.rows(home / "outbox.db") if len(row.values) == len(salvage.COLUMNS["entries"])
    ]

    assert sorted(row.values[2] for row in found) == sorted(str(epoch) for epoch in range(500))


def test_long_rows_are_read_from_their_overflow_pages(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("CREATE TABLE t (a TEXT, b BLOB, c REAL, d INTEGER, e)")
    rows = [
        ("x" * length, b"y" * (length // 2), length / 3, -length, None)
        for length in (0, 9, 4000, 4100, 100_000)
    ]
    connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()

    assert [row.values for row in pages.rows(tmp_path / "a.db") if row.values[:1] != ("table",)] == rows


def test_a_row_whose_header_has_lost_a_value_is_left_out(tmp_path: Path) -> None:
    """Otherwise no checksum would show that its payload is damaged too."""
    path = tmp_path / "short.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, key TEXT, checksum INTEGER)")
    connection.execute("INSERT INTO entries VALUES (1, 'whole', 77), (2, 'lossy', 77)")
    connection.commit()
    connection.close()
    # A header of four bytes: its length, NULL for the id, a text of five bytes, an integer of one (section 2.1).
    row, data = bytes((4, 0, 23, 1)) + b"lossy", path.read_bytes()
    assert data.count(row) == 1
    path.write_bytes(data.replace(row, bytes((4, 0, 23, 0)) + b"lossy"))

    found = [row.values for row in pages.rows(path) if "CREATE" not in str(row.values)]

    assert found == [(None, "whole", 77)]


def test_rows_of_the_write_ahead_log_count(home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        run = new_run(outbox)
        log(outbox, run, 0, 1)
        copy = home / "copy.db"
        copy.write_bytes((home / "outbox.db").read_bytes())
        if (home / "outbox.db-wal").exists():
            (home / "copy.db-wal").write_bytes((home / "outbox.db-wal").read_bytes())

    found = [row for row in pages.rows(copy) if len(row.values) == len(salvage.COLUMNS["entries"])]
    assert [row.values[2] for row in found] == ["0", "1"]


def test_what_is_owed_is_saved_and_delivered(home: Path, hub: Sandbox, tmp_path: Path) -> None:
    environ = environ_of(home, hub.url)
    (tmp_path / "best.pt").write_bytes(b"weights " * 50_000)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    for epoch in range(30):
        hubqueue(
            environ, "enqueue", "metrics", "--run", run, "--epoch", str(epoch), "loss=1"
        ) if epoch < 3 else None
    given = ("--epoch", "2", "--final", "--map", "0.5", str(tmp_path / "best.pt"))
    hubqueue(environ, "enqueue", "checkpoint", "--run", run, *given)
    checkpointed(home)
    spoil(home)

    shown = hubqueue(environ, "check", "--offline", "--set-aside")
    assert "5 owed entries were saved from it, of 1 run" in shown.stdout
    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0

    (model,) = hub.models
    assert sorted(hub.metrics(model)) == [0, 1, 2]
    assert [each.path.read_bytes() for each in hub.checkpoints(model)] == [b"weights " * 50_000]
    status = json.loads(hubqueue(environ, "status", "--json").stdout)
    assert "5 owed entries" in status["attention"][-1]["what"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_worker_saves_it_automatically_and_once(home: Path, hub: Sandbox, gone: bool) -> None:
    environ = environ_of(home, hub.url)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=1")
    checkpointed(home)
    spoil(home)
    set_aside(home)
    if gone:
        for each in home.glob("outbox.db"):
            each.unlink()  # no process has created a new one yet

    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0
    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0

    assert len(hub.models) == 1
    assert [each.kind for each in hub.requests if each.kind == "metrics"] == ["metrics"]


def test_the_damaged_file_is_not_changed(home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox), 0)
    checkpointed(home)
    spoil(home)
    before = (home / "outbox.db").read_bytes()
    aside = set_aside(home)
    with open_outbox(home, environ={}) as outbox:
        salvage.salvage(outbox)

    assert aside.read_bytes() == before


def test_a_row_whose_columns_have_moved_is_left_out(home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        run = new_run(outbox)
        log(outbox, run, 0, 1)
    connection = sqlite3.connect(home / "outbox.db")
    # The effect of a flipped bit in a record's header: the checksum (no text) is in the column of the progress.
    moved = "UPDATE entries SET progress = CAST(checksum AS BLOB), checksum = NULL, payload = '{\"x\": 2}' WHERE key = '1'"
    assert connection.execute(moved).rowcount == 1
    connection.commit()
    connection.close()
    checkpointed(home)
    spoil(home)
    set_aside(home)
    with open_outbox(home, environ={}) as outbox:
        salvage.salvage(outbox)

        assert texts(outbox, run) == ["0"]


def test_what_was_delivered_or_replaced_is_not_owed_again(home: Path, clock: FakeClock) -> None:
    with open_outbox(home, environ={}, clock=clock) as outbox:
        run = new_run(outbox)
        log(outbox, run, 0)
        ack(outbox, must_claim(outbox))
        clock.advance(10)
        log(outbox, run, 1)
        lease = must_claim(outbox)  # in flight, so the newer value does not supersede it yet
        log(outbox, run, 1, value=2.0)
        outbox.settlement.bury(lease, reason="refused", started_at=None)
        ckpt(outbox, run, "final", final=True)
    checkpointed(home)
    spoil(home)
    set_aside(home)
    with open_outbox(home, environ={}) as outbox:
        (saved,) = salvage.salvage(outbox)

        assert (saved.runs, saved.entries, saved.lost) == (1, 2, [])
        assert [text for _, _, text in outbox.stats.texts(run, Kind.METRICS, failed=False)] == [
            '{"loss": 2.0}'
        ]


def test_a_crash_between_two_runs_saves_no_run_twice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_outbox(home, environ={}) as outbox:
        first, second = new_run(outbox), new_run(outbox, remote_id="model-2")
        log(outbox, first, 0)
        log(outbox, second, 0)
    checkpointed(home)
    spoil(home)
    set_aside(home)
    with open_outbox(home, environ={}) as outbox:
        with monkeypatch.context() as dying:
            dying.setattr(salvage, "_write_report", _die)
            with pytest.raises(KeyboardInterrupt):
                salvage.salvage(outbox)
        again = salvage.salvage(outbox)

        assert totals(outbox) == {"enqueued": 2, "pending": 2}
        assert [each.entries for each in again] == [0]


def _die(_saved: object) -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_read_is_reported(home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox), 0)
    (home / "outbox.db").write_bytes(b"\xff" * 50_000)
    for side in ("-wal", "-shm"):
        (home / f"outbox.db{side}").unlink(missing_ok=True)
    aside = set_aside(home)
    with open_outbox(home, environ={}) as outbox:
        salvage.salvage(outbox)

    assert report_of(aside) == "0 owed entries were saved from it, of 0 runs; not: nothing in it can be read"


def test_a_checkpoint_without_its_file_is_reported(home: Path, tmp_path: Path) -> None:
    environ = environ_of(home)
    (tmp_path / "last.pt").write_bytes(b"weights")
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    hubqueue(environ, "enqueue", "checkpoint", "--run", run, "--epoch", "0", str(tmp_path / "last.pt"))
    checkpointed(home)
    spoil(home)
    for each in (home / "spool").iterdir():
        each.unlink()
    aside = set_aside(home)
    with open_outbox(home, environ={}) as outbox:
        salvage.salvage(outbox)

    assert "1 checkpoints of run" in str(report_of(aside))


def test_the_rank_of_a_final_checkpoint_is_that_of_the_drafts() -> None:
    assert Draft(Kind.CKPT, "final", FINAL_RANK, "{}").rank == FINAL_RANK
