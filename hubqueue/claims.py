"""Claiming: a worker takes the right to send for a lane, and the batch to send.

Promises: one lease a lane, so a lane is ordered; an attempt is counted when it is claimed, so a crash counts; a
retry carries the batch it carried before. Where a lease ended without an answer, the next claim takes over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    true,
    type_coerce,
    update,
)

from hubqueue.batching import STUCK_AFTER, coalesce, idempotency_key
from hubqueue.budget import Budget
from hubqueue.database import Database
from hubqueue.drafts import FINAL_RANK
from hubqueue.entries import tally
from hubqueue.entry import Entry, Kind, Snapshot
from hubqueue.lane import Batch, Lease, RunRef
from hubqueue.lifecycle import State
from hubqueue.prepared import Prepared, microseconds
from hubqueue.readiness import (
    BEAT_DUE_AT,
    BEATING,
    DUE_AT,
    LANES_OF_RUNS,
    READY,
    WAITING,
    latest,
)
from hubqueue.schema import EPOCH, Moment, attempts, destinations, entries, lanes, moment_of, runs

_MICROSECOND = timedelta(microseconds=1)


START_GRACE = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a worker claims: its id, how long a lease lasts, and what fits into a request.

    `start_grace` is the time that may pass between a claim and the start of its request before the spacing has
    to be stamped anew (`Settlement.restamp`). `budget` is what the hub allows in a minute.
    """

    worker: str
    lease: timedelta
    max_entries: int
    max_bytes: int
    start_grace: timedelta = START_GRACE
    budget: Budget = field(default_factory=Budget)


class Claims:
    """The moves that open a lease."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, destination: str, paces: Mapping[Kind, timedelta], terms: Terms) -> Lease | None:
        """Lease the lane that has been due longest among the kinds of `paces`; None when none is due.

        The spacing of the lane is stamped for the case that this process dies right after the request starts.
        """
        with self.database.write() as tx:
            now = self.database.now()
            asked = {"destination": destination, "now": microseconds(now)}
            lane = self._take(tx, _first_due(tuple(paces)).run(tx, asked), paces, terms, now)
            if lane is None:
                return None
            batch = self._choose(tx, lane, terms)
            return self._lease(tx, lane, batch, paces[Kind(lane.kind)], terms, now)

    def claim_beat(self, run_id: str, pace: timedelta, terms: Terms) -> Lease | None:
        """Lease the heartbeat of a run; None when it is not due."""
        with self.database.write() as tx:
            now = self.database.now()
            asked = {"run": run_id, "now": microseconds(now)}
            lane = self._take(tx, _BEAT.run(tx, asked), {Kind.HEARTBEAT: pace}, terms, now)
            return None if lane is None else self._lease(tx, lane, [], pace, terms, now)

    def reclaim(self, dead_workers: Sequence[str]) -> int:
        """End the leases of workers that are gone, at once instead of when they run out; how many."""
        with self.database.write() as tx:
            left = and_(lanes.c.lease_worker.in_(dead_workers), lanes.c.lease_until > EPOCH)
            return tx.execute(update(lanes).where(left).values(lease_until=EPOCH)).rowcount

    # Claiming.

    def _take(
        self,
        tx: Connection,
        candidates: list[tuple[Any, ...]],
        paces: Mapping[Kind, timedelta],
        terms: Terms,
        now: datetime,
    ) -> _Lane | None:
        before = _Lane(*candidates[0]) if candidates else None
        if before is None or not self._spend(tx, before, terms.budget, now):
            return None
        taken = {
            "lane": before.id,
            "token": before.lease_token,
            "until": microseconds(now + terms.lease),
            "holder": terms.worker,
            "paced": microseconds(now + terms.start_grace + paces[Kind(before.kind)]),
        }
        if not _TAKE.run(tx, taken):
            return None
        # What an earlier holder left without an answer: the history says so, and whatever a newer entry has
        # replaced meanwhile does not go out again.
        _LOST.run(tx, {**taken, "now": microseconds(now)}, returns=False)
        self._drop_outdated(tx, before, now)
        return before

    def _spend(self, tx: Connection, lane: _Lane, budget: Budget, now: datetime) -> bool:
        """Take from the hub's budget; False when another claim has just emptied it."""
        for name, (allowance, count) in budget.costs(Kind(lane.kind)).items():
            free_at = destinations.c[f"{name}_free_at"]
            used = allowance.interval * count / _MICROSECOND
            since = latest(free_at, literal(now - allowance.saved, Moment()))
            taken = (
                update(destinations)
                .where(destinations.c.name == lane.destination, free_at <= now)
                .values({free_at: type_coerce(since, BigInteger) + literal_column(str(round(used)))})
            )
            if tx.execute(taken).rowcount == 0:
                return False
        return True

    def _drop_outdated(self, tx: Connection, lane: _Lane, now: datetime) -> None:
        drop = _DROP_OUTDATED if lane.kind == Kind.CKPT else _DROP_REPEATED
        gone = drop.run(tx, {"lane": lane.id, "at": microseconds(now)})
        if gone:
            tally(tx, lane.id, pending=-len(gone), superseded=len(gone), bytes=-sum(size for (size,) in gone))

    def _choose(self, tx: Connection, lane: _Lane, terms: Terms) -> list[Entry]:
        """The entries of the next request: the batch that was tried before, else the front of the line."""
        tried = _TRIED.run(tx, {"lane": lane.id})
        untried = 1 if lane.failures >= STUCK_AFTER else 0
        if tried and not (untried and _FRESH.run(tx, {"lane": lane.id, "limit": untried})):
            return [_entry(*row) for row in _BATCH.run(tx, {"lane": lane.id, "batch": tried[0][0]})]
        fresh = [_entry(*row) for row in _FRESH.run(tx, {"lane": lane.id, "limit": terms.max_entries + 1})]
        kind = Kind(lane.kind)
        return fresh[: coalesce(fresh, kind=kind, max_entries=terms.max_entries, max_bytes=terms.max_bytes)]

    def _lease(
        self,
        tx: Connection,
        lane: _Lane,
        batch: list[Entry],
        pace: timedelta,
        terms: Terms,
        now: datetime,
    ) -> Lease | None:
        token, kind = lane.lease_token + 1, Kind(lane.kind)
        if not batch and kind is not Kind.HEARTBEAT:
            # Everything in the lane was outdated: nothing to send after all.
            tx.execute(
                update(lanes)
                .where(lanes.c.id == lane.id)
                .values(lease_until=EPOCH, paced_until=moment_of(lane.paced_until))
            )
            return None
        ids = [entry.id for entry in batch]
        if ids:
            tx.execute(_CLAIMED, {"ids": ids, "token": token})
        history = {
            "lane_id": lane.id,
            "token": token,
            "worker": terms.worker,
            "entries": len(batch),
            "first_key": batch[0].key if batch else None,
            "last_key": batch[-1].key if batch else None,
            "size": sum(entry.size for entry in batch),
            "claimed_at": microseconds(now),
        }
        ((attempt_id,),) = _ATTEMPT.run(tx, history)
        told = {name: getattr(lane, name) for name in _TOLD}
        run = RunRef(lane.run_id, lane.destination, lane.model, **told)
        return Lease(
            lane_id=lane.id,
            token=token,
            until=now + terms.lease,
            batch=Batch(
                run=run,
                kind=kind,
                entries=tuple(batch),
                idempotency_key=idempotency_key(self.database.outbox_id, map(_content, batch)),
            ),
            failures=lane.failures,
            attempts=max((entry.attempts for entry in batch), default=0) + 1,
            attempt_id=attempt_id,
            claimed_at=now,
            pace=pace,
            paced_until=moment_of(lane.paced_until),
        )


# What the hub has told about a run, for its next requests.
_TOLD = ("remote_id", "agent_id", "remote_run", "remote_file")


def _content(entry: Entry) -> tuple[object, ...]:
    return entry.id, entry.enqueued_at.isoformat(), entry.payload, entry.snapshot and entry.snapshot.name


def _entry(
    id: int,
    key: str,
    payload: str,
    size: int,
    enqueued_at: int,
    snapshot: str | None,
    snapshot_size: int,
    snapshot_mtime_ns: int,
    snapshot_sha256: str | None,
    final: bool,
    *rest: Any,
) -> Entry:
    """An entry out of `_CARRIED`."""
    copy = Snapshot(snapshot, snapshot_size, snapshot_mtime_ns, snapshot_sha256) if snapshot else None
    return Entry(id, key, payload, size, moment_of(enqueued_at), copy, bool(final), *rest)


class _Lane(NamedTuple):
    """A lane before it is taken, with its run."""

    id: int
    run_id: str
    kind: str
    lease_token: int
    failures: int
    paced_until: int
    destination: str
    model: str
    remote_id: str | None
    agent_id: str | None
    remote_run: str | None
    remote_file: str | None


_NOW = bindparam("now", type_=Moment())


def _first(due: ColumnElement[bool], order: ColumnElement[Any]) -> Prepared:
    columns = [
        *(lanes.c[name] for name in ("id", "run_id", "kind", "lease_token", "failures", "paced_until")),
        *(runs.c[name] for name in ("destination", "model", *_TOLD)),
    ]
    query = select(*columns).select_from(LANES_OF_RUNS).where(due).order_by(order, lanes.c.id).limit(1)
    return Prepared(query.with_for_update(skip_locked=True, of=lanes))


@cache
def _first_due(kinds: tuple[Kind, ...]) -> Prepared:
    of_kinds = lanes.c.kind.in_([literal_column(f"'{kind}'") for kind in kinds])
    mine = destinations.c.name == bindparam("destination")
    return _first(and_(READY, mine, of_kinds, _NOW >= DUE_AT), DUE_AT)


_BEAT = _first(and_(BEATING, runs.c.id == bindparam("run"), _NOW >= BEAT_DUE_AT), BEAT_DUE_AT)
_TAKE = Prepared(
    update(lanes)
    .where(lanes.c.id == bindparam("lane"), lanes.c.lease_token == bindparam("token"))
    .values(
        lease_token=lanes.c.lease_token + literal_column("1"),
        lease_until=bindparam("until", type_=Moment()),
        lease_worker=bindparam("holder"),
        attempts=lanes.c.attempts + literal_column("1"),
        paced_until=bindparam("paced", type_=Moment()),
    )
    .returning(lanes.c.id)
)
_LOST = Prepared(
    update(attempts)
    .where(
        attempts.c.lane_id == bindparam("lane"),
        attempts.c.token == bindparam("token"),
        attempts.c.outcome.is_(None),
    )
    .values(
        outcome=literal_column("'lost'"),
        ended_at=bindparam("now", type_=Moment()),
        reason=literal_column("'the worker was gone'"),
    )
)
_CLAIMED = (
    update(entries)
    .where(entries.c.id.in_(bindparam("ids", expanding=True)))
    .values(
        claim_token=bindparam("token"),
        attempts=entries.c.attempts + literal_column("1"),
        batch=func.coalesce(entries.c.batch, bindparam("token")),
    )
)
_HISTORY = (*("lane_id", "token", "worker", "entries", "first_key", "last_key", "size", "claimed_at"),)
_ATTEMPT = Prepared(insert(attempts).returning(attempts.c.id), _HISTORY)
_CARRIED = [
    entries.c[name]
    for name in (
        *("id", "key", "payload", "size", "enqueued_at"),
        *("snapshot", "snapshot_size", "snapshot_mtime_ns", "snapshot_sha256"),
        *("final", "attempts", "progress", "checksum"),
    )
]
_FRESH = Prepared(
    select(*_CARRIED)
    .where(entries.c.lane_id == bindparam("lane"), WAITING, entries.c.batch.is_(None))
    .order_by(entries.c.rank, entries.c.id)
    .limit(bindparam("limit"))
)
_IS_TRIED = and_(entries.c.lane_id == bindparam("lane"), WAITING, entries.c.batch.is_not(None))
# The least tried batch first, so that one which fails again and again lets the others pass.
_TRIED = Prepared(
    select(entries.c.batch)
    .where(_IS_TRIED)
    .order_by(entries.c.attempts, entries.c.rank, entries.c.id)
    .limit(1)
)
_BATCH = Prepared(
    select(*_CARRIED)
    .where(entries.c.lane_id == bindparam("lane"), WAITING, entries.c.batch == bindparam("batch"))
    .order_by(entries.c.rank, entries.c.id)
)
_newer = entries.alias("newer")
_NEWER_WAITS = and_(
    _newer.c.lane_id == entries.c.lane_id, _newer.c.state == WAITING.right, _newer.c.id > entries.c.id
)
_REPEATED = exists().where(_NEWER_WAITS, _newer.c.key == entries.c.key)
_A_FINAL_ONE_WAITS = exists().where(
    _NEWER_WAITS, _newer.c.rank == literal_column(str(FINAL_RANK)), _newer.c.final.is_(true())
)


def _drop(outdated: ColumnElement[bool]) -> Prepared:
    gone = update(entries).where(_IS_TRIED, outdated)
    told = {
        "state": literal_column(f"'{State.SUPERSEDED}'"),
        "settled_at": bindparam("at", type_=entries.c.settled_at.type),
        "reason": literal_column("'a newer one was enqueued'"),
    }
    return Prepared(gone.values(told).returning(entries.c.size))


# Checkpoints: few of them wait. Of all else any number may, and a newer one has the rank of its place (see `Draft.ranks`).
_DROP_OUTDATED = _drop(or_(_REPEATED, _A_FINAL_ONE_WAITS))
_DROP_REPEATED = _drop(_REPEATED.where(_newer.c.rank == entries.c.rank))
