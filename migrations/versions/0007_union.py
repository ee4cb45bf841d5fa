"""What the hub has under a key is found by an index: see docs/decisions/0022-union.md.

Revision 0007. Only an index: trainings and workers of the previous revision continue. What they log does not have the values
of earlier entries, as before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    delivered = sa.text("state = 'delivered'")
    op.create_index(
        "entries_delivered",
        "entries",
        ["lane_id", "rank", "id"],
        sqlite_where=delivered,
        postgresql_where=delivered,
    )
