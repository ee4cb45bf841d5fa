"""What a run could not save stands in its row.

Revision 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("runs", sa.Column("unsaved", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("runs", sa.Column("unsaved_why", sa.Text))
