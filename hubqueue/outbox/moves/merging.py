"""Entries of one key as one value: what the hub has, or will get, under the key of another entry.

Promises: of the entries of a key that wait or are delivered, the newest has the names of all of them. An enqueue and a
redrive keep that; their transaction has locked the lane. A damaged payload is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    literal_column,
    or_,
    select,
    union_all,
)

from hubqueue.domain.entry import MERGED, Draft, Kind
from hubqueue.domain.lifecycle import State
from hubqueue.domain.plain import is_intact, lacks_names, union
from hubqueue.outbox.database.prepared import Prepared, first
from hubqueue.outbox.database.schema import entries, lanes
from hubqueue.outbox.moves.readiness import WAITING

IS_DELIVERED = entries.c.state == literal_column(f"'{State.DELIVERED}'")


class Dead(NamedTuple):
    """A dead entry whose key has other entries that wait, are delivered or dead."""

    id: int
    run_id: str
    kind: str
    lane_id: int
    key: str
    rank: int
    payload: str
    checksum: int | None

    @property
    def is_intact(self) -> bool:
        return is_intact(self.key, self.payload, self.checksum)


def merged(tx: Connection, lane_id: int, draft: Draft) -> Draft:
    """A draft with the values of the newest entry of its key that waits or is delivered.

    Dead entries are left out, because the hub would refuse the new one as well, and so are cancelled ones.
    """
    found = _newest_intact(tx, lane_id, draft.key, draft.rank)
    return draft if found is None else draft.following(found[1])


def repeated(tx: Connection, which: ColumnElement[bool]) -> list[Dead]:
    """Those of these dead entries whose key has other values, oldest first. A redrive takes one after the other."""
    of_key = (_other.c.lane_id == entries.c.lane_id, _other.c.rank == entries.c.rank)
    others = [
        exists().where(*of_key, _other.c.key == entries.c.key, _other.c.state == literal_column(f"'{state}'"))
        for state in (State.PENDING, State.DELIVERED)
    ]
    also_dead = exists().where(
        _other.c.lane_id == entries.c.lane_id,
        _other.c.key == entries.c.key,
        _other.c.state == literal_column(f"'{State.DEAD}'"),
        _other.c.id != entries.c.id,
    )
    columns = [entries.c[name] for name in ("lane_id", "key", "rank", "payload", "checksum")]
    query = select(entries.c.id, lanes.c.run_id, lanes.c.kind, *columns).join(lanes)
    query = query.where(entries.c.state == literal_column(f"'{State.DEAD}'"), which, lanes.c.kind.in_(MERGED))
    # Not ORDER BY: SQLite would then read the whole table, by id, instead of the index of the dead entries.
    found = tx.execute(query.where(or_(*others, also_dead))).all()
    return sorted((Dead._make(row) for row in found), key=lambda dead: dead.id)


def again(tx: Connection, dead: Dead) -> Draft | bool:
    """How a dead entry is sent again: itself (True), as a draft with newer values, or not at all, because those are all.

    The newer value wins name by name. What a hub has, or will get, stays in the value that arrives last.
    """
    found = _newest_intact(tx, dead.lane_id, dead.key, dead.rank)
    if found is None:
        return True
    newest, payload = found
    if not dead.is_intact:
        return newest < dead.id
    if newest < dead.id:
        whole = union(payload, dead.payload)
        return whole is dead.payload or Draft(Kind(dead.kind), dead.key, dead.rank, whole)
    if not lacks_names(payload, dead.payload):
        return False
    return Draft(Kind(dead.kind), dead.key, dead.rank, union(dead.payload, payload))


def joined(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The entries of a key as one that is owed, from their intact rows, oldest first; None when the hub has all values.

    For an outbox that knows none of them: what is delivered is in it.
    """
    owes, whole, newest = False, "{}", None
    for row in rows:
        if row["state"] in (State.SUPERSEDED, State.CANCELLED):
            continue
        whole, newest = union(whole, row["payload"]), row
        owes = lacks_names(row["payload"], whole) and owes if row["state"] == State.DELIVERED else True
    return {**newest, "payload": whole, "checksum": None} if newest is not None and owes else None


def _newest_intact(tx: Connection, lane_id: int, key: str, rank: int) -> tuple[int, str] | None:
    """The id and the payload."""
    for found, payload, kept in _NEWEST.run(tx, {"lane": lane_id, "same_key": key, "at_rank": rank}):
        if is_intact(key, payload, kept):
            return found, payload
    return None


def _newest(which: ColumnElement[bool]) -> Select[Any]:
    of_key = and_(
        entries.c.lane_id == bindparam("lane"),
        entries.c.rank == bindparam("at_rank"),
        entries.c.key == bindparam("same_key"),
    )
    query = select(entries.c.id, entries.c.payload, entries.c.checksum).where(of_key, which)
    return select(first(1, query.order_by(entries.c.id.desc())).subquery())


_other = entries.alias("other")
# The newest that waits and the newest delivered one, the newer first. Two queries, one for each index.
_BOTH = union_all(_newest(WAITING), _newest(IS_DELIVERED)).subquery()
_NEWEST = Prepared(select(_BOTH).order_by(_BOTH.c.id.desc()))
