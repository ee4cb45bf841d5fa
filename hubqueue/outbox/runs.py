"""Queries for people and tools: the runs with their lanes, the entries, the attempts, and whether the counts are right.

Reads change nothing and lock nothing. Kinds and states are returned as they are in the database: a kind that a newer
hubqueue wrote is shown, with the reason why it waits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Select,
    and_,
    case,
    exists,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
)

from hubqueue.domain.entry import Kind, Snapshot
from hubqueue.domain.lifecycle import RunState, State
from hubqueue.domain.outcome import FOREIGN, UNANSWERED
from hubqueue.outbox.database.database import Database
from hubqueue.outbox.database.schema import attempts, destinations, entries, lanes, runs, workers
from hubqueue.outbox.moves.readiness import (
    BEAT_DUE_AT,
    BEATING,
    DUE_AT,
    LANES_OF_RUNS,
    OWING,
    READY,
    WAITING,
)
from hubqueue.outbox.trainings import IN_TURN, RunIds, among, side_by_side

OF_DESTINATION = (
    destinations.c.label,
    destinations.c.type,
    destinations.c.url.label("address"),
    destinations.c.account,
    destinations.c.held.label("destination_held"),
)
_NEWEST = 500
_LATEST = 10
_RETRIED = "retry"
COUNTED = ("enqueued", "pending", "delivered", "dead", "superseded", "cancelled")


class Survey:
    """The queries of status, check and the reading commands."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def destinations(self) -> list[Mapping[str, Any]]:
        """All rows of destinations with their holds, and whether `runs` belong to each."""
        used = exists().where(runs.c.destination == destinations.c.name).label("runs")
        return self._all(select(destinations, used).order_by(destinations.c.name))

    def owed_by_destination(self) -> dict[str, int]:
        """How many entries wait for each row of destinations."""
        query = select(destinations.c.name, func.sum(lanes.c.pending).label("waiting"))
        query = query.select_from(LANES_OF_RUNS).where(OWING).group_by(destinations.c.name)
        return {row["name"]: int(row["waiting"]) for row in self._all(query)}

    def unsaved(self, run_id: RunIds = None) -> int:
        """How many metrics and checkpoints could not be saved, of some runs or of all."""
        which = among(runs.c.id, run_id)
        return int(self._scalar(select(func.coalesce(func.sum(runs.c.unsaved), 0)).where(which)) or 0)

    def together(self, run_id: str) -> list[str]:
        """The ids of the runs of one training, one for each of its destinations, the first one first."""
        common = select(runs.c.together).where(runs.c.id == run_id).scalar_subquery()
        query = select(runs.c.id).where(or_(runs.c.id == run_id, runs.c.together == common))
        with self.database.read() as connection:
            return list(connection.scalars(query.order_by(*IN_TURN)))

    def failing(self, destination: str) -> tuple[datetime | None, str | None]:
        """Since when no attempt at a destination has succeeded (None: the last one did), and why the last one failed.

        Only the newest attempts are read: a longer outage is reported only as far back as they reach.
        """
        newest = select(attempts).order_by(attempts.c.id.desc()).limit(_NEWEST).subquery()
        ended = (
            select(newest.c.ended_at, newest.c.outcome, newest.c.reason)
            .join(lanes, lanes.c.id == newest.c.lane_id)
            .join(runs, runs.c.id == lanes.c.run_id)
            .where(runs.c.destination == destination, newest.c.ended_at.is_not(None))
            .order_by(newest.c.id.desc())
        )
        since, reason = None, None
        for row in self._all(ended):
            if row["outcome"] != _RETRIED:
                break
            since, reason = row["ended_at"], reason or row["reason"]
        return since, reason

    def unanswered(self, lane_id: int) -> int:
        """How many of the newest ten attempts of a lane sent a whole request and got no response in time."""
        newest = select(attempts.c.reason).where(attempts.c.lane_id == lane_id)
        latest = newest.order_by(attempts.c.token.desc()).limit(_LATEST).subquery()
        query = select(func.count()).where(latest.c.reason.contains(UNANSWERED))
        return int(self._scalar(query) or 0)

    def stuck(self, least: int) -> list[Mapping[str, Any]]:
        """The lanes with entries that were tried `least` times or more, the last time without a response of the hub.

        For each: run, kind, destination, how many entries, the most attempts, and one of the reasons.
        """
        tried = and_(WAITING, entries.c.batch.is_not(None), entries.c.attempts >= least)
        query = select(
            lanes.c.run_id,
            lanes.c.kind,
            func.count().label("entries"),
            func.max(entries.c.attempts).label("attempts"),
            func.max(entries.c.reason).label("reason"),
        ).join(lanes)
        query = query.where(tried, entries.c.reason.contains(FOREIGN)).group_by(lanes.c.run_id, lanes.c.kind)
        return self._all(query.order_by(lanes.c.run_id, lanes.c.kind))

    def workers(self) -> list[Mapping[str, Any]]:
        """The workers on the list, newest first. Their locks say whether they live."""
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

    def runs(self, *, run_id: RunIds = None, finished: int | None = 10) -> list[dict[str, Any]]:
        """Runs, newest first, each with its `lanes`. Those of one training follow each other.

        Without `run_id`: every run that is running, owes something or has dead entries, and the `finished` newest
        of the others (None: all of them), with the other runs of their trainings.
        """
        query = select(runs, *OF_DESTINATION).join(destinations).order_by(runs.c.created_at.desc(), runs.c.id)
        if run_id is not None:
            found = self._all(query.where(among(runs.c.id, run_id)))
        elif finished is None:
            found = self._all(query)
        else:
            found = self._all(query.where(runs.c.id.in_(_CONCERNED)))
            others = query.where(runs.c.id.not_in([row["id"] for row in found]))
            found += self._all(others.limit(finished))
            common = {row["together"] for row in found if row["together"]}
            if common:
                known = [row["id"] for row in found]
                found += self._all(query.where(runs.c.together.in_(common), runs.c.id.not_in(known)))
            found.sort(key=lambda row: row["created_at"], reverse=True)
        found = side_by_side(found)
        lanes_of = self._lanes([row["id"] for row in found])
        return [{**row, "lanes": lanes_of.get(row["id"], [])} for row in found]

    def called(self) -> list[Mapping[str, Any]]:
        """What each run is called, newest first: id, name, remote id, model, first run of its training, destination."""
        columns = runs.c["id", "name", "remote_id", "model", "together"]
        query = select(*columns, destinations.c.label).join(destinations)
        return self._all(query.order_by(runs.c.created_at.desc(), runs.c.id))

    def entries(
        self,
        *,
        state: State | None = None,
        run_id: RunIds = None,
        kind: str | None = None,
        ids: Collection[int] | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Entries, newest first, with the kind and the run of their lane; the payload is left out."""
        columns = [column for column in entries.c if column.name != "payload"]
        query = select(
            *columns, lanes.c.run_id, lanes.c.kind, _in_flight(self.database.now()).label("in_flight")
        ).join(lanes)
        for value, column in ((state, entries.c.state), (kind, lanes.c.kind)):
            if value is not None:
                query = query.where(column == value)
        if run_id is not None:
            query = query.where(among(lanes.c.run_id, run_id))
        if ids is not None:
            query = query.where(entries.c.id.in_(ids))
        return [dict(row) for row in self._all(query.order_by(entries.c.id.desc()).limit(limit))]

    def payload(self, entry_id: int) -> str | None:
        """The payload of an entry, as JSON text."""
        found: str | None = self._scalar(select(entries.c.payload).where(entries.c.id == entry_id))
        return found

    def payloads(self, state: State) -> Iterator[tuple[int, str, str, int | None]]:
        """The entries in a state: id, key, payload and checksum."""
        columns = (entries.c.id, entries.c.key, entries.c.payload, entries.c.checksum)
        for row in self._all(select(*columns).where(entries.c.state == state)):
            yield row["id"], row["key"], row["payload"], row["checksum"]

    def snapshots(self, state: State) -> Iterator[tuple[int, Snapshot]]:
        """The entries in a state that have a snapshot: id and snapshot."""
        named = ("snapshot", "snapshot_size", "snapshot_mtime_ns", "snapshot_sha256")
        query = select(entries).where(entries.c.state == state, entries.c.snapshot.is_not(None))
        for row in self._all(query):
            yield row["id"], Snapshot(*(row[name] for name in named))

    def snapshots_owed(self) -> list[str]:
        """The names of the snapshots of entries that are pending or dead."""
        owed = entries.c.state.in_([State.PENDING, State.DEAD])
        with self.database.read() as connection:
            return list(
                connection.scalars(select(entries.c.snapshot).where(entries.c.snapshot.is_not(None), owed))
            )

    def attempts(
        self, *, run_id: RunIds = None, entry_id: int | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """The history of attempts, newest first."""
        query = select(attempts, lanes.c.run_id, lanes.c.kind).join(lanes)
        if run_id is not None:
            query = query.where(among(lanes.c.run_id, run_id))
        if entry_id is not None:
            of_entry = select(entries.c.lane_id).where(entries.c.id == entry_id).scalar_subquery()
            last = select(entries.c.claim_token).where(entries.c.id == entry_id).scalar_subquery()
            query = query.where(attempts.c.lane_id == of_entry, attempts.c.token == last)
        return [dict(row) for row in self._all(query.order_by(attempts.c.id.desc()).limit(limit))]

    def miscounted(self) -> list[str]:
        """Lanes whose counters disagree with their rows (pending, dead), or whose `owing` is wrong.

        Empty, unless the file was tampered with.
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
        """For each lane with entries that were tried and still wait: how many are in flight, and how many retry."""
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


# The runs that are running, owe something or have dead entries: partial indexes find them among thousands of others.
_DEAD = select(entries.c.lane_id).where(entries.c.state == literal_column("'dead'"))
_CONCERNED = union_all(
    select(runs.c.id).where(runs.c.state == literal_column(f"'{RunState.RUNNING}'")),
    select(lanes.c.run_id).where(OWING),
    select(lanes.c.run_id).where(lanes.c.id.in_(_DEAD)),
)


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
