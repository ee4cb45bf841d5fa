"""What a destination must remember of a run is one JSON column, and budgets are rows: docs/decisions/0021-remembered.md.

Revision 0006. Nothing is dropped: trainings and workers of the previous revision may be running, and treat a missing column
as damage. What they write into `agent_id`, `remote_run` and `remote_file` is read, and these are written for them
(hubqueue/outbox/moves/remembered.py). Their budgets stay in `requests_free_at` and `uploads_free_at`: while an old and a new
worker send to one destination, each uses the whole budget, and a hub that gets too many requests asks both to wait.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# A value may be damaged, and SQLite's JSON functions refuse a BLOB.
_MOVE_ON_SQLITE = """
UPDATE runs SET remembered = json_patch('{}', json_object(
    'agent_id', CAST(agent_id AS TEXT), 'run', CAST(remote_run AS TEXT), 'file', CAST(remote_file AS TEXT)))
 WHERE coalesce(agent_id, remote_run, remote_file) IS NOT NULL
"""
_MOVE_ON_POSTGRESQL = """
UPDATE runs SET remembered = CAST(jsonb_strip_nulls(jsonb_build_object(
    'agent_id', agent_id, 'run', remote_run, 'file', remote_file)) AS TEXT)
 WHERE coalesce(agent_id, remote_run, remote_file) IS NOT NULL
"""
_BUDGETS = (
    "INSERT INTO budgets SELECT name, 'requests', requests_free_at FROM destinations WHERE requests_free_at > 0",
    "INSERT INTO budgets SELECT name, 'uploads', uploads_free_at FROM destinations WHERE uploads_free_at > 0",
)


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    if on_postgresql:
        # The only lock that excludes others. `destinations` is read without a lock: a process that holds a row of it may
        # be about to read `runs`.
        op.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
    remembered = sa.Column("remembered", sa.Text(), server_default=sa.text("'{}'"), nullable=False)
    op.add_column("runs", remembered)
    op.execute(_MOVE_ON_POSTGRESQL if on_postgresql else _MOVE_ON_SQLITE)
    op.create_table(
        "budgets",
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("free_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("destination", "name", name=op.f("budgets_pkey")),
    )
    for statement in _BUDGETS:
        op.execute(statement)
