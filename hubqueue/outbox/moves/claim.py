"""Claiming: a worker gets the right to send for a lane, and the batch to send.

Promises: one lease a lane, so a lane is ordered; an attempt is counted when it is claimed, so a crash counts; a
retry carries the same batch as before. After a lease that ended without a settle, the next claim takes over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    and_,
    bindparam,
    insert,
    literal_column,
    select,
    text,
    type_coerce,
    update,
)

from hubqueue.domain.budget import Budget
from hubqueue.domain.entry import Entry, Kind
from hubqueue.domain.lane import Batch, Lease, Probe, RunRef
from hubqueue.domain.outcome import Scope
from hubqueue.outbox.database.database import Database
from hubqueue.outbox.database.prepared import Prepared, first, microseconds
from hubqueue.outbox.database.schema import (
    EPOCH,
    Moment,
    attempts,
    budgets,
    destinations,
    lanes,
    moment_of,
    runs,
)
from hubqueue.outbox.moves import remembered
from hubqueue.outbox.moves.batch import idempotency_key
from hubqueue.outbox.moves.holds import Probing, begin_probe
from hubqueue.outbox.moves.picking import mark, pick, pick_checkpoint
from hubqueue.outbox.moves.readiness import LANES_OF_RUNS, due_among

_MICROSECOND = timedelta(microseconds=1)
START_GRACE = timedelta(seconds=1)
# The largest batch while others write, where the next claim may follow immediately (docs/decisions/0014-turns.md).
_MOST_BESIDE_OTHERS = 50


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a worker's claims: its id, the duration of a lease, and how much a request carries.

    `start_grace` is the longest time between a claim and the start of its request for which the spacing needs no
    new stamp (`Settlement.restamp`). `budget` is what the hub allows in a minute, `probing` when a hold is probed.
    `resumes_from_last` as the destination declares it.
    """

    worker: str
    lease: timedelta
    max_entries: int
    max_bytes: int
    start_grace: timedelta = START_GRACE
    budget: Budget = field(default_factory=Budget)
    probing: Probing = field(default_factory=Probing)
    resumes_from_last: bool = False


class Claims:
    """The moves that open a lease."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._seen: int | None = None

    def claim(
        self,
        destination: str,
        paces: Mapping[Kind, timedelta],
        terms: Terms,
        *,
        within: Connection | None = None,
    ) -> Lease | None:
        """Lease the lane that has been due longest among the kinds of `paces`; None when none is due.

        Heartbeats are claimed separately. The spacing of the lane is stamped now, in case this process dies right
        after the request starts. `within` is the transaction that settles the attempt before.
        """
        with self.database.write(within) as tx:
            now = self.database.now()
            asked = {"destination": destination, "now": microseconds(now)}
            lane = self._take(tx, _first_due(tuple(paces)).run(tx, asked), paces, terms, now)
            if lane is None:
                return None
            kind = Kind(lane.kind)
            if kind is Kind.CKPT:
                last = terms.resumes_from_last
                batch = pick_checkpoint(tx, lane.id, lane.failures, now, resumes_from_last=last)
            else:
                most = terms.max_entries if paces[kind] else self._most_entries(tx, terms.max_entries)
                batch = pick(tx, lane.id, kind, lane.failures, most, terms.max_bytes, now)
            return self._lease(tx, lane, batch, paces[kind], terms, now)

    def reclaim(self, dead_workers: Sequence[str]) -> int:
        """End the leases of dead workers before they expire. Returns how many."""
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
        before = _lane(candidates[0]) if candidates else None
        if before is None or not self._spend(tx, before, terms.budget, now):
            return None
        if before.held is not None and not begin_probe(
            tx, before.destination, again=_probes_again(before, terms, now), now=now
        ):
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
        if before.lease_worker is not None:
            # An earlier holder did not settle: the history records that.
            _LOST.run(tx, {**taken, "now": microseconds(now)}, returns=False)
        return before

    def _most_entries(self, tx: Connection, most: int) -> int:
        """How many entries to claim where the next request may follow immediately.

        A large batch needs fewer requests. While others write, each large batch would make them wait.
        """
        seen, self._seen = self._seen, self.database.version(tx)
        return most if seen == self._seen else min(most, _MOST_BESIDE_OTHERS)

    def _spend(self, tx: Connection, lane: _Lane, budget: Budget, now: datetime) -> bool:
        """Take the cost of a claim from every limit, or from none. False when another claim has just used one up."""
        taken: list[dict[str, Any]] = []
        for name, (allowance, count) in budget.costs(Kind(lane.kind)).items():
            used, since = (
                round(allowance.interval * count / _MICROSECOND),
                microseconds(now - allowance.saved),
            )
            asked = {"destination": lane.destination, "name": name, "used": used}
            if not _SPEND.run(tx, {**asked, "since": since, "now": microseconds(now), "spent": since + used}):
                for each in taken:
                    _GIVE_BACK.run(tx, each, returns=False)
                return False
            taken.append(asked)
        return True

    def _lease(
        self,
        tx: Connection,
        lane: _Lane,
        found: list[Entry],
        pace: timedelta,
        terms: Terms,
        now: datetime,
    ) -> Lease | None:
        token, kind = lane.lease_token + 1, Kind(lane.kind)
        if not found and kind is not Kind.HEARTBEAT:
            # Everything in the lane was outdated: there is nothing to send.
            tx.execute(
                update(lanes)
                .where(lanes.c.id == lane.id)
                .values(lease_until=EPOCH, paced_until=moment_of(lane.paced_until))
            )
            return None
        mark(tx, lane.id, token, found)
        known = remembered.read(*lane.remembered)
        of_run = (lane.run_id, lane.destination, lane.model, lane.remote_id)
        batch = Batch(
            run=RunRef(*of_run, known or {}, lane.label, damaged=known is None, name=lane.name or ""),
            kind=kind,
            entries=tuple(found),
            idempotency_key=idempotency_key(self.database.outbox_id, map(_content, found)),
        )
        history = {
            "lane_id": lane.id,
            "token": token,
            "worker": terms.worker,
            "entries": len(found),
            "first_key": found[0].key if found else None,
            "last_key": found[-1].key if found else None,
            "size": batch.size,
            "claimed_at": microseconds(now),
        }
        ((attempt_id,),) = _ATTEMPT.run(tx, history)
        return Lease(
            lane_id=lane.id,
            token=token,
            until=now + terms.lease,
            batch=batch,
            failures=lane.failures,
            attempts=max((entry.attempts for entry in found), default=0) + 1,
            attempt_id=attempt_id,
            claimed_at=now,
            pace=pace,
            paced_until=moment_of(lane.paced_until),
            probe=_probe(lane, terms, now),
        )


def _probe(lane: _Lane, terms: Terms, now: datetime) -> Probe | None:
    again = _probes_again(lane, terms, now)
    if lane.held is not None:
        return Probe(Scope.DESTINATION, lane.held, again)
    return None if lane.run_held is None else Probe(Scope.RUN, lane.run_held, again)


def _probes_again(lane: _Lane, terms: Terms, now: datetime) -> datetime:
    since = now if lane.held_at is None else moment_of(lane.held_at)
    return now + terms.probing.wait(now - since)


def _content(entry: Entry) -> tuple[object, ...]:
    # The checksum represents the payload, where there is one.
    content = entry.payload if entry.checksum is None else entry.checksum
    return entry.id, entry.enqueued_at, content, entry.snapshot and entry.snapshot.name


class _Lane(NamedTuple):
    """A lane before its claim, with its run."""

    id: int
    run_id: str
    kind: str
    lease_token: int
    lease_worker: str | None
    failures: int
    paced_until: int
    destination: str
    model: str
    remote_id: str | None
    name: str | None
    label: str
    run_held: str | None
    held: str | None
    held_at: int | None
    remembered: tuple[object, ...]


def _lane(row: tuple[Any, ...]) -> _Lane:
    split = len(row) - len(remembered.COLUMNS)
    return _Lane._make((*row[:split], row[split:]))


@cache
def _first_due(kinds: tuple[Kind, ...]) -> Prepared:
    ready, due_at = due_among(kinds)
    columns = [
        *lanes.c["id", "run_id", "kind", "lease_token", "lease_worker", "failures", "paced_until"],
        *runs.c["destination", "model", "remote_id", "name"],
        destinations.c.label,
        runs.c.held,
        *destinations.c["held", "held_at"],
        *remembered.COLUMNS,
    ]
    due = and_(ready, bindparam("now", type_=Moment()) >= due_at)
    query = (
        select(*columns).select_from(LANES_OF_RUNS).where(due).order_by(due_at, lanes.c.retry_at, lanes.c.id)
    )
    # Probes are due together: the lane whose last one is the oldest takes the next one.
    return Prepared(first(1, query).with_for_update(skip_locked=True, of=lanes))


# As text, because Core has a different upsert for each database.
_SPEND = Prepared(
    text("""
INSERT INTO budgets (destination, name, free_at) VALUES (:destination, :name, :spent)
ON CONFLICT (destination, name)
DO UPDATE SET free_at = CASE WHEN budgets.free_at > :since THEN budgets.free_at ELSE :since END + :used
 WHERE budgets.free_at <= :now
RETURNING free_at""")
)
# This transaction took it, so no other has seen it; unused time from longer ago is lost anyway.
_GIVE_BACK = Prepared(
    update(budgets)
    .where(budgets.c.destination == bindparam("destination"), budgets.c.name == bindparam("name"))
    .values(free_at=type_coerce(budgets.c.free_at, BigInteger) - bindparam("used", type_=BigInteger()))
)
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
_HISTORY = (*("lane_id", "token", "worker", "entries", "first_key", "last_key", "size", "claimed_at"),)
_ATTEMPT = Prepared(insert(attempts).returning(attempts.c.id), _HISTORY)
