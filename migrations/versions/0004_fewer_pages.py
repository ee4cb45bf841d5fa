"""Fewer pages that an enqueue has to write: see docs/decisions/0019-pages-of-an-enqueue.md.

Revision 0004. `lanes.owing` says whether a lane has entries that wait, and changes only when that does; the index of the
keys of waiting entries goes, because their ranks lead to them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# A generated column would do, were its index not written anew whenever `pending` changes.
_ON_SQLITE = (
    "ALTER TABLE lanes ADD COLUMN owing BOOLEAN DEFAULT false NOT NULL",
    "UPDATE lanes SET owing = true WHERE pending > 0",
    (
        "CREATE TRIGGER lanes_owing_insert AFTER INSERT ON lanes WHEN NEW.owing <> (NEW.pending > 0) "
        "BEGIN UPDATE lanes SET owing = NEW.pending > 0 WHERE id = NEW.id; END"
    ),
    (
        "CREATE TRIGGER lanes_owing_update AFTER UPDATE OF pending ON lanes WHEN NEW.owing <> (NEW.pending > 0) "
        "BEGIN UPDATE lanes SET owing = NEW.pending > 0 WHERE id = NEW.id; END"
    ),
)
_ON_POSTGRESQL = (
    "ALTER TABLE lanes ADD COLUMN owing BOOLEAN NOT NULL GENERATED ALWAYS AS (pending > 0) STORED",
)


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # In the order in which trainings and workers of the revision before take them: they may be at work.
        op.execute("LOCK TABLE lanes, entries IN ACCESS EXCLUSIVE MODE")
    op.drop_index("entries_waiting_key", "entries")
    op.drop_index("lanes_owing", "lanes")
    for statement in _ON_SQLITE if op.get_bind().dialect.name == "sqlite" else _ON_POSTGRESQL:
        op.execute(statement)
    owing = sa.text("owing = true")
    op.create_index("lanes_owing", "lanes", ["id"], sqlite_where=owing, postgresql_where=owing)
