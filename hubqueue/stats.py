"""Every read: what is owed, since when, why, and when next. Reads change nothing and hold nothing.

Kinds and states come out as they stand in the database: a kind that a newer hubqueue wrote is shown, with the
reason why it waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    Select,
    and_,
    bindparam,
    case,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
)

from hubqueue.database import Database
from hubqueue.entry import Draft, Kind, Snapshot
from hubqueue.lifecycle import RunState, State
from hubqueue.prepared import Prepared
from hubqueue.readiness import (
    BEAT_DUE_AT,
    BEATING,
    DUE_AT,
    LANES_OF_RUNS,
    NOT_HELD,
    OWING,
    READY,
    WAITING,
    due_among,
)
from hubqueue.schema import attempts, destinations, entries, lanes, moment_of, runs, workers

COUNTED = ("enqueued", "pending", "delivered", "dead", "superseded", "cancelled")


@dataclass(frozen=True, slots=True)
class Owed:
    """What is still pending: entries, their bytes, and how many of them wait for a person (held)."""

    entries: int
    bytes: int
    held: int


class Stats:
    """The questions that doors, worker and janitor ask."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # For the worker.

    def next_due(self, destination: str, kinds: Collection[Kind]) -> datetime | None:
        """When the next lane of these kinds may send; None when nothing is ready, however long one waits.

        Heartbeats are asked for apart from what is owed.
        """
        with self.database.read() as connection:
            ((due,),) = _next_due(tuple(kinds)).run(connection, {"destination": destination})
        return None if due is None else moment_of(due)

    def running(self) -> list[str]:
        """The ids of the runs whose script has not ended, as far as the outbox knows."""
        with self.database.read() as connection:
            return list(
                connection.scalars(
                    select(runs.c.id).where(runs.c.state == literal_column(f"'{RunState.RUNNING}'"))
                )
            )

    # For the producer and drain.

    def owed(self, run_id: str | None = None) -> Owed:
        """What is pending, of a run or of all."""
        with self.database.read() as connection:
            if run_id is None:
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
        """The entry that a draft became, among those with an id above `after`; None when it became none.

        For whoever has lost the confirmation of a commit. A draft with the same value in the same place counts: then
        there is nothing to add.
        """
        if draft.snapshot is not None:
            found: int | None = self._scalar(
                select(entries.c.id).where(entries.c.snapshot == draft.snapshot.name)
            )
            return found
        same = entries.c.payload == draft.payload
        query = select(entries.c.id, case((same, 1), else_=0).label("same")).join(lanes)
        query = query.where(lanes.c.run_id == run_id, lanes.c.kind == str(draft.kind))
        query = query.where(entries.c.key == draft.key, entries.c.id > after).order_by(entries.c.id.desc())
        newest = next(iter(self._all(query.limit(1))), None)
        return int(newest["id"]) if newest is not None and newest["same"] else None

    def run(self, run_id: str) -> Mapping[str, Any] | None:
        """One run's row, with its destination's hold; None when there is none."""
        query = (
            select(runs, destinations.c.held.label("destination_held"), destinations.c.type)
            .join(destinations)
            .where(runs.c.id == run_id)
        )
        return next(iter(self._all(query)), None)

    def has_failed(self, run_id: str, kind: Kind) -> bool:
        """Whether something of a lane was not delivered at its last attempt, or is dead. One row is read."""
        which = and_(lanes.c.run_id == run_id, lanes.c.kind == kind)
        return bool(self._scalar(select(or_(lanes.c.failures > 0, lanes.c.dead > 0)).where(which)))

    def newest_entry(self) -> int:
        """The id of the entry that was enqueued last, of all runs; 0 without any."""
        with self.database.read() as connection:
            ((newest,),) = _NEWEST_ENTRY.run(connection, {})
        return int(newest or 0)

    def texts(self, run_id: str, kind: Kind, *, failed: bool) -> Iterator[tuple[int, str, str]]:
        """The id, key and payload of what waits in a lane, oldest first: never sent, or (`failed`) sent in vain."""
        tried = and_(lanes.c.failures > 0, entries.c.attempts > 0)
        waiting = and_(WAITING, tried if failed else ~tried)
        which = or_(waiting, entries.c.state == State.DEAD) if failed else waiting
        query = select(entries.c.id, entries.c.key, entries.c.payload).join(lanes)
        query = query.where(lanes.c.run_id == run_id, lanes.c.kind == kind, which).order_by(entries.c.id)
        for row in self._all(query):
            yield row["id"], row["key"], row["payload"]

    # For people and tools.

    def destinations(self) -> list[Mapping[str, Any]]:
        """All destinations that were ever used, with their holds."""
        return self._all(select(destinations).order_by(destinations.c.name))

    def workers(self) -> list[Mapping[str, Any]]:
        """The workers on the list, newest first; whether they live is for their locks to say."""
        return self._all(select(workers).order_by(workers.c.seen_at.desc()))

    def totals(self) -> dict[str, int]:
        """The counts of all lanes together; `enqueued` is the sum of the five states."""
        sums = [func.coalesce(func.sum(lanes.c[name]), 0).label(name) for name in COUNTED]
        with self.database.read() as connection:
            totals = {
                name: int(count) for name, count in connection.execute(select(*sums)).mappings().one().items()
            }
        moving = self._moving()
        return totals | {
            name: sum(lane[name] for lane in moving.values()) for name in ("in_flight", "retrying")
        }

    def runs(self, *, run_id: str | None = None, finished: int | None = 10) -> list[dict[str, Any]]:
        """Runs, newest first, each with its `lanes`.

        Without `run_id`: every run that goes on, owes something or has dead entries, and the `finished` newest
        of the others (None: all of them).
        """
        query = select(runs).order_by(runs.c.created_at.desc(), runs.c.id)
        if run_id is not None:
            found = self._all(query.where(runs.c.id == run_id))
        elif finished is None:
            found = self._all(query)
        else:
            found = self._all(query.where(runs.c.id.in_(_CONCERNED)))
            others = query.where(runs.c.id.not_in([row["id"] for row in found]))
            found += self._all(others.limit(finished))
            found.sort(key=lambda row: row["created_at"], reverse=True)
        lanes_of = self._lanes([row["id"] for row in found])
        return [{**row, "lanes": lanes_of.get(row["id"], [])} for row in found]

    def entries(
        self,
        *,
        state: State | None = None,
        run_id: str | None = None,
        kind: str | None = None,
        ids: Collection[int] | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Entries, newest first, with the kind and the run of their lane; the payload is left out."""
        columns = [column for column in entries.c if column.name != "payload"]
        query = select(
            *columns, lanes.c.run_id, lanes.c.kind, _in_flight(self.database.now()).label("in_flight")
        ).join(lanes)
        for value, column in ((state, entries.c.state), (run_id, lanes.c.run_id), (kind, lanes.c.kind)):
            if value is not None:
                query = query.where(column == value)
        if ids is not None:
            query = query.where(entries.c.id.in_(ids))
        return [dict(row) for row in self._all(query.order_by(entries.c.id.desc()).limit(limit))]

    def payload(self, entry_id: int) -> str | None:
        """What an entry carries, as JSON text."""
        found: str | None = self._scalar(select(entries.c.payload).where(entries.c.id == entry_id))
        return found

    def payloads(self, state: State) -> Iterator[tuple[int, str, str, int | None]]:
        """The entries in a state, each with what it carries."""
        columns = (entries.c.id, entries.c.key, entries.c.payload, entries.c.checksum)
        for row in self._all(select(*columns).where(entries.c.state == state)):
            yield row["id"], row["key"], row["payload"], row["checksum"]

    def snapshots(self, state: State) -> Iterator[tuple[int, Snapshot]]:
        """The entries in a state that have a snapshot, each with it."""
        named = ("snapshot", "snapshot_size", "snapshot_mtime_ns", "snapshot_sha256")
        query = select(entries).where(entries.c.state == state, entries.c.snapshot.is_not(None))
        for row in self._all(query):
            yield row["id"], Snapshot(*(row[name] for name in named))

    def attempts(
        self, *, run_id: str | None = None, entry_id: int | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """The history of attempts, newest first."""
        query = select(attempts, lanes.c.run_id, lanes.c.kind).join(lanes)
        if run_id is not None:
            query = query.where(lanes.c.run_id == run_id)
        if entry_id is not None:
            of_entry = select(entries.c.lane_id).where(entries.c.id == entry_id).scalar_subquery()
            last = select(entries.c.claim_token).where(entries.c.id == entry_id).scalar_subquery()
            query = query.where(attempts.c.lane_id == of_entry, attempts.c.token == last)
        return [dict(row) for row in self._all(query.order_by(attempts.c.id.desc()).limit(limit))]

    def miscounted(self) -> list[str]:
        """Lanes whose counters disagree with their rows (pending, dead), or which owe and are not found.

        None, unless the file was tampered with.
        """
        real = (
            select(
                entries.c.lane_id,
                func.sum(case((entries.c.state == State.PENDING, 1), else_=0)).label("pending"),
                func.sum(case((entries.c.state == State.DEAD, 1), else_=0)).label("dead"),
            )
            .group_by(entries.c.lane_id)
            .subquery()
        )
        counted = func.coalesce(real.c.pending, 0), func.coalesce(real.c.dead, 0)
        query = select(lanes.c.run_id, lanes.c.kind).outerjoin(real, real.c.lane_id == lanes.c.id)
        owes = case((lanes.c.pending > 0, true()), else_=false())
        query = query.where(
            or_(lanes.c.pending != counted[0], lanes.c.dead != counted[1], lanes.c.owing != owes)
        )
        return [f"run {row['run_id']}, {row['kind']}" for row in self._all(query)]

    def _lanes(self, run_ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
        beat = lanes.c.kind == Kind.HEARTBEAT
        oldest = (
            select(func.min(entries.c.enqueued_at))
            .where(entries.c.lane_id == lanes.c.id, WAITING)
            .scalar_subquery()
        )
        due = case((and_(beat, BEATING), BEAT_DUE_AT), (READY, DUE_AT))
        columns = (
            *lanes.c,
            oldest.label("oldest_at"),
            due.label("next_send_at"),
            runs.c.held.label("run_held"),
            destinations.c.held,
        )
        moving = self._moving()
        grouped: dict[str, list[dict[str, Any]]] = {}
        for start in range(0, len(run_ids), 500):
            some = list(run_ids)[start : start + 500]
            query = (
                select(*columns)
                .select_from(LANES_OF_RUNS)
                .where(lanes.c.run_id.in_(some))
                .order_by(lanes.c.id)
            )
            for row in self._all(query):
                nothing = {"in_flight": 0, "retrying": 0}
                lane = {**row, **moving.get(row["id"], nothing), "held": _why_held(row)}
                grouped.setdefault(row["run_id"], []).append(lane)
        return grouped

    def _moving(self) -> dict[int, dict[str, int]]:
        """For each lane with entries that were tried and still wait: how many are in flight, how many retry."""
        flying = _in_flight(self.database.now())
        tried = and_(WAITING, entries.c.batch.is_not(None))
        query = (
            select(
                entries.c.lane_id,
                func.sum(case((flying, 1), else_=0)).label("in_flight"),
                func.sum(case((and_(~flying, entries.c.attempts > 0), 1), else_=0)).label("retrying"),
            )
            .join(lanes)
            .where(tried)
            .group_by(entries.c.lane_id)
        )
        return {
            row["lane_id"]: {"in_flight": int(row["in_flight"]), "retrying": int(row["retrying"])}
            for row in self._all(query)
        }

    def _all(self, query: Select[Any]) -> list[Mapping[str, Any]]:
        with self.database.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _scalar(self, query: Select[Any]) -> Any:
        with self.database.read() as connection:
            return connection.scalar(query)


# The runs that go on, owe something or have dead entries: each found in a partial index, past the thousands of others.
_DEAD = select(entries.c.lane_id).where(entries.c.state == literal_column("'dead'"))
_CONCERNED = union_all(
    select(runs.c.id).where(runs.c.state == literal_column(f"'{RunState.RUNNING}'")),
    select(lanes.c.run_id).where(OWING),
    select(lanes.c.run_id).where(lanes.c.id.in_(_DEAD)),
)


# What each run asks, most of them at its end.
_WAITS = case((NOT_HELD, 0), else_=lanes.c.pending)
_WAITS = case(
    (lanes.c.kind.in_([literal_column(f"'{kind}'") for kind in Kind]), _WAITS), else_=lanes.c.pending
)
_SUMS = [func.coalesce(func.sum(each), 0) for each in (lanes.c.pending, lanes.c.bytes, _WAITS)]
_ALL_OWED = select(*_SUMS).select_from(LANES_OF_RUNS).where(OWING)
_OWED = Prepared(_ALL_OWED)
_OWED_BY_RUN = Prepared(_ALL_OWED.where(lanes.c.run_id == bindparam("run")), ("run",))
_DEAD_BY_KIND = Prepared(
    select(lanes.c.kind, lanes.c.dead).where(lanes.c.run_id == bindparam("run"), lanes.c.dead > 0), ("run",)
)
_NEWEST_ENTRY = Prepared(select(func.max(entries.c.id)))


# What an idle worker asks twice a second.
@cache
def _next_due(kinds: tuple[Kind, ...]) -> Prepared:
    ready, due_at = due_among(kinds)
    return Prepared(select(func.min(due_at)).select_from(LANES_OF_RUNS).where(ready))


def _in_flight(now: datetime) -> Any:
    return and_(WAITING, entries.c.claim_token == lanes.c.lease_token, lanes.c.lease_until > now)


def _why_held(lane: Mapping[str, Any]) -> str | None:
    if lane["kind"] not in set(Kind):
        return (
            f"kind {lane['kind']!r} is unknown to this hubqueue; a newer one wrote it"
            if lane["pending"]
            else None
        )
    held: str | None = lane["run_held"] or lane["held"]
    return held
