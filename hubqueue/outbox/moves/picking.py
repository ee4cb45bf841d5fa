"""Which entries of a lane the next request carries.

Promises: a retry carries the batch it carried before, less what is outdated; a batch that fails again and again lets
the others pass. The caller has taken the lane, in the same transaction, so nobody else changes its line.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)

from hubqueue.domain.drafts import FINAL_RANK
from hubqueue.domain.entry import Entry, Kind, Snapshot
from hubqueue.domain.lifecycle import State
from hubqueue.outbox.database.prepared import Prepared, first, microseconds
from hubqueue.outbox.database.schema import DamagedNumber, entries
from hubqueue.outbox.moves.batch import STUCK_AFTER, coalesce
from hubqueue.outbox.moves.enqueue import leaving, superseding
from hubqueue.outbox.moves.readiness import TRIED, WAITING


def pick(
    tx: Connection, lane_id: int, kind: Kind, failures: int, max_entries: int, max_bytes: int, now: datetime
) -> list[Entry]:
    """The entries of the next request: the batch that was tried before, else the front of the line."""
    tried = _TRIED.run(tx, {"lane": lane_id})
    if tried:
        # Whatever a newer entry has replaced meanwhile does not go out again.
        drop = _DROP_OUTDATED if kind is Kind.CKPT else _DROP_REPEATED
        gone = drop.run(tx, {"lane": lane_id, "at": microseconds(now)})
        if leaving(tx, lane_id, State.SUPERSEDED, gone).count:
            tried = _TRIED.run(tx, {"lane": lane_id})
    untried = 1 if failures >= STUCK_AFTER else 0
    if tried and not (untried and _fresh(untried).run(tx, {"lane": lane_id})):
        return [_entry(row) for row in _BATCH.run(tx, {"lane": lane_id, "batch": tried[0][0]})]
    fresh = [_entry(row) for row in _fresh(max_entries + 1).run(tx, {"lane": lane_id})]
    return fresh[: coalesce(fresh, kind=kind, max_entries=max_entries, max_bytes=max_bytes)]


def mark(tx: Connection, lane_id: int, token: int, batch: Sequence[Entry]) -> None:
    """Count the attempt on its entries. They are a batch from now on, if they were none before."""
    if batch:
        front, back = batch[0], batch[-1]
        line = {"first_rank": front.rank, "first": front.id, "last_rank": back.rank, "last": back.id}
        _MARK.run(tx, {"lane": lane_id, "token": token, "batch": front.batch or token, **line}, returns=False)


def _entry(row: tuple[Any, ...]) -> Entry:
    """An entry out of `_CARRIED`, where four columns stand for the snapshot. Raises `DamagedNumber`."""
    if not isinstance(row[3], int):  # it will be added to others
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


# The least tried batch first, so that one which fails again and again lets the others pass.
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
# The part of the line between its two ends that is of this batch: one that was tried before, or whatever is in none yet.
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
# Checkpoints: few of them wait. Of all else any number may, and a newer one has the rank of its place (see `Draft.ranks`).
_DROP_OUTDATED = superseding(TRIED, or_(_REPEATED, _A_FINAL_ONE_WAITS))
_DROP_REPEATED = superseding(TRIED, _REPEATED.where(_newer.c.rank == entries.c.rank))
