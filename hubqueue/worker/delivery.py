"""One attempt, from the lease to the settle.

Promises: no transaction is open while bytes are sent. In every case the lease ends in exactly one settle, or
expires and is taken over. A surprise (a bug) costs a retry, never an entry. What the thread sends next is claimed
in the transaction of the settle. If the claim fails, the settle is repeated without it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, assert_never

from hubqueue.destinations.base import Attempt, Transport
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import (
    CredentialsError,
    HubqueueError,
    LeaseLost,
    OutboxDamaged,
    OutboxUnavailable,
    SpoolAway,
    SpoolError,
)
from hubqueue.domain.lane import Batch, Lease
from hubqueue.domain.outcome import Aborted, Blocked, Delivered, Outcome, Rejected, RetryLater, Scope
from hubqueue.domain.plain import is_intact
from hubqueue.outbox.moves.batch import SUSPECT_AFTER
from hubqueue.outbox.moves.counting import Moved
from hubqueue.outbox.moves.holds import Probing
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.spool.ballast import Ballast
from hubqueue.worker import events
from hubqueue.worker.backoff import next_attempt_at, spread_after
from hubqueue.worker.events import Emit

if TYPE_CHECKING:
    from hubqueue.outbox.opened import Transaction

_LOG = logging.getLogger("hubqueue.worker")
# In seconds: the pause before a settle that the disk refused is tried again.
_SETTLE_PAUSE = 1.0
# In bytes: before a larger upload probes a hold, the transport asks whether the key is accepted.
_LARGE_PROBE = 1_000_000

# How often the wait for a response doubles at most: a large checkpoint may be digested for an hour, metrics not.
_MOST_PATIENCE, _LITTLE_PATIENCE = {Kind.CKPT: 10}, 3

# Claims what a thread sends next, within the transaction that settles what it has sent.
Follow = Callable[["Transaction"], Lease | None]


class Delivery:
    """Carries out attempts for one worker."""

    def __init__(
        self, outbox: Outbox, transports: Mapping[str, Transport], emit: Emit, start_grace: timedelta
    ) -> None:
        self._outbox = outbox
        self._transports = transports
        self._emit = emit
        self._start_grace = start_grace
        retry = outbox.config.retry
        self._probing = Probing(retry.probe, retry.probe_cap)
        self._ballast = Ballast(outbox.home.ballast)

    def attempt(self, lease: Lease, stop: threading.Event, follow: Follow = lambda _tx: None) -> Lease | None:
        """Send the batch of a lease and settle the outcome. Returns the next lease, if `follow` claims one."""
        started: list[datetime] = []

        def on_start() -> None:
            if started:
                return  # an upload in several steps starts once
            now = self._outbox.database.now()
            if now > lease.claimed_at + self._start_grace:
                self._outbox.settlement.restamp(lease, now, self._start_grace)
            started.append(now)
            batch = lease.batch
            fact = events.AttemptStarted(
                batch.run.id, batch.kind, len(batch.entries), batch.size, lease.attempts
            )
            self._emit(fact)

        def on_bytes(sent: int) -> None:
            size = lease.batch.size  # of the files; the sent request adds headers and framing
            self._emit(events.UploadProgressed(lease.batch.run.id, lease.attempt_id, min(sent, size), size))

        try:
            note_progress = partial(self._outbox.settlement.note_progress, lease)
            attempt = Attempt(on_start, on_bytes, stop, note_progress, self._patience(lease))
            outcome = self._damaged(lease.batch) or self._send(lease, attempt)
            if not isinstance(outcome, Outcome):  # code of a plugin may return anything
                raise TypeError(f"a transport returned {type(outcome).__name__}, which is no outcome")
        except LeaseLost as lost:
            self._emit(events.SettleLost(lease.batch.run.id, lease.batch.kind, str(lost)))
            return None
        except OutboxUnavailable as error:
            outcome = RetryLater(f"storage trouble: {error}")
        except (Exception, SystemExit) as surprise:  # code of a plugin may raise that, too
            outcome = _failed(lease, surprise)
        started_at = started[0] if started else None
        try:
            facts, following = self._settle(lease, outcome, started_at, follow)
        except Exception:
            # The claim may have failed, and the outcome must not be lost with it. Any other error occurs again.
            facts, following = self._settle_alone(lease, outcome, started_at, stop), None
        for fact in facts:
            self._emit(fact)
        return following

    def _patience(self, lease: Lease) -> int:
        """How often the wait for a response is doubled: the hub may need longer for all that this lane sends."""
        kind = lease.batch.kind
        if kind is Kind.HEARTBEAT or not (lease.failures or kind is Kind.CKPT):
            return 0
        return min(self._outbox.stats.unanswered(lease.lane_id), _MOST_PATIENCE.get(kind, _LITTLE_PATIENCE))

    def _damaged(self, batch: Batch) -> Outcome | None:
        """Reject a damaged payload, and hold a run with damaged data, before a byte is sent."""
        if batch.run.damaged:
            what = f"what {batch.run.label} needs to know of the run was damaged in the outbox"
            return Blocked(what, Scope.RUN)
        damaged = [
            entry.id for entry in batch.entries if not is_intact(entry.key, entry.payload, entry.checksum)
        ]
        if damaged:
            return Rejected(f"the payload of entry {damaged[0]} was damaged in the outbox")
        return None

    def _send(self, lease: Lease, attempt: Attempt) -> Outcome:
        batch = lease.batch
        try:
            for entry in batch.entries:
                if entry.snapshot:
                    self._outbox.spool.look_at(entry.snapshot)
            transport = self._transports.get(batch.run.destination)
            if transport is None:
                return Aborted(f"the key for {batch.run.label} was removed")
            if lease.probe is not None and batch.size > _LARGE_PROBE:
                found = transport.check()
                if isinstance(found, Outcome) and not isinstance(found, Delivered):
                    return found
            return transport.send(batch, attempt)
        except SpoolAway as error:
            return RetryLater(str(error))
        except SpoolError as error:
            # Missing or altered: found now, or during the upload, which was then aborted before its last block.
            if self._outbox.config.outbox.url and not self._outbox.run_lock(batch.run.id).exists():
                return RetryLater(f"the spool of another home has it: {error}")
            return Rejected(str(error))
        except CredentialsError as error:
            return Blocked(str(error), Scope.DESTINATION)

    def _settle_alone(
        self, lease: Lease, outcome: Outcome, started_at: datetime | None, stop: threading.Event
    ) -> list[events.Fact]:
        """Settle and claim nothing. An outcome that no row can hold becomes a failed attempt."""
        try:
            return self._insist(lease, outcome, started_at, stop)
        except HubqueueError:
            raise
        except Exception as surprise:  # code of a plugin made it
            return self._insist(lease, _failed(lease, surprise), started_at, stop)

    def _insist(
        self, lease: Lease, outcome: Outcome, started_at: datetime | None, stop: threading.Event
    ) -> list[events.Fact]:
        """Settle. On a full disk, free the ballast, then try again until it works."""
        pause = threading.Event()
        while True:
            try:
                return self._settle(lease, outcome, started_at, lambda _tx: None)[0]
            except LeaseLost as lost:
                return [events.SettleLost(lease.batch.run.id, lease.batch.kind, str(lost))]
            except (OutboxUnavailable, OutboxDamaged) as error:  # an unreadable page may become readable
                self._emit(events.StorageTroubled(str(error)))
                if self._ballast.release():
                    continue
                if stop.is_set():
                    return []  # the lease expires, and the same batch is sent again with the same key
                pause.wait(_SETTLE_PAUSE)

    def _settle(
        self, lease: Lease, outcome: Outcome, started_at: datetime | None, follow: Follow
    ) -> tuple[list[events.Fact], Lease | None]:
        """Write the outcome and claim what follows. Returns the facts, which are now committed, and the lease."""
        with self._outbox.database.write() as tx:
            moved, facts = self._write(tx, lease, outcome, started_at)
            following = follow(tx)
        self._outbox.discard(moved)
        return facts, following

    def _write(
        self, tx: Transaction, lease: Lease, outcome: Outcome, started_at: datetime | None
    ) -> tuple[Moved, list[events.Fact]]:
        """Settle an outcome within a transaction. Returns what has moved, and the facts to emit."""
        moved, facts = self._write_outcome(tx, lease, outcome, started_at)
        if _answers(lease, outcome, started_at) and self._outbox.settlement.lift(lease, within=tx):
            facts.append(events.HoldLifted(_held_by(lease)))
        return moved, facts

    def _write_outcome(
        self, tx: Transaction, lease: Lease, outcome: Outcome, started_at: datetime | None
    ) -> tuple[Moved, list[events.Fact]]:
        batch, run_id, kind = lease.batch, lease.batch.run.id, lease.batch.kind
        settlement, now, nothing = self._outbox.settlement, self._outbox.database.now(), Moved(0)
        match outcome:
            case Delivered(remote):
                moved = settlement.ack(lease, started_at=started_at, remote=remote, within=tx)
                took = now - (started_at or lease.claimed_at)
                facts: list[events.Fact] = []
                if kind is Kind.HEARTBEAT:
                    facts.append(events.HeartbeatDelivered(run_id))
                else:
                    facts.append(events.BatchDelivered(run_id, kind, len(batch.entries), batch.size, took))
                if remote.id and remote.id != batch.run.remote_id:
                    facts.append(events.RunRegistered(run_id, remote.id, remote.url))
                if remote.cancelled:
                    facts.append(events.RunCancelled(run_id))
                return moved, facts
            case RetryLater(reason, after, scope):
                retry = self._outbox.config.retry
                at = next_attempt_at(lease.failures, now=now, retry=retry, asked=after)
                # The other lanes wait as long as the hub asked, not longer because of this lane's failures.
                others = next_attempt_at(0, now=now, retry=retry, asked=after)
                everywhere = others if scope is Scope.DESTINATION else None
                if lease.probe is not None:
                    asked = others if after is not None else None
                    settlement.still_held(
                        lease, reason=reason, at=at, started_at=started_at, asked=asked, within=tx
                    )
                    return nothing, [events.HoldProbed(_held_by(lease), reason)]
                if outcome.suspect and lease.attempts >= SUSPECT_AFTER and len(batch.entries) > 1:
                    settlement.split(lease, reason=reason, started_at=started_at, within=tx)
                    return nothing, [events.BatchSplit(run_id, kind, len(batch.entries), reason)]
                spread = spread_after(after, retry=retry)
                settlement.retry(
                    lease,
                    at=at,
                    reason=reason,
                    started_at=started_at,
                    resumes_at=everywhere,
                    spread=spread,
                    within=tx,
                )
                shown = self._outbox.database.to_wall(at)
                failed = events.AttemptFailed(
                    run_id, kind, len(batch.entries), reason, lease.failures + 1, shown
                )
                paused = []
                if everywhere:
                    until = self._outbox.database.to_wall(everywhere)
                    paused = [events.DestinationPaused(batch.run.label, until)]
                return nothing, [failed, *paused]
            case Rejected(reason) if len(batch.entries) > 1:
                settlement.split(lease, reason=reason, started_at=started_at, within=tx)
                return nothing, [events.BatchSplit(run_id, kind, len(batch.entries), reason)]
            case Rejected(reason):
                settlement.bury(lease, reason=reason, started_at=started_at, within=tx)
                return nothing, [
                    events.EntryBuried(run_id, kind, entry.id, entry.key, reason) for entry in batch.entries
                ]
            case Blocked(reason, scope):
                probing = self._probing
                settlement.release(
                    lease, reason=reason, started_at=started_at, hold=scope, probing=probing, within=tx
                )
                if lease.probe is not None and (lease.probe.scope, lease.probe.reason) == (scope, reason):
                    return nothing, [events.HoldProbed(_held_by(lease), reason)]
                what = f"run {run_id}" if scope is Scope.RUN else f"destination {batch.run.label}"
                return nothing, [events.Held(what, batch.run.label, reason)]
            case Aborted(reason):
                settlement.release(lease, reason=reason, started_at=started_at, within=tx)
                return nothing, [events.AttemptReleased(run_id, kind, reason)]
            case unknown:
                assert_never(unknown)


def _answers(lease: Lease, outcome: Outcome, started_at: datetime | None) -> bool:
    """Whether an attempt shows that the hold it has probed is over: the hub has received it, and judged it otherwise."""
    if lease.probe is None or started_at is None:
        return False  # what is refused on this machine says nothing of the hub
    other = isinstance(outcome, Blocked) and (lease.probe.scope, outcome.scope) == (
        Scope.DESTINATION,
        Scope.RUN,
    )
    return other or isinstance(outcome, Delivered | Rejected)


def _held_by(lease: Lease) -> str:
    run, probe = lease.batch.run, lease.probe
    return f"run {run.id}" if probe is not None and probe.scope is Scope.RUN else f"destination {run.label}"


def _failed(lease: Lease, surprise: BaseException) -> RetryLater:
    """The outcome of an attempt that met a defect, of hubqueue or of a plugin."""
    batch = lease.batch
    _LOG.error("run %s: an attempt at %s failed unexpectedly", batch.run.id, batch.kind, exc_info=surprise)
    return RetryLater(f"internal error: {type(surprise).__name__}")
