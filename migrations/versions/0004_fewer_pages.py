"""An enqueue writes fewer pages: see docs/decisions/0019-pages-of-an-enqueue.md.

Revision 0004. `lanes.owing` says whether a lane has entries that wait, and changes only when that does. The index of the
keys of waiting entries is dropped, because the index of their ranks finds them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# Not a generated column: SQLite would rewrite its index whenever `pending` changes.
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
        # In the order in which trainings and workers of the previous revision lock them: these may be running.
        op.execute("LOCK TABLE lanes, entries IN ACCESS EXCLUSIVE MODE")
    op.drop_index("entries_waiting_key", "entries")
    op.drop_index("lanes_owing", "lanes")
    for statement in _ON_SQLITE if op.get_bind().dialect.name == "sqlite" else _ON_POSTGRESQL:
        op.execute(statement)
    owing = sa.text("owing = true")
    op.create_index("lanes_owing", "lanes", ["id"], sqlite_where=owing, postgresql_where=owing)
