"""Whether a database has the schema that this program declares, and nothing else that acts on its tables.

Others with write access to a shared database can add a trigger, a rule or a policy that copies rows, changes them or
hides them from a worker. Read only; nothing is repaired here.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

from sqlalchemy import CheckConstraint, Connection, inspect, text

from hubqueue.domain.redact import clean
from hubqueue.outbox.database.schema import Moment, metadata

# Those of revision 0004. PostgreSQL has a generated column instead.
_OWING = "FOR EACH ROW WHEN NEW.owing <> (NEW.pending > 0) BEGIN UPDATE lanes SET owing = NEW.pending > 0 WHERE id = NEW.id; END"
_TRIGGERS = {
    "lanes_owing_insert": f"CREATE TRIGGER lanes_owing_insert AFTER INSERT ON lanes {_OWING}",
    "lanes_owing_update": f"CREATE TRIGGER lanes_owing_update AFTER UPDATE OF pending ON lanes {_OWING}",
}
_ON_SQLITE = text("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE type IN ('trigger', 'view')")
_ON_POSTGRESQL = text("""
SELECT 'trigger' AS type, t.tgname AS name, c.relname AS tbl_name FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
 WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(:tables)
UNION ALL SELECT 'rule', r.rulename, c.relname FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(:tables)
UNION ALL SELECT 'policy', p.polname, c.relname FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
 WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(:tables)
ORDER BY 1, 3, 2
""")


def differences(connection: Connection) -> list[str]:
    """The differences from the declared schema, one line each; empty without any."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # before the import, which already logs
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"compare_type": _compare_type})
    with warnings.catch_warnings():
        # Older versions of Alembic warn for each computed column that they would not change it.
        warnings.simplefilter("ignore", UserWarning)
        compared = compare_metadata(context, metadata)
    found = [
        line for each in compared for line in _worded(each, everything=connection.dialect.name == "sqlite")
    ]
    return [*found, *_checks(connection), *_foreign_objects(connection)]


def _compare_type(
    _context: object, _inspected: object, _meta: object, _have: object, want: object
) -> bool | None:
    return False if isinstance(want, Moment) else None


def _worded(difference: Any, *, everything: bool) -> Iterator[str]:
    if isinstance(difference, list):
        for schema_name, table, column, *_ in (each[1:] for each in difference):
            del schema_name
            yield f"column {_name(table)}.{_name(column)} is not as declared"
        return
    act, *details = difference
    subject = details[-1]
    verb = "is missing" if act.startswith("add_") else "is not ours"
    kind = act.partition("_")[2].replace("fk", "foreign key")
    if kind == "column":
        yield f"column {_name(details[1])}.{_name(subject.name)} {verb}"
    elif kind == "table":
        # In a database of many programs there are other tables.
        if everything or act.startswith("add_"):
            yield f"table {_name(subject.name)} {verb}"
    else:
        table = getattr(subject, "table", None)
        of = f" of {_name(table.name)}" if table is not None else ""
        yield f"{kind} {_name(subject.name)}{of} {verb}"


def _checks(connection: Connection) -> Iterator[str]:
    inspector = inspect(connection)
    tables = set(inspector.get_table_names())
    for table in metadata.sorted_tables:
        if table.name not in tables:
            continue
        wanted = {
            str(each.name): _squeezed(str(each.sqltext))
            for each in table.constraints
            if isinstance(each, CheckConstraint) and each.name
        }
        there = {
            str(each["name"]): _squeezed(each["sqltext"])
            for each in inspector.get_check_constraints(table.name)
        }
        for name in sorted(wanted.keys() - there.keys()):
            yield f"check {_name(name)} of {table.name} is missing"
        for name in sorted(there.keys() - wanted.keys()):
            yield f"check {_name(name)} of {table.name} is not ours"
        if connection.dialect.name == "sqlite":  # PostgreSQL rewrites the text of a CHECK
            for name in sorted(there.keys() & wanted.keys()):
                if there[name] != wanted[name]:
                    yield f"check {_name(name)} of {table.name} is not as declared"


def _foreign_objects(connection: Connection) -> Iterator[str]:
    """Triggers, rules, policies and views that are not hubqueue's, and missing triggers of hubqueue."""
    if connection.dialect.name != "sqlite":
        for row in connection.execute(_ON_POSTGRESQL, {"tables": list(metadata.tables)}):
            yield f"{row.type} {_name(row.name)} of {_name(row.tbl_name)} is not ours"
        return
    missing = dict(_TRIGGERS)
    for row in connection.execute(_ON_SQLITE):
        if _without_each_row(row.sql) == _without_each_row(missing.pop(row.name, "")):
            continue
        state = "is not as declared" if row.name in _TRIGGERS else "is not ours"
        of = f" of {_name(row.tbl_name)}" if row.type == "trigger" else ""
        yield f"{row.type} {_name(row.name)}{of} {state}"
    for name in missing:
        yield f"trigger {name} of lanes is missing"


def _squeezed(sql: str) -> str:
    return re.sub(r"[\s\"()]+", "", sql).lower()


def _without_each_row(sql: str | None) -> str:
    return _squeezed(sql or "").replace("foreachrow", "")


def _name(name: object) -> str:
    return clean(str(name), limit=80)
