"""The outbox: runs, lanes, entries, attempts.

Revision 0001. Moments are integers (microseconds of steady UTC); hubqueue/outbox/database/schema.py explains each column. Outboxes
from before the release of revision 0004 may have AUTOINCREMENT on two tables, and keep it: see docs/decisions/0019-pages-of-an-enqueue.md.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# Marks the file as hubqueue's ("hubq" in ASCII); a copy, because a revision never changes.
_APPLICATION_ID = 0x68756271
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    op.create_table(
        "about",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("outbox_id", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("about_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("about_pkey")),
    )
    op.create_table(
        "boots",
        sa.Column("boot_id", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("boot_id", name=op.f("boots_pkey")),
    )
    op.create_table(
        "destinations",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("held", sa.Text(), nullable=True),
        sa.Column("held_at", sa.BigInteger(), nullable=True),
        sa.Column("resumes_at", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("destinations_pkey")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("workers_pkey")),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("remote_id", sa.Text(), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("agent_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cancelled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("held", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("last_beat_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('running', 'finished', 'failed', 'interrupted')", name=op.f("runs_state")
        ),
        sa.ForeignKeyConstraint(["destination"], ["destinations.name"], name=op.f("runs_destination_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("runs_pkey")),
    )
    op.create_index("runs_remote", "runs", ["destination", "remote_id"], unique=False)
    op.create_index(
        "runs_running",
        "runs",
        ["id"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "lanes",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("enqueued", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("pending", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("delivered", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("dead", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("superseded", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cancelled", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("paced_until", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("retry_at", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("failures", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("lease_token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_until", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_worker", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "enqueued = pending + delivered + dead + superseded + cancelled AND pending >= 0 AND delivered >= 0 AND dead >= 0 AND superseded >= 0 AND cancelled >= 0 AND bytes >= 0",
            name=op.f("lanes_accounted"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("lanes_run_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("lanes_pkey")),
    )
    op.create_index(
        "lanes_owing",
        "lanes",
        ["id"],
        unique=False,
        sqlite_where=sa.text("pending > 0"),
        postgresql_where=sa.text("pending > 0"),
    )
    op.create_index("lanes_run_kind", "lanes", ["run_id", "kind"], unique=True)
    op.create_table(
        "attempts",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("lane_id", _ID, nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.Column("first_key", sa.Text(), nullable=True),
        sa.Column("last_key", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("claimed_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["lane_id"], ["lanes.id"], name=op.f("attempts_lane_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("attempts_pkey")),
    )
    op.create_index("attempts_ended", "attempts", ["ended_at"], unique=False)
    op.create_index("attempts_lane_token", "attempts", ["lane_id", "token"], unique=False)
    op.create_table(
        "entries",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("lane_id", _ID, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("final", sa.Boolean(), nullable=False),
        sa.Column("snapshot", sa.Text(), nullable=True),
        sa.Column("snapshot_size", sa.BigInteger(), nullable=True),
        sa.Column("snapshot_mtime_ns", sa.BigInteger(), nullable=True),
        sa.Column("snapshot_sha256", sa.Text(), nullable=True),
        sa.Column("batch", sa.BigInteger(), nullable=True),
        sa.Column("claim_token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("enqueued_at", sa.BigInteger(), nullable=False),
        sa.Column("settled_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'dead', 'superseded', 'cancelled')", name=op.f("entries_state")
        ),
        sa.ForeignKeyConstraint(["lane_id"], ["lanes.id"], name=op.f("entries_lane_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("entries_pkey")),
    )
    op.create_index(
        "entries_dead",
        "entries",
        ["lane_id", "key"],
        unique=False,
        sqlite_where=sa.text("state = 'dead'"),
        postgresql_where=sa.text("state = 'dead'"),
    )
    op.create_index(
        "entries_settled",
        "entries",
        ["settled_at"],
        unique=False,
        sqlite_where=sa.text("state IN ('delivered', 'superseded', 'cancelled')"),
        postgresql_where=sa.text("state IN ('delivered', 'superseded', 'cancelled')"),
    )
    op.create_index(
        "entries_snapshot",
        "entries",
        ["snapshot"],
        unique=False,
        sqlite_where=sa.text("snapshot IS NOT NULL"),
        postgresql_where=sa.text("snapshot IS NOT NULL"),
    )
    op.create_index(
        "entries_tried",
        "entries",
        ["lane_id", "batch"],
        unique=False,
        sqlite_where=sa.text("state = 'pending' AND batch IS NOT NULL"),
        postgresql_where=sa.text("state = 'pending' AND batch IS NOT NULL"),
    )
    op.create_index(
        "entries_waiting",
        "entries",
        ["lane_id", "rank", "id", "enqueued_at"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "entries_waiting_key",
        "entries",
        ["lane_id", "key"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
