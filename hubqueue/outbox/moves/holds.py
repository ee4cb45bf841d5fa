"""Holds: how they begin, how they probe themselves, how they end (decision 0026).

Promises one probe of a held destination at a time, among all workers and across restarts: the moment of the next one is
in its row (`PROBES_AT`) before the request of this one begins. Only a lane that has met the reason of a hold probes it:
its `last_error` is that reason. If no such lane is left, or the probe of one fails on this machine (its spool is away), all
that wait may probe. The wait doubles with the age of the hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    or_,
    select,
    type_coerce,
    update,
)

from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Lease
from hubqueue.domain.outcome import Scope
from hubqueue.outbox.database.prepared import Prepared, microseconds
from hubqueue.outbox.database.schema import EPOCH, PROBES_AT, Moment, destinations, lanes, runs
from hubqueue.outbox.moves.readiness import BEATING, LANES_OF_RUNS, OWING, READY


@dataclass(frozen=True, slots=True)
class Probing:
    """How long a hold waits before it is probed: `first`, then as long as it has lasted, at most `most`."""

    first: timedelta = timedelta(minutes=1)
    most: timedelta = timedelta(hours=1)

    def wait(self, lasted: timedelta) -> timedelta:
        """The wait before the next probe of a hold that has lasted `lasted`."""
        return min(max(lasted, self.first), self.most)

    def wait_after(self, failures: int) -> timedelta:
        """The wait before the next probe of a run's hold after `failures` probes without success."""
        doubled: timedelta = self.first * (1 << min(failures, 32))
        return min(doubled, self.most)


def begin_probe(tx: Connection, destination: str, *, again: datetime, now: datetime) -> bool:
    """Take the probe of a held destination, and plan the next one; False when another worker has taken it."""
    asked = {"destination": destination, "again": microseconds(again), "now": microseconds(now)}
    return bool(_PROBE.run(tx, asked))


def hold_destination(tx: Connection, lease: Lease, reason: str, *, now: datetime, probing: Probing) -> None:
    """Hold the destination of a lease; a probe that failed changes only the reason of its hold."""
    name = lease.batch.run.destination
    begins = and_(destinations.c.name == name, destinations.c.held.is_(None))
    values = {destinations.c.held: reason, destinations.c.held_at: now, PROBES_AT: now + probing.first}
    begun = tx.execute(update(destinations).where(begins).values(values))
    if begun.rowcount and lease.batch.kind is Kind.HEARTBEAT:
        # A heartbeat is due rarely, and never again when its run ends. It has met nothing that its run would not meet.
        _may_probe(tx, and_(lanes.c.run_id == lease.batch.run.id, OWING), reason)
    if not begun.rowcount and lease.probe is not None and lease.probe.scope is Scope.DESTINATION:
        tx.execute(update(destinations).where(destinations.c.name == name).values(held=reason))


def postpone(tx: Connection, destination: str, *, at: datetime) -> None:
    """Plan the next probe of a destination for another moment: the response to this one asked for it."""
    which = destinations.c.name == destination
    tx.execute(update(destinations).where(which).values({PROBES_AT: at}))


def lift(tx: Connection, lease: Lease) -> bool:
    """End the hold that a lease has probed; False when a person has ended it already."""
    run, probe = lease.batch.run, lease.probe
    if probe is None:
        return False
    if probe.scope is Scope.RUN:
        # Its other lanes that have met the reason need not wait for their own probes; those in flight settle themselves.
        met = and_(lanes.c.run_id == run.id, lanes.c.id != lease.lane_id, lanes.c.last_error == probe.reason)
        free = select(lanes.c.id).where(met).with_for_update(skip_locked=True)
        tx.execute(update(lanes).where(lanes.c.id.in_(free)).values(retry_at=EPOCH))
        held = and_(runs.c.id == run.id, runs.c.held.is_not(None))
        return bool(tx.execute(update(runs).where(held).values(held=None)).rowcount)
    which = and_(destinations.c.name == run.destination, destinations.c.held.is_not(None))
    return bool(tx.execute(update(destinations).where(which).values(held=None, held_at=None)).rowcount)


def _may_probe(tx: Connection, which: ColumnElement[bool], reason: Any) -> int:
    """Let these lanes probe a hold with this reason. Those that another worker is settling are left out."""
    free = select(lanes.c.id).where(which).with_for_update(skip_locked=True)
    return tx.execute(update(lanes).where(lanes.c.id.in_(free)).values(last_error=reason)).rowcount


def pass_on(tx: Connection, lease: Lease) -> None:
    """Let other lanes probe the hold of a lease, too: what prevented this probe may not prevent theirs."""
    run, probe = lease.batch.run, lease.probe
    assert probe is not None, "only a probe can be passed on"
    theirs = lanes.c.run_id == run.id
    if probe.scope is Scope.DESTINATION:
        theirs = lanes.c.run_id.in_(select(runs.c.id).where(runs.c.destination == run.destination))
    _may_probe(tx, and_(theirs, OWING), probe.reason)


def appoint(tx: Connection, now: datetime) -> int:
    """Let every waiting lane probe a hold where no lane that has met its reason can: it was cancelled, or its run ended.

    Returns how many lanes may probe now.
    """
    ready = or_(READY, BEATING)
    due = and_(destinations.c.held.is_not(None), now >= PROBES_AT)
    named = select(destinations.c.name).where(due)
    count = 0
    for name in tx.scalars(named).all():
        theirs = destinations.c.name == name
        if tx.scalar(select(lanes.c.id).select_from(LANES_OF_RUNS).where(theirs, ready).limit(1)) is None:
            reason = select(destinations.c.held).where(theirs).scalar_subquery()
            of_it = lanes.c.run_id.in_(select(runs.c.id).where(runs.c.destination == name))
            count += _may_probe(tx, and_(of_it, OWING), reason)
    held = select(runs.c.id).distinct().select_from(LANES_OF_RUNS).where(OWING, runs.c.held.is_not(None))
    for run_id in tx.scalars(held).all():
        # The other condition of a lane is the hold of its destination, which ends first.
        met = and_(lanes.c.run_id == run_id, OWING, lanes.c.last_error == runs.c.held)
        if tx.scalar(select(lanes.c.id).join(runs).where(met).limit(1)) is None:
            reason = select(runs.c.held).where(runs.c.id == run_id).scalar_subquery()
            count += _may_probe(tx, and_(lanes.c.run_id == run_id, OWING), reason)
    return count


def any_held(tx: Connection) -> bool:
    """Whether a lane that owes something is on hold. Reads only such lanes."""
    held = or_(runs.c.held.is_not(None), destinations.c.held.is_not(None))
    return tx.scalar(select(lanes.c.id).select_from(LANES_OF_RUNS).where(OWING, held).limit(1)) is not None


_PROBE = Prepared(
    update(destinations)
    .where(
        destinations.c.name == bindparam("destination"),
        destinations.c.held.is_not(None),
        type_coerce(PROBES_AT, BigInteger) <= bindparam("now", type_=BigInteger()),
    )
    .values({PROBES_AT: bindparam("again", type_=Moment())})
    .returning(destinations.c.name)
)
