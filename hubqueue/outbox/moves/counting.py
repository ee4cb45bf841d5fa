"""Counts moves on their lanes, in the transaction of the move: the CHECK of a lane refuses wrong sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, literal_column, select, update

from hubqueue.domain.lifecycle import State
from hubqueue.outbox.database.prepared import Prepared
from hubqueue.outbox.database.schema import entries, lanes

OUTDATED = "a newer one was enqueued"
"""The reason of an entry that a newer one has superseded."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move did: how many entries, and the snapshots that are no longer needed.

    `ended` is the state of the run where something was enqueued although the run had ended.
    """

    count: int
    snapshots: tuple[str, ...] = ()
    ended: str | None = None


def lock_lanes(tx: Connection, which: ColumnElement[bool]) -> None:
    """Lock several lanes first, ordered by id, as a move of one lane does: in another order, PostgreSQL would deadlock."""
    tx.execute(select(lanes.c.id).where(which).order_by(lanes.c.id).with_for_update()).all()


def tally(tx: Connection, lane_id: int, **changes: int) -> None:
    """Count a move on its lane, in the transaction of the move; the lane's CHECK refuses wrong sums."""
    counted = {**_NO_CHANGE, **{f"n_{name}": by for name, by in changes.items()}, "lane": lane_id}
    _TALLY.run(tx, counted, returns=False)


def leaving(tx: Connection, lane_id: int, target: State, gone: Collection[tuple[Any, ...]]) -> Moved:
    """Count the pending entries that a statement has moved to `target`. `gone` has the size and the snapshot of each."""
    if gone:
        size = sum(size for size, _ in gone)
        tally(tx, lane_id, pending=-len(gone), bytes=-size, **{str(target): len(gone)})
    return Moved(len(gone), tuple(snapshot for _, snapshot in gone if snapshot))


def superseding(*which: ColumnElement[bool], reason: str = OUTDATED) -> Prepared:
    """Supersedes entries that a newer one replaces; see `leaving`. `at` is a parameter."""
    values = {
        "state": literal_column(f"'{State.SUPERSEDED}'"),
        "settled_at": bindparam("at", type_=entries.c.settled_at.type),
        "reason": literal_column(f"'{reason}'"),
    }
    moved = update(entries).where(*which).values(values)
    return Prepared(moved.returning(entries.c.size, entries.c.snapshot))


def by_lane(rows: Iterable[Row[tuple[int, int]]]) -> dict[int, tuple[int, int]]:
    """How many rows each lane has, and the sum of their sizes."""
    counts: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    for row in rows:
        counts[row.lane_id] += 1
        sizes[row.lane_id] += row.size
    return {lane_id: (counts[lane_id], sizes[lane_id]) for lane_id in counts}


_COUNTERS = ("enqueued", "pending", "delivered", "dead", "superseded", "cancelled", "bytes")

_NO_CHANGE = {f"n_{name}": 0 for name in _COUNTERS}
_TALLY = Prepared(
    update(lanes)
    .where(lanes.c.id == bindparam("lane"))
    .values({lanes.c[name]: lanes.c[name] + bindparam(f"n_{name}") for name in _COUNTERS})
)
