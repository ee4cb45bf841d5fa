"""A checksum of the key and payload of each entry, so that a damaged epoch or number is not sent.

Revision 0003. Earlier entries have none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("entries", sa.Column("checksum", sa.BigInteger(), nullable=True))
