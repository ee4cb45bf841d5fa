"""Queries for worker and producer: what is owed, and when a lane may send next. Those for people are in `runs.py`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
)

from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.identifier import default_name
from hubqueue.domain.lifecycle import RunState, State
from hubqueue.domain.plain import is_intact
from hubqueue.outbox.database.prepared import Prepared
from hubqueue.outbox.database.schema import Moment, destinations, entries, lanes, moment_of, runs
from hubqueue.outbox.moves.readiness import (
    LANES_OF_RUNS,
    NOT_HELD,
    OWING,
    WAITING,
    due_among,
)
from hubqueue.outbox.moves.saved import find_saved
from hubqueue.outbox.runs import OF_DESTINATION, Survey
from hubqueue.outbox.trainings import RunIds, among


@dataclass(frozen=True, slots=True)
class Owed:
    """What is still pending: entries, their bytes, and how many of them cannot be sent now (held)."""

    entries: int
    bytes: int
    held: int


class Stats(Survey):
    """The queries of command line, producer, worker and janitor."""

    # For the worker.

    def next_due(self, destination: str, kinds: Collection[Kind]) -> datetime | None:
        """When the next lane of these kinds may send; None when waiting makes none ready.

        Heartbeats are queried separately.
        """
        with self.database.read() as connection:
            ((due,),) = _next_due(tuple(kinds)).run(connection, {"destination": destination})
        return None if due is None else moment_of(due)

    def running(self, within: Collection[str] | None = None) -> list[str]:
        """The ids of the runs that are recorded as running; of some destinations or of all."""
        which = runs.c.state == literal_column(f"'{RunState.RUNNING}'")
        if within is not None:
            which = and_(which, runs.c.destination.in_(within))
        with self.database.read() as connection:
            return list(connection.scalars(select(runs.c.id).where(which)))

    def waiting_ends(self, *, longer_than: timedelta) -> list[str]:
        """The ids of the runs whose end waits longer than this from now."""
        ends = and_(OWING, lanes.c.kind == Kind.COMPLETION, lanes.c.failures == 0)
        with self.database.read() as connection:
            late = lanes.c.retry_at > self.database.now() + longer_than
            return list(connection.scalars(select(lanes.c.run_id).where(ends, late)))

    # For the producer and drain.

    def owed(
        self, run_id: RunIds = None, *, within: Collection[str] | None = None, probed: bool = False
    ) -> Owed:
        """What is pending, of some runs or of all. Outside the destinations `within`, everything counts as held.

        `probed`: the hold of a destination does not count, because a worker probes it.
        """
        if run_id is not None and not isinstance(run_id, str):
            each = [self.owed(one, within=within, probed=probed) for one in run_id]
            return Owed(*(sum(one) for one in zip(*map(astuple, each), strict=True)))
        with self.database.read() as connection:
            if within is not None:
                free = runs.c.held.is_(None) if probed else NOT_HELD
                query = _owed(and_(free, destinations.c.name.in_(within)))
                chosen = query if run_id is None else query.where(lanes.c.run_id == run_id)
                row = tuple(connection.execute(chosen).one())
            elif run_id is None:
                (row,) = _OWED.run(connection, {})
            else:
                (row,) = _OWED_BY_RUN.run(connection, {"run": run_id})
        return Owed(int(row[0]), int(row[1]), int(row[2]))

    def refused(self, run_id: str) -> tuple[dict[str, int], tuple[str, ...]]:
        """The dead entries of a run: how many of each kind, and a few of the distinct reasons."""
        with self.database.read() as connection:
            counts = {kind: int(dead) for kind, dead in _DEAD_BY_KIND.run(connection, {"run": run_id})}
        if not counts:
            return {}, ()
        dead = entries.c.state == literal_column(f"'{State.DEAD}'")
        why = select(entries.c.reason).distinct().join(lanes).where(lanes.c.run_id == run_id, dead).limit(3)
        return counts, tuple(row["reason"] for row in self._all(why) if row["reason"])

    def saved(self, run_id: str, draft: Draft, *, after: int) -> int | None:
        """See `find_saved`."""
        with self.database.read() as connection:
            return find_saved(connection, run_id, draft, after=after)

    def values(self, run_id: str, kind: Kind) -> Iterator[tuple[str, str, str]]:
        """The key, state and payload of what waits or is delivered in a lane, oldest first, without damaged payloads."""
        owed = entries.c.state.in_([State.PENDING, State.DELIVERED])
        columns = (entries.c.key, entries.c.state, entries.c.payload, entries.c.checksum)
        query = select(*columns).join(lanes).where(lanes.c.run_id == run_id, lanes.c.kind == kind, owed)
        for row in self._all(query.order_by(entries.c.id)):
            if is_intact(row["key"], row["payload"], row["checksum"]):
                yield row["key"], row["state"], row["payload"]

    def run(self, run_id: str) -> Mapping[str, Any] | None:
        """The row of a run, with the hold of its destination; None for an unknown run."""
        with self.database.read() as connection:
            rows = _RUN.run(connection, {"run": run_id})
        if not rows:
            return None
        row = dict(zip(_RUN_COLUMNS, rows[0], strict=True))
        moments = {name: row[name] and moment_of(row[name]) for name in _RUN_MOMENTS}
        return {**row, **moments, "cancelled": bool(row["cancelled"])}

    def newest_end(self, run_id: str) -> Mapping[str, Any] | None:
        """The newest completion of a run: its state, reason, key, rank and payload. None without one, or if pruned."""
        columns = (entries.c.state, entries.c.reason, entries.c.key, entries.c.rank, entries.c.payload)
        query = select(*columns).join(lanes).where(lanes.c.run_id == run_id, lanes.c.kind == Kind.COMPLETION)
        return next(iter(self._all(query.order_by(entries.c.id.desc()).limit(1))), None)

    def run_ids(self) -> list[str]:
        """The ids of all runs, newest first."""
        with self.database.read() as connection:
            return list(connection.scalars(select(runs.c.id).order_by(runs.c.created_at.desc())))

    def runs_named(self, name: str) -> list[str]:
        """The ids of the runs with this name, newest first: the training gave it, or it is the default name of the run."""
        own = and_(runs.c.id == name.rpartition("-")[2], runs.c.name.is_(None))
        query = select(runs.c.id, runs.c.name, runs.c.model).where(or_(runs.c.name == name, own))
        rows = self._all(query.order_by(runs.c.created_at.desc(), runs.c.id))
        return [row["id"] for row in rows if name == (row["name"] or default_name(row["model"], row["id"]))]

    def dead(self, run_id: RunIds = None) -> int:
        """How many entries are dead, of some runs or of all."""
        which = among(lanes.c.run_id, run_id)
        return int(self._scalar(select(func.coalesce(func.sum(lanes.c.dead), 0)).where(which)) or 0)

    def has_failed(self, run_id: str, kind: Kind) -> bool:
        """Whether the last attempt of a lane failed, or an entry of it is dead. Reads one row."""
        which = and_(lanes.c.run_id == run_id, lanes.c.kind == kind)
        return bool(self._scalar(select(or_(lanes.c.failures > 0, lanes.c.dead > 0)).where(which)))

    def newest_entry(self) -> int:
        """The id of the entry that was enqueued last, of all runs; 0 without any."""
        with self.database.read() as connection:
            ((newest,),) = _NEWEST_ENTRY.run(connection, {})
        return int(newest or 0)

    def texts(self, run_id: str, kind: Kind, *, failed: bool) -> Iterator[tuple[int, str, str]]:
        """The id, key and payload of what waits in a lane, oldest first: never sent, or (`failed`) tried without success or dead."""
        tried = and_(lanes.c.failures > 0, entries.c.attempts > 0)
        waiting = and_(WAITING, tried if failed else ~tried)
        which = or_(waiting, entries.c.state == State.DEAD) if failed else waiting
        query = select(entries.c.id, entries.c.key, entries.c.payload).join(lanes)
        query = query.where(lanes.c.run_id == run_id, lanes.c.kind == kind, which).order_by(entries.c.id)
        for row in self._all(query):
            yield row["id"], row["key"], row["payload"]


# The queries of each run, most of them at its end.
def _owed(free: ColumnElement[bool]) -> Select[Any]:
    waits = case((free, 0), else_=lanes.c.pending)
    known = lanes.c.kind.in_([literal_column(f"'{kind}'") for kind in Kind])
    sums = (lanes.c.pending, lanes.c.bytes, case((known, waits), else_=lanes.c.pending))
    total = [func.coalesce(func.sum(each), 0) for each in sums]
    return select(*total).select_from(LANES_OF_RUNS).where(OWING)


_OWED = Prepared(_owed(NOT_HELD))
_OWED_BY_RUN = Prepared(_owed(NOT_HELD).where(lanes.c.run_id == bindparam("run")), ("run",))
_DEAD_BY_KIND = Prepared(
    select(lanes.c.kind, lanes.c.dead).where(lanes.c.run_id == bindparam("run"), lanes.c.dead > 0), ("run",)
)
_RUN_COLUMNS = [each.name for each in (*runs.c, *OF_DESTINATION)]
_RUN_MOMENTS = [each.name for each in runs.c if isinstance(each.type, Moment)]
_RUN = Prepared(
    select(runs, *OF_DESTINATION).join(destinations).where(runs.c.id == bindparam("run")), ("run",)
)
_NEWEST_ENTRY = Prepared(select(func.max(entries.c.id)))


# The query of an idle worker, twice a second.
@cache
def _next_due(kinds: tuple[Kind, ...]) -> Prepared:
    ready, due_at = due_among(kinds)
    return Prepared(select(func.min(due_at)).select_from(LANES_OF_RUNS).where(ready))
