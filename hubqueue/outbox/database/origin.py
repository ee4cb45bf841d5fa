"""The identity of an outbox: its id, and the moment from which its steady time counts."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from sqlalchemy import Connection, Select, insert, select, text

from hubqueue.domain.clock import Clock
from hubqueue.outbox.database.schema import about, attempts, boots, entries

_ALONE = text("LOCK TABLE about IN SHARE ROW EXCLUSIVE MODE")


def identify(tx: Connection) -> str:
    """The id of the outbox; created when it has none. Others who open it wait until this transaction ends."""
    if tx.dialect.name == "postgresql":
        tx.execute(_ALONE)  # in SQLite there is one writer at a time anyway
    found = tx.scalar(select(about.c.outbox_id))
    if found is None:
        found = str(uuid.uuid4())
        tx.execute(insert(about).values(id=1, outbox_id=found))
    return found


def known_anchor(clock: Clock) -> Select[datetime]:
    """The steady moment at which this boot of the machine began; no row when the outbox has not seen the boot."""
    return select(boots.c.starts_at).where(boots.c.boot_id == clock.boot_id)


def anchor(tx: Connection, clock: Clock) -> datetime:
    """The same moment; it is recorded now for a boot not seen before."""
    known = tx.scalar(known_anchor(clock))
    if known is not None:
        return known
    starts_at = new_anchor(tx, clock)
    tx.execute(insert(boots).values(boot_id=clock.boot_id, starts_at=starts_at))
    return starts_at


def new_anchor(tx: Connection, clock: Clock) -> datetime:
    """The same moment for a boot that the outbox has not seen."""
    # The clock of this boot may be wrong; steady time must not go back behind what is recorded.
    wall = max(clock.wall(), _last_moment(tx) or clock.wall())
    return wall - timedelta(seconds=clock.elapsed())


def _last_moment(tx: Connection) -> datetime | None:
    """The newest moment on record, from the last rows only (the cost must not grow with history)."""
    recent = select(attempts.c.ended_at, attempts.c.claimed_at).order_by(attempts.c.id.desc()).limit(100)
    moments = [moment for row in tx.execute(recent) for moment in row if moment is not None]
    newest = tx.scalar(select(entries.c.enqueued_at).order_by(entries.c.id.desc()).limit(1))
    return max([*moments, *([newest] if newest else [])], default=None)
