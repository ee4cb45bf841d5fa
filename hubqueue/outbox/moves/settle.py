"""Settling: what the holder of a lease records about its attempt.

Promises: only the holder of the newest token may write (every method calls `_fence`, which raises `LeaseLost`
for a stale one); a batch is settled in one transaction with its counting, its lane and its history. That is a
transaction of its own, or the one given as `within`, in which the holder also claims the next batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, literal, update

from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import LeaseLost
from hubqueue.domain.lane import Lease
from hubqueue.domain.lifecycle import State
from hubqueue.domain.outcome import Remote, Scope
from hubqueue.outbox.database.database import Database
from hubqueue.outbox.database.prepared import Prepared, microseconds, plain_of
from hubqueue.outbox.database.schema import (
    EPOCH,
    RETURNED_BY,
    Moment,
    attempts,
    destinations,
    entries,
    lanes,
    runs,
)
from hubqueue.outbox.moves import remembered
from hubqueue.outbox.moves.batch import halves
from hubqueue.outbox.moves.counting import Moved, leaving
from hubqueue.outbox.moves.holds import Probing, hold_destination, lift, pass_on, postpone
from hubqueue.outbox.moves.readiness import TRIED, latest

_LOG = logging.getLogger("hubqueue")


class Settlement:
    """The moves of a lease holder."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def restamp(self, lease: Lease, started_at: datetime, grace: timedelta) -> None:
        """Stamp the spacing again: the request starts later than the claim assumed. Raises `LeaseLost`."""
        with self.database.write() as tx:
            self._fence(tx, lease, paced_until=started_at + grace + lease.pace)

    def renew(self, held: Iterable[Lease], until: datetime) -> None:
        """Prolong leases whose uploads are still running."""
        with self.database.write() as tx:
            for lease in held:
                mine = and_(
                    lanes.c.id == lease.lane_id,
                    lanes.c.lease_token == lease.token,
                    lanes.c.lease_until > EPOCH,
                )
                tx.execute(update(lanes).where(mine).values(lease_until=until))

    def note_progress(self, lease: Lease, progress: str | None) -> None:
        """Record how far the upload of a batch came; durable when this returns. Raises `LeaseLost`."""
        with self.database.write() as tx:
            self._fence(tx, lease, lease_token=lease.token)
            self._change(tx, lease, progress=progress)

    def ack(
        self, lease: Lease, *, started_at: datetime | None, remote: Remote, within: Connection | None = None
    ) -> Moved:
        """The hub has the batch: pending → delivered. What the response contained is written on the run."""
        with self.database.write(within) as tx:
            now = self.database.now()
            self._settle_lane(tx, lease, started_at, failures=0, last_error=None, retry_at=EPOCH)
            moved = self._leave(tx, lease, State.DELIVERED, None, now)
            mentioned = {
                runs.c.remote_id: remote.id,
                runs.c.url: remote.url,
                runs.c.cancelled: remote.cancelled or None,  # once cancelled, a run stays cancelled
                runs.c.last_beat_at: now if lease.batch.kind is Kind.HEARTBEAT else None,
            }
            news = {column: value for column, value in mentioned.items() if value is not None}
            if remote.remember:
                news |= self._remembered(lease, remote)
            if news:
                tx.execute(update(runs).where(runs.c.id == lease.batch.run.id).values(news))
            self._end_attempt(tx, lease, started_at, "delivered", None, now)
            return moved

    def retry(
        self,
        lease: Lease,
        *,
        at: datetime,
        reason: str,
        started_at: datetime | None,
        resumes_at: datetime | None = None,
        spread: timedelta = timedelta(0),
        within: Connection | None = None,
    ) -> None:
        """The batch stays in its lane until `at`; `resumes_at` makes every lane of the destination wait.

        After that moment they return one after another, within `spread`.
        """
        with self.database.write(within) as tx:
            self._settle_lane(
                tx, lease, started_at, failures=lease.failures + 1, last_error=reason, retry_at=at
            )
            self._change(tx, lease, reason=reason)
            if resumes_at is not None:
                later = and_(
                    destinations.c.name == lease.batch.run.destination, destinations.c.resumes_at < resumes_at
                )
                # A shorter wait does not bring those together that an earlier one has spread.
                by = latest(RETURNED_BY, literal(resumes_at + spread, Moment()))
                values = {destinations.c.resumes_at: resumes_at, RETURNED_BY: by}
                tx.execute(update(destinations).where(later).values(values))
            self._end_attempt(tx, lease, started_at, "retry", reason, self.database.now())

    def split(
        self, lease: Lease, *, reason: str, started_at: datetime | None, within: Connection | None = None
    ) -> None:
        """The batch was refused: split it into two batches."""
        entries_in = lease.batch.entries
        first, _ = halves(len(entries_in))
        second = [entry.id for entry in entries_in[first:]]
        with self.database.write(within) as tx:
            self._settle_lane(tx, lease, started_at, failures=0, last_error=reason, retry_at=EPOCH)
            # A token belongs to one claim only, so it and its negative are unique names for two batches.
            half = case((entries.c.id.in_(second), -lease.token), else_=lease.token)
            self._change(tx, lease, batch=half, reason=reason)
            self._end_attempt(tx, lease, started_at, "split", reason, self.database.now())

    def bury(
        self, lease: Lease, *, reason: str, started_at: datetime | None, within: Connection | None = None
    ) -> Moved:
        """The hub refused this entry: pending → dead. Its body is kept until a redrive or a cancel."""
        with self.database.write(within) as tx:
            now = self.database.now()
            self._settle_lane(tx, lease, started_at, failures=0, last_error=reason, retry_at=EPOCH)
            moved = self._leave(tx, lease, State.DEAD, reason, now)
            self._end_attempt(tx, lease, started_at, "dead", reason, now)
            return Moved(moved.count)

    def release(
        self,
        lease: Lease,
        *,
        reason: str,
        started_at: datetime | None,
        hold: Scope | None = None,
        probing: Probing | None = None,
        within: Connection | None = None,
    ) -> None:
        """End the lease and refund the attempt; `hold` stops the run or the destination with the reason."""
        with self.database.write(within) as tx:
            now, probing = self.database.now(), probing or Probing()
            error: dict[str, Any] = {"last_error": reason} if hold else {}
            if hold is Scope.RUN:
                again = lease.probe is not None and lease.probe.scope is Scope.RUN
                failures = lease.failures if again else 0
                error |= {"retry_at": now + probing.wait_after(failures), "failures": failures + 1}
            elif lease.probe is not None and hold is not None:
                error |= {"retry_at": now}  # the next probe is made by another lane
            self._settle_lane(tx, lease, started_at, **error)
            self._refund(tx, lease)
            if hold is Scope.RUN:
                tx.execute(update(runs).where(runs.c.id == lease.batch.run.id).values(held=reason))
            elif hold is Scope.DESTINATION:
                hold_destination(tx, lease, reason, now=now, probing=probing)
            self._end_attempt(tx, lease, started_at, "held" if hold else "released", reason, now)

    def still_held(
        self,
        lease: Lease,
        *,
        reason: str,
        at: datetime,
        started_at: datetime | None,
        asked: datetime | None = None,
        within: Connection | None = None,
    ) -> None:
        """A probe had another failure than the hold: the hold stays, and the attempt is refunded.

        A run's hold is probed again `at` that moment, a destination's when it was planned or when the hub `asked`. If nothing
        was sent, other lanes may probe from now on.
        """
        assert lease.probe is not None, "only a probe leaves a hold as it is"
        with self.database.write(within) as tx:
            now, of_run = self.database.now(), lease.probe.scope is Scope.RUN
            self._settle_lane(tx, lease, started_at, retry_at=at if of_run else now)
            self._refund(tx, lease)
            if asked is not None and not of_run:
                postpone(tx, lease.batch.run.destination, at=asked)
            if started_at is None:
                pass_on(tx, lease)
            self._end_attempt(tx, lease, started_at, "held", reason, now)

    def lift(self, lease: Lease, *, within: Connection | None = None) -> bool:
        """End the hold that this attempt has probed, in the transaction of its settle; False if it had ended already."""
        with self.database.write(within) as tx:
            return lift(tx, lease)

    def _refund(self, tx: Connection, lease: Lease) -> None:
        tx.execute(update(lanes).where(lanes.c.id == lease.lane_id).values(attempts=lanes.c.attempts - 1))
        self._change(tx, lease, attempts=entries.c.attempts - 1)

    def _remembered(self, lease: Lease, remote: Remote) -> dict[Any, Any]:
        run = lease.batch.run
        news = {name: value for name, value in remote.remember.items() if value is not None}
        if not remembered.is_room(run.remembered, news):
            _LOG.warning(
                "run %s: what %s has to remember of it is larger than the outbox keeps", run.id, run.label
            )
        return remembered.written(news)

    def _fence(self, tx: Connection, lease: Lease, **values: Any) -> None:
        """Update the lane, but only as the holder of its newest lease. Every settle calls this."""
        changes = {f"to_{name}": plain_of(value) for name, value in values.items()}
        if not _fenced(tuple(values)).run(tx, {**_held_by(lease), **changes}):
            raise LeaseLost(
                f"lane {lease.lane_id} was claimed again after token {lease.token}",
                hint="the new holder decides",
            )

    def _settle_lane(self, tx: Connection, lease: Lease, started_at: datetime | None, **values: Any) -> None:
        # The spacing counts from the real start of the request; a request that never started leaves it as it was.
        paced_until = lease.paced_until if started_at is None else started_at + lease.pace
        self._fence(tx, lease, lease_until=EPOCH, lease_worker=None, paced_until=paced_until, **values)

    def _leave(self, tx: Connection, lease: Lease, target: State, reason: str | None, now: datetime) -> Moved:
        move = {"state": str(target), "at": microseconds(now), "why": reason}
        rows = _LEAVE.run(tx, {**_held_by(lease), **move})
        return leaving(tx, lease.lane_id, target, rows)

    def _change(self, tx: Connection, lease: Lease, **values: Any) -> None:
        """Update the entries that the lease still holds: not those that a person has cancelled."""
        tx.execute(update(entries).where(_MINE).values(values), _held_by(lease))

    def _end_attempt(
        self,
        tx: Connection,
        lease: Lease,
        started_at: datetime | None,
        outcome: str,
        reason: str | None,
        now: datetime,
    ) -> None:
        ended = {"attempt": lease.attempt_id, "outcome": outcome, "why": reason}
        moments = {"started": plain_of(started_at), "ended": microseconds(now)}
        _END.run(tx, {**ended, **moments}, returns=False)


@cache
def _fenced(names: tuple[str, ...]) -> Prepared:
    """Updates these columns of a lane as the holder of a token."""
    mine = and_(lanes.c.id == bindparam("lane"), lanes.c.lease_token == bindparam("token"))
    values = {lanes.c[name]: bindparam(f"to_{name}", type_=lanes.c[name].type) for name in names}
    return Prepared(update(lanes).where(mine).values(values).returning(lanes.c.id))


_MINE = and_(TRIED, entries.c.claim_token == bindparam("token"))
_LEAVE = Prepared(
    update(entries)
    .where(_MINE)
    .values(
        state=bindparam("state"),
        settled_at=bindparam("at", type_=entries.c.settled_at.type),
        reason=bindparam("why"),
    )
    .returning(entries.c.size, entries.c.snapshot)
)
_END = Prepared(
    update(attempts)
    .where(attempts.c.id == bindparam("attempt"))
    .values(
        started_at=bindparam("started", type_=attempts.c.started_at.type),
        ended_at=bindparam("ended", type_=attempts.c.ended_at.type),
        outcome=bindparam("outcome"),
        reason=bindparam("why"),
    )
)


def _held_by(lease: Lease) -> dict[str, int]:
    return {"lane": lease.lane_id, "token": lease.token}
