"""What Ultralytics Platform needs: a budget per minute, uploads in several steps, the number of a start.

Revision 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for name in ("requests_free_at", "uploads_free_at"):
        column = sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False)
        op.add_column("destinations", column)
    for name in ("remote_run", "remote_file"):
        op.add_column("runs", sa.Column(name, sa.Text(), nullable=True))
    op.add_column("entries", sa.Column("progress", sa.Text(), nullable=True))
