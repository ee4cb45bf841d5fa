"""Which entries of a lane the next request carries.

Promises: a retry carries the same batch as before, without what newer values have overtaken; a batch that fails repeatedly
does not block the others; the checkpoint that arrives last is the one to resume from. The caller has claimed the lane in the same
transaction, so no other process changes its entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache, cmp_to_key
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)

from hubqueue.domain.drafts import FINAL_RANK, is_before
from hubqueue.domain.entry import MERGED, Entry, Kind, Snapshot
from hubqueue.domain.lifecycle import State
from hubqueue.outbox.database.prepared import Prepared, first, microseconds
from hubqueue.outbox.database.schema import DamagedNumber, entries
from hubqueue.outbox.moves.batch import STUCK_AFTER, coalesce
from hubqueue.outbox.moves.counting import leaving, superseding
from hubqueue.outbox.moves.merging import IS_DELIVERED
from hubqueue.outbox.moves.readiness import TRIED, WAITING


def pick_checkpoint(
    tx: Connection, lane_id: int, failures: int, now: datetime, *, resumes_from_last: bool
) -> list[Entry]:
    """The next checkpoint, without outdated ones; empty when there is none.

    With `resumes_from_last`, one that should have arrived before what the hub has already is not sent at all: the hub
    would resume from it.
    """
    at = microseconds(now)
    gone = _DROP_OUTDATED.run(tx, {"lane": lane_id, "at": at})
    waiting = [_entry(row) for row in _WAITING_IN_LANE.run(tx, {"lane": lane_id})]
    sent = [_entry(row) for row in _SENT.run(tx, {"lane": lane_id})] if resumes_from_last else []
    for late in [each for each in waiting if any(_is_late(each, other) for other in sent)]:
        waiting.remove(late)
        gone += _DROP_LATE.run(tx, {"entry": late.id, "at": at})
    leaving(tx, lane_id, State.SUPERSEDED, gone)
    waiting.sort(key=_in_order)
    if failures >= STUCK_AFTER:  # one that fails repeatedly must not block the other one
        waiting.sort(key=lambda each: each.attempts)
    return waiting[:1]


def _order(one: Entry, other: Entry) -> int:
    return -1 if is_before(one, other) else 1


_in_order = cmp_to_key(_order)


def _is_late(entry: Entry, sent: Entry) -> bool:
    return not entry.final and (sent.id > entry.id if sent.final else is_before(entry, sent))


def pick(
    tx: Connection, lane_id: int, kind: Kind, failures: int, max_entries: int, max_bytes: int, now: datetime
) -> list[Entry]:
    """The entries of the next request: the batch that was tried before, else the first entries that wait."""
    tried = _TRIED.run(tx, {"lane": lane_id})
    if tried:
        # An entry that a newer one has replaced is not sent again. One that merges is: the batch keeps its key, and the newer
        # one follows it, unless the newer one has arrived already.
        drop = _DROP_OVERTAKEN if kind in MERGED else _DROP_REPEATED
        gone = drop.run(tx, {"lane": lane_id, "at": microseconds(now)})
        if leaving(tx, lane_id, State.SUPERSEDED, gone).count:
            tried = _TRIED.run(tx, {"lane": lane_id})
    untried = 1 if failures >= STUCK_AFTER else 0
    if tried and not (untried and _fresh(untried).run(tx, {"lane": lane_id})):
        return [_entry(row) for row in _BATCH.run(tx, {"lane": lane_id, "batch": tried[0][0]})]
    fresh = [_entry(row) for row in _fresh(max_entries + 1).run(tx, {"lane": lane_id})]
    return fresh[: coalesce(fresh, kind=kind, max_entries=max_entries, max_bytes=max_bytes)]


def mark(tx: Connection, lane_id: int, token: int, batch: Sequence[Entry]) -> None:
    """Count the attempt on its entries. They are a batch from now on, if they were not one before."""
    if batch:
        front, back = batch[0], batch[-1]
        line = {"first_rank": front.rank, "first": front.id, "last_rank": back.rank, "last": back.id}
        _MARK.run(tx, {"lane": lane_id, "token": token, "batch": front.batch or token, **line}, returns=False)


def _entry(row: tuple[Any, ...]) -> Entry:
    """An entry out of `_CARRIED`, where four columns make up the snapshot. Raises `DamagedNumber`."""
    if not isinstance(row[3], int):  # sizes are summed up
        raise DamagedNumber("invalid size of an entry in it")
    snapshot = Snapshot(*row[5:9]) if row[5] else None
    return Entry._make((*row[:5], snapshot, bool(row[9]), *row[10:]))


_CARRIED = [
    entries.c[name]
    for name in (
        *("id", "key", "payload", "size", "enqueued_at"),
        *("snapshot", "snapshot_size", "snapshot_mtime_ns", "snapshot_sha256"),
        *("final", "attempts", "progress", "checksum", "rank", "batch"),
    )
]


@cache
def _fresh(limit: int) -> Prepared:
    untried = (entries.c.lane_id == bindparam("lane"), WAITING, entries.c.batch.is_(None))
    return Prepared(first(limit, select(*_CARRIED).where(*untried).order_by(entries.c.rank, entries.c.id)))


# The batch with the fewest attempts first, so that one which fails repeatedly does not block the others.
_TRIED = Prepared(
    first(
        1,
        select(entries.c.batch).where(TRIED).order_by(entries.c.attempts, entries.c.rank, entries.c.id),
    )
)
_BATCH = Prepared(
    select(*_CARRIED)
    .where(entries.c.lane_id == bindparam("lane"), WAITING, entries.c.batch == bindparam("batch"))
    .order_by(entries.c.rank, entries.c.id)
)
# Of the entries between the first and the last one: those of this batch, or those that are in no batch yet.
_MARK = Prepared(
    update(entries)
    .where(
        entries.c.lane_id == bindparam("lane"),
        WAITING,
        tuple_(entries.c.rank, entries.c.id).between(
            tuple_(bindparam("first_rank"), bindparam("first")),
            tuple_(bindparam("last_rank"), bindparam("last")),
        ),
        func.coalesce(entries.c.batch, bindparam("token")) == bindparam("batch"),
    )
    .values(
        claim_token=bindparam("token"),
        attempts=entries.c.attempts + literal_column("1"),
        batch=bindparam("batch"),
    )
)
_newer = entries.alias("newer")
_NEWER_WAITS = and_(
    _newer.c.lane_id == entries.c.lane_id, _newer.c.state == WAITING.right, _newer.c.id > entries.c.id
)
_REPEATED = exists().where(_NEWER_WAITS, _newer.c.key == entries.c.key)
_A_FINAL_ONE_WAITS = exists().where(
    _NEWER_WAITS, _newer.c.rank == literal_column(str(FINAL_RANK)), _newer.c.final.is_(true())
)
_IN_LANE = and_(entries.c.lane_id == bindparam("lane"), WAITING)
# Few checkpoints wait. Of other kinds many may wait, and a newer one has the same rank (see `Draft.ranks`).
_DROP_OUTDATED = superseding(_IN_LANE, or_(_REPEATED, _A_FINAL_ONE_WAITS))
_DROP_LATE = superseding(entries.c.id == bindparam("entry"), WAITING, reason="the hub has a newer checkpoint")
_WAITING_IN_LANE = Prepared(select(*_CARRIED).where(_IN_LANE).order_by(entries.c.rank, entries.c.id))


def _newest_sent(*which: ColumnElement[bool]) -> Select[Any]:
    sent = select(*_CARRIED).where(entries.c.lane_id == bindparam("lane"), IS_DELIVERED, *which)
    return select(first(1, sent.order_by(entries.c.rank.desc(), entries.c.id.desc())).subquery())


# The newest delivered checkpoint, and the newest final one.
_SENT = Prepared(union_all(_newest_sent(), _newest_sent(entries.c.rank == literal_column(str(FINAL_RANK)))))
_SAME = and_(
    _newer.c.lane_id == entries.c.lane_id,
    _newer.c.rank == entries.c.rank,
    _newer.c.key == entries.c.key,
    _newer.c.id > entries.c.id,
)
_DROP_REPEATED = superseding(TRIED, exists().where(_SAME, _newer.c.state == WAITING.right))
_DROP_OVERTAKEN = superseding(TRIED, exists().where(_SAME, _newer.c.state == IS_DELIVERED.right))
