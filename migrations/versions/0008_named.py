"""A run has a name, and the runs of one training at several destinations know each other: docs/decisions/0027-several.md.

Revision 0008. Only columns that may be empty, and an index: trainings and workers of the previous revision continue.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("runs", sa.Column("name", sa.Text()))
    op.add_column("runs", sa.Column("together", sa.Text()))
    together = sa.text("together IS NOT NULL")
    op.create_index("runs_together", "runs", ["together"], sqlite_where=together, postgresql_where=together)
