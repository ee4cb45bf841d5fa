"""A database that is not as declared, on every backend."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from hubqueue.outbox.database.schema_check import differences
from hubqueue.outbox.outbox import Outbox

pytestmark = pytest.mark.usefixtures("new_home")


def found(outbox: Outbox, *statements: str) -> list[str]:
    """The differences after these statements."""
    with outbox.database._engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.commit()
    with outbox.database.read() as connection:
        return differences(connection)


def test_a_new_schema_has_no_differences(any_outbox: Outbox) -> None:
    assert found(any_outbox) == []


def test_missing_and_unknown_objects_are_named(any_outbox: Outbox) -> None:
    lines = found(
        any_outbox,
        "DROP INDEX entries_waiting",
        "CREATE UNIQUE INDEX strange ON runs (model)",
        "ALTER TABLE runs ADD COLUMN spy TEXT",
        "DROP TABLE workers",
    )

    for line in (
        "index entries_waiting of entries is missing",
        "index strange of runs is not ours",
        "column runs.spy is not ours",
        "table workers is missing",
    ):
        assert line in lines
    assert len(lines) == 4


def test_an_unknown_trigger_is_found(any_outbox: Outbox) -> None:
    if any_outbox.database.backend == "sqlite":
        lines = found(
            any_outbox,
            "CREATE TRIGGER spy AFTER INSERT ON entries BEGIN UPDATE entries SET key = 'x' WHERE id = NEW.id; END",
            "DROP TRIGGER lanes_owing_insert",
            "DROP TRIGGER lanes_owing_update",
            "CREATE TRIGGER lanes_owing_update AFTER UPDATE OF pending ON lanes BEGIN DELETE FROM entries; END",
            "CREATE VIEW seen AS SELECT * FROM entries",
        )
        assert sorted(lines) == [
            "trigger lanes_owing_insert of lanes is missing",
            "trigger lanes_owing_update of lanes is not as declared",
            "trigger spy of entries is not ours",
            "view seen is not ours",
        ]
        return
    lines = found(
        any_outbox,
        "CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.key = ''x''; RETURN NEW; END'",
        "CREATE TRIGGER spy BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION spy()",
        "CREATE RULE deaf AS ON DELETE TO runs DO INSTEAD NOTHING",
        "CREATE POLICY hidden ON lanes USING (false)",
        "CREATE TABLE of_another_program (id int)",
    )
    assert sorted(lines) == [
        "policy hidden of lanes is not ours",
        "rule deaf of runs is not ours",
        "trigger spy of entries is not ours",
    ]


def test_a_name_with_an_escape_sequence_is_shown_escaped(any_outbox: Outbox) -> None:
    if any_outbox.database.backend != "sqlite":
        pytest.skip("one backend is enough for the name")
    (line,) = found(any_outbox, 'CREATE VIEW "a\x1b[2Jb" AS SELECT 1')

    assert line == "view a\\x1b[2Jb is not ours"


def test_a_weakened_check_is_found(any_outbox: Outbox) -> None:
    if any_outbox.database.backend == "sqlite":
        with any_outbox.database.write() as tx:
            tx.execute(text("PRAGMA writable_schema = ON"))
            tx.execute(
                text(
                    "UPDATE sqlite_master SET sql = replace(sql, 'pending >= 0', 'pending >= -9') WHERE name = 'lanes'"
                )
            )
            tx.execute(text("PRAGMA writable_schema = RESET"))
        any_outbox.database.close()
        assert found(any_outbox) == ["check lanes_accounted of lanes is not as declared"]
        return
    lines = found(any_outbox, "ALTER TABLE lanes DROP CONSTRAINT lanes_accounted")
    assert lines == ["check lanes_accounted of lanes is missing"]
