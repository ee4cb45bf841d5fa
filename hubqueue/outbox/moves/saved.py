"""Whether an entry is there already, for a caller that has lost the confirmation of a commit."""

from __future__ import annotations

from sqlalchemy import Connection, select

from hubqueue.domain.entry import Draft
from hubqueue.outbox.database.schema import entries, lanes


def find_saved(tx: Connection, run_id: str, draft: Draft, *, after: int) -> int | None:
    """The id of the entry that a draft became, among those with an id above `after`; None without one.

    An entry with the same key and value counts: then there is nothing to add. The value of an entry that merges may have
    more names.
    """
    if draft.snapshot is not None:
        found: int | None = tx.scalar(select(entries.c.id).where(entries.c.snapshot == draft.snapshot.name))
        return found
    query = select(entries.c.id, entries.c.payload).join(lanes)
    query = query.where(lanes.c.run_id == run_id, lanes.c.kind == str(draft.kind))
    query = query.where(entries.c.key == draft.key, entries.c.id > after).order_by(entries.c.id.desc())
    newest = tx.execute(query.limit(1)).first()
    return int(newest.id) if newest is not None and draft.is_in(newest.payload) else None
