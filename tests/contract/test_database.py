"""The database: opened safely, migrated once, with a steady time that never goes back."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
from pathlib import Path

import pytest
import template
from sqlalchemy import Connection, create_engine, event, inspect, select
from stage import ack, environ_of, keys, log, must_claim, new_run, python, totals

from hubqueue.config.home import Home
from hubqueue.config.reader import parse
from hubqueue.domain.drafts import metrics_draft
from hubqueue.domain.errors import ConfigError, OutboxAlien, OutboxDamaged, OutboxUnavailable
from hubqueue.outbox.database import schema
from hubqueue.outbox.database.migration import current_revision
from hubqueue.outbox.database.schema import EPOCH, Moment
from hubqueue.outbox.database.sqlite import load_driver
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.testing import FakeClock
from hubqueue.worker.janitor import Janitor

pytestmark = pytest.mark.usefixtures("new_home")

YEAR = 31_536_000


def test_the_migrations_create_what_the_schema_declares(any_outbox: Outbox) -> None:
    declared = create_engine("sqlite://")
    schema.metadata.create_all(declared)
    want, have = inspect(declared), inspect(any_outbox.database._engine)

    assert set(have.get_table_names()) - {"alembic_version"} == set(want.get_table_names())
    for table in want.get_table_names():
        columns = {column["name"]: column["nullable"] for column in have.get_columns(table)}
        assert columns == {column["name"]: column["nullable"] for column in want.get_columns(table)}
        indexes = {index["name"]: index["column_names"] for index in have.get_indexes(table)}
        assert indexes == {index["name"]: index["column_names"] for index in want.get_indexes(table)}
        assert _checks(have, table) == _checks(want, table)


def test_alembic_finds_nothing_to_change(outbox: Outbox) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with outbox.database._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": _compare})
        differences = compare_metadata(context, schema.metadata)

    assert differences == []


def test_the_newest_migration_is_the_declared_revision() -> None:
    from alembic.script import ScriptDirectory

    from hubqueue.outbox.database.migration import _scripts

    assert ScriptDirectory(str(_scripts())).get_heads() == [schema.REVISION]


def test_many_processes_create_one_outbox(home: Path) -> None:
    code = "from hubqueue.outbox.outbox import open_outbox; import os; print(open_outbox(os.environ['HUBQUEUE_HOME']).database.outbox_id)"
    processes = [python(code, environ_of(home)) for _ in range(6)]

    ids = [process.communicate(timeout=90)[0].strip() for process in processes]

    assert len(set(ids)) == 1, ids
    assert len(ids[0]) == 36


def test_a_schema_created_during_the_check_is_not_damage(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'young.db'}")

    @event.listens_for(engine, "handle_error")
    def another_process_creates_it(_context: object) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "young.db")) as other:
            other.execute("CREATE TABLE alembic_version (version_num TEXT)")
            other.execute("INSERT INTO alembic_version VALUES ('0001')")
            other.commit()

    with engine.connect() as connection:
        assert current_revision(connection) == "0001"


def test_opening_again_needs_no_write(home: Path) -> None:
    open_outbox(home, environ={}).close()
    blocker = sqlite3.connect(home / "outbox.db", isolation_level=None)
    with open_outbox(home, environ={}) as outbox:
        outbox_id = outbox.database.outbox_id
    before = (home / "outbox.db").stat().st_mtime_ns

    with open_outbox(home, environ={}) as again:
        assert again.database.outbox_id == outbox_id
    blocker.close()

    assert (home / "outbox.db").stat().st_mtime_ns == before


def test_a_write_waits_for_a_locked_database_and_then_fails_with_one_line(home: Path) -> None:
    with open_outbox(home, environ={"HUBQUEUE_OUTBOX__BUSY_TIMEOUT": "0.2"}) as outbox:
        run = new_run(outbox)
        other = open_outbox(home, environ={})
        with other.database.write(), pytest.raises(OutboxUnavailable, match="locked"):
            log(outbox, run, 0)
        other.close()

        assert log(outbox, run, 0)


def test_writers_in_many_threads_and_processes_get_no_lock_error(home: Path) -> None:
    code = """
import os, sys
from hubqueue.outbox.outbox import open_outbox
from hubqueue.domain.drafts import metrics_draft
with open_outbox(os.environ["HUBQUEUE_HOME"]) as outbox:
    for epoch in range(150):
        outbox.entries.enqueue(sys.argv[1], metrics_draft("{}", int(sys.argv[2]) * 1000 + epoch))
print("done")
"""
    with open_outbox(home, environ={}) as outbox:
        run = new_run(outbox)
        processes = [python(code, environ_of(home), run, str(n)) for n in range(1, 4)]
        errors: list[BaseException] = []

        def work(first: int) -> None:
            try:
                log(outbox, run, *range(first, first + 100))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(10_000 * n,)) for n in range(1, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        output = [process.communicate(timeout=90)[0].strip() for process in processes]

        assert (errors, output) == ([], ["done"] * 3)
        assert outbox.stats.totals()["pending"] == 750
        assert outbox.stats.miscounted() == []


def test_a_new_connection_begins_one_transaction_for_one_write(outbox: Outbox) -> None:
    statements: list[str] = []
    outbox.close()
    event.listen(
        outbox.database._engine,
        "connect",
        lambda driven, _record: driven.set_trace_callback(statements.append),
    )

    with outbox.database.write():
        pass

    # A BEGIN before it would wait in SQLite's busy handler, which is not fair: trainings starved at their start.
    assert statements.count("BEGIN IMMEDIATE") == 1, statements


def test_a_nested_write_is_refused_and_the_outer_one_is_complete(outbox: Outbox) -> None:
    run = new_run(outbox)

    with outbox.database.write() as tx:
        outbox.entries.put(tx, run, metrics_draft('{"loss": 1}', 0))
        with pytest.raises(OutboxUnavailable, match="under way"):  # as in a signal handler
            log(outbox, run, 1)
        outbox.entries.put(tx, run, metrics_draft('{"loss": 1}', 2))
    log(outbox, run, 3)

    assert keys(must_claim(outbox)) == ["0", "2", "3"]


def test_an_interrupt_between_begin_and_work_leaves_no_transaction_open(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_given: object) -> None:
        raise KeyboardInterrupt

    run = new_run(outbox)
    monkeypatch.setattr("hubqueue.outbox.database.turns.Turns.take", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log(outbox, run, 0)

    driven = outbox.database._held(reading=False).connection.driver_connection
    assert driven is not None and not driven.in_transaction


def test_a_write_on_a_rollback_journal_waits_once(home: Path) -> None:
    environ = {"HUBQUEUE_OUTBOX__DRIVER": "sqlite3", "HUBQUEUE_OUTBOX__BUSY_TIMEOUT": "0.2"}
    with open_outbox(home, environ=environ) as outbox:
        if outbox.database.describe()["journal_mode"] != "delete":
            pytest.skip("Python's own SQLite is safe with a write-ahead log here")
        other = sqlite3.connect(home / "outbox.db", isolation_level=None)
        statements: list[str] = []
        driven = outbox.database._held(reading=False).connection.driver_connection
        assert driven is not None
        driven.set_trace_callback(statements.append)
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(OutboxUnavailable, match="locked"), outbox.database.write():
            pass
        other.close()

    assert statements.count("BEGIN IMMEDIATE") == 1, statements


def test_another_programs_database_is_not_changed(home: Path) -> None:
    home.mkdir()
    with sqlite3.connect(home / "outbox.db") as connection:
        connection.execute("CREATE TABLE recipes (name)")
    connection.close()
    before = (home / "outbox.db").read_bytes()

    with pytest.raises(OutboxAlien):
        open_outbox(home, environ={}, set_aside_damaged=True)

    assert (home / "outbox.db").read_bytes() == before
    assert not (home / "outbox.db-wal").exists()


def test_a_damaged_database_is_set_aside_with_its_journal(home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox), *range(100))
    (home / "outbox.db").write_bytes(b"\0" * 8192)
    (home / "outbox.db-wal").write_bytes(b"the last writes")

    with pytest.raises(OutboxDamaged):
        open_outbox(home, environ={})
    with open_outbox(home, environ={}, set_aside_damaged=True) as fresh:
        assert fresh.stats.totals()["enqueued"] == 0
        assert fresh.set_aside is not None
        assert fresh.set_aside.read_bytes() == b"\0" * 8192
        assert fresh.set_aside.with_name(fresh.set_aside.name + "-wal").read_bytes() == b"the last writes"


@pytest.mark.parametrize("url", ["mysql://host/name", "nonsense", "oracle://x"])
def test_other_databases_are_refused(home: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"(?i)outbox.*url"):
        open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url})


def test_a_password_in_the_url_is_not_shown(home: Path, clock: FakeClock, postgres: object) -> None:
    url = postgres.new_database().replace("tests@", "tests:geheim@")  # type: ignore[attr-defined]
    with open_outbox(home, environ={"HUBQUEUE_OUTBOX__URL": url}, clock=clock) as outbox:
        assert "geheim" not in str(outbox.status())


def test_time_never_goes_back(home: Path, clock: FakeClock) -> None:
    with open_outbox(home, environ={}, clock=clock) as first:
        log(first, new_run(first), 0)
        before = first.database.now()
    clock.jump(-YEAR)
    with open_outbox(home, environ={}, clock=clock) as same_boot:
        assert same_boot.database.now() == before
    clock.reboot(-YEAR)
    with open_outbox(home, environ={}, clock=clock) as next_boot:
        assert next_boot.database.now() >= before
    clock.reboot(5 * YEAR)
    with open_outbox(home, environ={}, clock=clock) as later:
        assert later.database.now() == clock.wall()


def test_time_does_not_go_back_after_a_prune(home: Path, clock: FakeClock) -> None:
    with open_outbox(home, environ={}, clock=clock) as first:
        log(first, new_run(first), 0)
        ack(first, must_claim(first))
        clock.advance(40 * 86_400)
        log(first, new_run(first), 0)
        clock.advance(86_400)
        ack(first, must_claim(first))
        ended = first.database.now()
        clock.advance(40 * 86_400)
        Janitor(first, lambda _fact: None).prune()
        assert [entry["id"] for entry in first.stats.entries()] == [2]

    clock.reboot(-YEAR)

    with open_outbox(home, environ={}, clock=clock) as next_boot:
        assert next_boot.database.now() >= ended


def test_a_moment_keeps_its_microseconds() -> None:
    moment = FakeClock().wall().replace(microsecond=123_456)
    kind = Moment()
    dialect = create_engine("sqlite://").dialect

    stored = kind.process_bind_param(moment, dialect)

    assert kind.process_result_value(stored, dialect) == moment
    assert kind.process_bind_param(EPOCH, dialect) == 0


def test_a_child_of_a_fork_opens_its_own_handle(outbox: Outbox) -> None:
    run = new_run(outbox)
    log(outbox, run, 0)
    inherited = outbox.database._held(reading=False)

    child = os.fork()
    if child == 0:
        try:
            own = outbox.database._held(reading=False)
            log(outbox, run, 1)
            os._exit(0 if own is not inherited else 3)
        except BaseException:
            os._exit(4)
    _, ended = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(ended) == 0
    log(outbox, run, 2)
    assert outbox.stats.owed().entries == 3


def test_the_example_configuration_opens(home: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "config.example.toml"

    assert parse(example.read_text(), {}, source="example").destination(None).name == "platform"


def _checks(inspector: object, table: str) -> set[str]:
    return {str(check["name"]) for check in inspector.get_check_constraints(table)}  # type: ignore[attr-defined]


def _compare(_context: object, _inspected: object, _meta: object, _have: object, want: object) -> bool | None:
    return False if isinstance(want, Moment) else None


@pytest.mark.parametrize("revision", ["0001", "0002", "0003"])
def test_an_outbox_of_an_earlier_revision_is_upgraded_with_its_entries(
    home: Path, revision: str, clock: FakeClock
) -> None:
    from alembic import command

    from hubqueue.outbox.database.migration import _config

    Home.locate(home, {}).create()
    engine = create_engine(f"sqlite:///{home / 'outbox.db'}", module=load_driver("auto"))
    with engine.begin() as connection:
        command.upgrade(_config(connection), "0001")
        _give_autoincrement(connection, "attempts", "entries")
        command.upgrade(_config(connection), revision)
        for statement in _OLD_ROWS:
            connection.exec_driver_sql(statement)
    engine.dispose()

    with open_outbox(home, environ={}, clock=clock) as again:
        assert again.database.describe()["revision"] == schema.REVISION
        assert _owing(again) == ["metrics"]
        assert totals(again) == {"enqueued": 3, "pending": 2, "delivered": 1}
        lease = must_claim(again)
        assert keys(lease) == ["0", "1"]
        assert again.stats.miscounted() == []
        ack(again, lease)
        clock.advance(100)
        now = again.database.now()
        assert again.entries.prune(settled_before=now, ended_before=now) == 1
        assert log(again, lease.batch.run.id, 2) == [3]
        assert again.database.integrity() == "ok"


def _give_autoincrement(connection: Connection, *tables: str) -> None:
    """Create these tables again as hubqueue 0.1.0 created them."""
    for table in tables:
        kept = "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type = 'index'"
        made, *indexes = connection.exec_driver_sql(kept, (table,)).scalars().all()
        old = re.sub(rf",\s*CONSTRAINT {table}_pkey PRIMARY KEY \(id\)", "", made)
        old = old.replace(
            "id INTEGER NOT NULL", f"id INTEGER NOT NULL CONSTRAINT {table}_pkey PRIMARY KEY AUTOINCREMENT", 1
        )
        assert old.count("PRIMARY KEY") == 1
        for statement in (f"DROP TABLE {table}", old, *indexes):
            connection.exec_driver_sql(statement)


_OLD_ROWS = (
    "INSERT INTO destinations (name, type, url) VALUES ('hub', 'hub', 'https://hub.test')",
    "INSERT INTO runs (id, destination, model, remote_id, state, created_at) VALUES ('0bf51cd3352d', 'hub', 'm', 'm', 'running', 1)",
    "INSERT INTO lanes (id, run_id, kind, enqueued, pending, delivered, bytes) VALUES (1, '0bf51cd3352d', 'metrics', 2, 2, 0, 4), (2, '0bf51cd3352d', 'ckpt', 1, 0, 1, 0)",
    "INSERT INTO entries (lane_id, \"key\", rank, state, payload, size, final, enqueued_at) VALUES (1, '0', 0, 'pending', '{}', 2, 0, 1), (1, '1', 1, 'pending', '{}', 2, 0, 2)",
)


def test_owing_follows_the_pending_entries_of_a_lane(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    assert _owing(any_outbox) == []

    log(any_outbox, run, 0, 1)
    assert _owing(any_outbox) == ["metrics"]
    ack(any_outbox, must_claim(any_outbox))
    assert _owing(any_outbox) == []

    log(any_outbox, run, 2)
    entry = log(any_outbox, run, 3)[0]
    any_outbox.entries.cancel(ids=[entry])
    assert _owing(any_outbox) == ["metrics"]
    any_outbox.entries.cancel(run_id=run)
    assert _owing(any_outbox) == []


def test_a_lane_with_a_wrong_owing_is_found(outbox: Outbox) -> None:
    run = new_run(outbox)
    log(outbox, run, 0)
    with outbox.database.write() as tx:
        tx.exec_driver_sql("UPDATE lanes SET owing = false")

    assert outbox.stats.miscounted() == [f"run {run}, metrics"]


def _owing(outbox: Outbox) -> list[str]:
    with outbox.database.read() as connection:
        return list(
            connection.scalars(select(schema.lanes.c.kind).where(schema.lanes.c.owing).order_by("id"))
        )


@pytest.mark.parametrize("torn", [False, True], ids=["whole header", "torn header"])
def test_a_power_cut_in_the_first_transaction_is_rolled_back(tmp_path: Path, home: Path, torn: bool) -> None:
    elsewhere = tmp_path / "elsewhere.db"
    connection = sqlite3.connect(elsewhere, isolation_level=None)
    connection.execute("PRAGMA user_version = 1")
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE young (content)")
    connection.executemany("INSERT INTO young VALUES (?)", [("x" * 4000,)] * 100)
    home.mkdir(mode=0o700)
    for suffix in ("", "-journal"):
        content = elsewhere.with_name(elsewhere.name + suffix).read_bytes()
        if torn and not suffix:
            content = bytes(512) + content[512:]
        (home / f"outbox.db{suffix}").write_bytes(content)
    connection.rollback()
    connection.close()

    with open_outbox(home, environ={}) as outbox:
        assert outbox.database.integrity() == "ok"
        assert not (home / "outbox.db-journal").exists()


def test_an_error_in_one_thread_does_not_close_the_connection_of_another(outbox: Outbox) -> None:
    """A failed commit during a read: only the connection of the commit is closed."""
    database = outbox.database
    with database.read() as reading:
        failed = threading.Thread(target=_fail_a_write, args=(outbox,))
        failed.start()
        failed.join()

        assert not reading.closed
        assert reading.exec_driver_sql("SELECT 1").scalar_one() == 1
    assert log(outbox, new_run(outbox), 1)


def _fail_a_write(outbox: Outbox) -> None:
    with outbox.database.write() as tx:
        tx.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(OutboxUnavailable):
        log(outbox, "any", 1)


def test_a_copy_of_a_migrated_outbox_equals_a_new_one_but_for_its_id(tmp_path: Path) -> None:
    """Most tests begin with such a copy (`template`)."""
    names, dumps = set(), []
    homes = [template.lay(tmp_path / "copy"), template.lay(tmp_path / "another"), tmp_path / "new"]

    for home in homes:
        with open_outbox(home, environ={}) as outbox:
            names.add(outbox.database.outbox_id)
        with contextlib.closing(sqlite3.connect(home / "outbox.db")) as connection:
            marks = [
                connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "journal_mode")
            ]
            own = ('INSERT INTO "about"', 'INSERT INTO "boots"')
            dumps.append([*marks, *(line for line in connection.iterdump() if not line.startswith(own))])

    assert len(names) == 3
    assert dumps[0] == dumps[1] == dumps[2]
