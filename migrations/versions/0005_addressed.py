"""A run belongs to the address and the account that it was started for, and counts what could not be saved.

Revision 0005. An earlier destination keeps its name and its address. Its account is unknown, so the first key for that
address takes over its runs. `name` stays the primary key: trainings of the previous revision may be running.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # In the order in which trainings and workers of the previous revision lock them: these may be running.
        op.execute("LOCK TABLE runs, destinations IN ACCESS EXCLUSIVE MODE")
    label = sa.Column("label", sa.Text(), server_default=sa.text("''"), nullable=False)
    op.add_column("destinations", label)
    op.execute("UPDATE destinations SET label = name")
    op.add_column("destinations", sa.Column("account", sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("unsaved", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("runs", sa.Column("unsaved_why", sa.Text(), nullable=True))
