"""The producer's and the operator's moves: enqueue, cancel, redrive, prune.

Promises: each move is one guarded statement with its counting in the same transaction; an entry that
`enqueue` returned is durable; every entry stays counted. The worker's moves are in `claim.py` and `settle.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    select,
    update,
)

from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.errors import RunMissing
from hubqueue.domain.lifecycle import RunState, State
from hubqueue.domain.plain import checksum
from hubqueue.outbox.database.database import Database
from hubqueue.outbox.database.prepared import Prepared, microseconds
from hubqueue.outbox.database.schema import attempts, entries, lanes, runs
from hubqueue.outbox.moves import merging
from hubqueue.outbox.moves.counting import OUTDATED, Moved, by_lane, leaving, lock_lanes, superseding, tally
from hubqueue.outbox.moves.readiness import WAITING


class Entries:
    """The entries of one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def enqueue(self, run_id: str, draft: Draft, *, alive: bool = False) -> tuple[int, Moved]:
        """Save a draft; the new entry's id and what it superseded. Durable when this returns.

        Entries with the same key (or one the draft replaces) that still wait are superseded. One in flight is
        left to finish, and the new entry follows it. A draft that merges follows one that was tried before, too, because a
        retry carries the same entries; it also gets the values of the newest entry with its key, waiting, in flight or
        delivered. `alive` says that a process of the run saves it: a run that has ended is
        running again then.
        """
        with self.database.write() as tx:
            entry_id, moved = self.put(tx, run_id, draft)
            if alive and moved.ended:
                self.continue_run(tx, run_id, moved.ended)
            return entry_id, moved

    def put(self, tx: Connection, run_id: str, draft: Draft, *, supersedes: bool = True) -> tuple[int, Moved]:
        """`enqueue` inside the transaction of the caller. Without `supersedes`, what waits is sent before it."""
        snapshot = draft.snapshot
        now = microseconds(self.database.now())
        size, (lowest, highest) = draft.size, draft.ranks
        same = {"same_key": draft.key, "lowest": lowest, "highest": highest}
        lane = {"run": run_id, "of_kind": str(draft.kind), "more": size, **same}
        found = (_ADD_AND_LOOK if draft.merges else _ADD_TO_LANE).run(tx, lane)
        if not found:
            raise RunMissing(
                f"the outbox has no run {run_id} with {draft.kind}", hint="hubqueue runs --all lists the runs"
            )
        ((lane_id, waits, of_run, *had),) = found
        # PostgreSQL evaluates these before it waits for the lane, and misses what was enqueued in that time.
        unsure = tx.dialect.name != "sqlite"
        if draft.merges and (unsure or waits or had[0]):
            draft = merging.merged(tx, lane_id, draft)
            tally(tx, lane_id, bytes=draft.size - size)
            size = draft.size
        keys = [*([draft.key] if waits or unsure else []), *draft.replaces] if supersedes else []
        statement = _SUPERSEDE_UNTRIED if draft.merges else _SUPERSEDE
        superseded = _supersede(tx, statement, lane_id, keys, draft.ranks, now) if keys else Moved(0)
        row = {
            "lane_id": lane_id,
            "key": draft.key,
            "rank": draft.rank,
            "state": str(State.PENDING),
            "payload": draft.payload,
            "size": size,
            "final": draft.final,
            "enqueued_at": now,
            "checksum": checksum(draft.key, draft.payload),
            "progress": draft.progress,
            "snapshot": snapshot and snapshot.name,
            "snapshot_size": snapshot and snapshot.size,
            "snapshot_mtime_ns": snapshot and snapshot.mtime_ns,
            "snapshot_sha256": snapshot and snapshot.sha256,
        }
        ((entry_id,),) = _INSERT.run(tx, row)
        return entry_id, superseded if of_run == RunState.RUNNING else replace(superseded, ended=of_run)

    def continue_run(self, tx: Connection, run_id: str, ended: str) -> None:
        """Make a run that had `ended` running again, because a process of it lives; its end is not sent any more."""
        which = and_(runs.c.id == run_id, runs.c.state == ended)
        again = update(runs).where(which).values(state=RunState.RUNNING, finished_at=None)
        if tx.execute(again).rowcount:
            self.outdate(tx, run_id, Kind.COMPLETION, taken_back(ended))

    def outdate(self, tx: Connection, run_id: str, kind: Kind, reason: str) -> Moved:
        """Supersede what waits in a lane, because something newer makes it wrong."""
        lane = select(lanes.c.id).where(lanes.c.run_id == run_id, lanes.c.kind == kind)
        return self._retire(
            tx, [State.PENDING, State.DEAD], State.SUPERSEDED, entries.c.lane_id.in_(lane), reason
        )

    def cancel(self, *, ids: Collection[int] = (), run_id: str | Collection[str] | None = None) -> Moved:
        """Give entries up: those with these ids, or all that a run, or several, still owes. Delivered ones stay as they are.

        An entry in flight is cancelled as well; a later response to it is ignored.
        """
        which: ColumnElement[bool]
        theirs: ColumnElement[bool]  # lanes
        if run_id is None:
            which = entries.c.id.in_(ids)
            theirs = lanes.c.id.in_(select(entries.c.lane_id).where(which))
        else:
            theirs = lanes.c.run_id.in_([run_id] if isinstance(run_id, str) else run_id)
            which = entries.c.lane_id.in_(select(lanes.c.id).where(theirs))
        with self.database.write() as tx:
            lock_lanes(tx, theirs)
            return self._retire(tx, [State.PENDING, State.DEAD], State.CANCELLED, which, "cancelled by hand")

    def redrive(self, *, ids: Collection[int] | None = None) -> tuple[Moved, Moved]:
        """Bring dead entries back (all of them when `ids` is None). Returns what is pending again, and what was superseded.

        A dead entry with the same key as a newer one is superseded instead: an older value never overwrites a
        newer one at the hub. If it merges and has names that the newer one lacks, a new entry has the values of both.
        """
        which = literal(True) if ids is None else entries.c.id.in_(ids)
        newer = entries.alias("newer")
        outdated = exists().where(
            newer.c.lane_id == entries.c.lane_id,
            newer.c.key == entries.c.key,
            newer.c.id > entries.c.id,
            newer.c.state.in_([State.PENDING, State.DELIVERED]),
        )
        with self.database.write() as tx:
            dead = select(entries.c.lane_id).where(entries.c.state == State.DEAD, which)
            lock_lanes(tx, lanes.c.id.in_(dead))
            joined, replaced = self._redrive_repeated(tx, which)
            over = and_(which, outdated)
            superseded = self._retire(tx, [State.DEAD], State.SUPERSEDED, over, OUTDATED)
            back = self._revive(tx, which)
            return Moved(back + joined), Moved(superseded.count + replaced, superseded.snapshots)

    def prune(self, *, settled_before: datetime, ended_before: datetime, limit: int = 1000) -> int:
        """Delete up to `limit` finished entries and attempts older than the given moments. Returns how many.

        The counters of the lanes stay. A finished entry stays while an older dead one has the same key: it proves
        that the dead one is outdated. The newest row of each table stays too: ids are never reused, and the steady
        time of the outbox never goes back behind that row (see origin.py).
        """
        older = entries.alias("older")
        shadow = exists().where(
            older.c.state == literal_column("'dead'"),
            older.c.lane_id == entries.c.lane_id,
            older.c.key == entries.c.key,
            older.c.id < entries.c.id,
        )
        settled = and_(_IS_SETTLED, entries.c.settled_at < settled_before, ~shadow)
        with self.database.write() as tx:
            gone = _delete_some(tx, entries, settled, limit)
            return gone + _delete_some(tx, attempts, attempts.c.ended_at < ended_before, limit)

    def snapshots_kept(self, names: Collection[str]) -> frozenset[str]:
        """Which of these snapshots belong to an entry that is pending or dead."""
        query = select(entries.c.snapshot).where(
            entries.c.snapshot.in_(names), entries.c.state.in_([State.PENDING, State.DEAD])
        )
        with self.database.read() as connection:
            return frozenset(name for (name,) in connection.execute(query) if name)

    def _redrive_repeated(self, tx: Connection, which: ColumnElement[bool]) -> tuple[int, int]:
        """Redrive the dead entries that merge and whose key has other values: how many are sent again, and how many not."""
        joined = replaced = 0
        for dead in merging.repeated(tx, which):
            this, how = entries.c.id == dead.id, merging.again(tx, dead)
            if how is True:
                self._revive(tx, this)
            elif how is False:
                replaced += 1
                self._retire(tx, [State.DEAD], State.SUPERSEDED, this, OUTDATED)
            else:
                # The hub may refuse the dead one's values again, so what waits without them is sent first.
                entry_id, _ = self.put(tx, dead.run_id, how, supersedes=False)
                self._retire(tx, [State.DEAD], State.SUPERSEDED, this, f"sent again in entry {entry_id}")
            joined += how is not False
        return joined, replaced

    def _revive(self, tx: Connection, which: ColumnElement[bool]) -> int:
        """Dead → pending. Returns how many."""
        move = (
            update(entries)
            .where(entries.c.state == State.DEAD, which)
            .values(state=State.PENDING, attempts=0, batch=None, settled_at=None)
            .returning(entries.c.lane_id, entries.c.size)
        )
        back = tx.execute(move).all()
        for lane_id, (count, size) in by_lane(back).items():
            tally(tx, lane_id, dead=-count, pending=count, bytes=size)
        return len(back)

    def _retire(
        self, tx: Connection, sources: Sequence[State], target: State, which: ColumnElement[bool], reason: str
    ) -> Moved:
        """Move entries that are owed into a final state."""
        now = self.database.now()
        count, snapshots = 0, []
        for source in sources:
            move = (
                update(entries)
                .where(entries.c.state == source, which)
                .values(state=target, settled_at=now, reason=reason)
                .returning(entries.c.lane_id, entries.c.size, entries.c.snapshot)
            )
            rows = tx.execute(move).all()
            for lane_id, (number, size) in by_lane(rows).items():
                waiting = size if source == State.PENDING else 0
                tally(tx, lane_id, bytes=-waiting, **{str(source): -number, str(target): number})
            count += len(rows)
            snapshots += [row.snapshot for row in rows if row.snapshot]
        return Moved(count, tuple(snapshots))


def _supersede(
    tx: Connection, statement: Prepared, lane_id: int, keys: Collection[str], ranks: tuple[int, int], now: int
) -> Moved:
    gone: list[tuple[Any, ...]] = []
    lowest, highest = ranks
    for key in keys:
        same = {"same_key": key, "lowest": lowest, "highest": highest}
        gone += statement.run(tx, {"lane": lane_id, **same, "now": now, "at": now})
    return leaving(tx, lane_id, State.SUPERSEDED, gone)


def taken_back(ended: str) -> str:
    """Why an end is not sent that another process of the run had set. `close_run` looks for it, to send its results with the next end."""
    return f"the run continues; another process had set it to {ended}"


def _delete_some(tx: Connection, table: Table, which: ColumnElement[bool], limit: int) -> int:
    """Delete up to `limit` of these rows, but never the newest of the table. Returns how many."""
    newest = select(func.max(table.c.id)).scalar_subquery()
    some = select(table.c.id).where(which, table.c.id < newest).limit(limit)
    return tx.execute(delete(table).where(table.c.id.in_(some))).rowcount


# Literals, so that SQLite uses the index of the finished entries.
_FINISHED = (State.DELIVERED, State.SUPERSEDED, State.CANCELLED)
_IS_SETTLED = entries.c.state.in_([literal_column(f"'{state}'") for state in _FINISHED])

# Statements of the training thread.

# Those with the same key, in the given ranks: the index has no key, but finds them by rank.
_SAME_KEY = and_(
    entries.c.key == bindparam("same_key"),
    entries.c.rank.between(bindparam("lowest"), bindparam("highest")),
)
# A literal, because SQLAlchemy omits the table here, and `id` would be that of the entry.
_OF_THE_LANE = entries.c.lane_id == literal_column("lanes.id")
# The lane is locked first, as in a claim: on PostgreSQL the two would otherwise deadlock.
_ADDED = (
    update(lanes)
    .where(lanes.c.run_id == bindparam("run"), lanes.c.kind == bindparam("of_kind"))
    .values(
        enqueued=lanes.c.enqueued + literal_column("1"),
        pending=lanes.c.pending + literal_column("1"),
        bytes=lanes.c.bytes + bindparam("more"),
    )
    .returning(
        lanes.c.id,
        exists().where(_OF_THE_LANE, _SAME_KEY, WAITING),
        select(runs.c.state).where(runs.c.id == literal_column("lanes.run_id")).scalar_subquery(),
    )
)
_ADD_TO_LANE = Prepared(_ADDED)
_ADD_AND_LOOK = Prepared(_ADDED.returning(exists().where(_OF_THE_LANE, _SAME_KEY, merging.IS_DELIVERED)))

_INSERTED = (
    *("lane_id", "key", "rank", "state", "payload", "size", "final", "enqueued_at", "checksum"),
    *("progress", "snapshot", "snapshot_size", "snapshot_mtime_ns", "snapshot_sha256"),
)
_INSERT = Prepared(insert(entries).returning(entries.c.id), _INSERTED)
_IN_FLIGHT = exists().where(
    lanes.c.id == entries.c.lane_id,
    lanes.c.lease_until > bindparam("now", type_=lanes.c.lease_until.type),
    lanes.c.lease_token == entries.c.claim_token,
)
_OF_KEY = and_(entries.c.lane_id == bindparam("lane"), _SAME_KEY, WAITING)
_SUPERSEDE = superseding(_OF_KEY, ~_IN_FLIGHT)
# What is in flight has been tried.
_SUPERSEDE_UNTRIED = superseding(_OF_KEY, entries.c.batch.is_(None))
