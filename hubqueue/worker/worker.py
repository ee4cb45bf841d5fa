"""The worker: claims what is due and sends it, each attempt on a thread of its own.

Promises: checkpoints, heartbeats and small requests have separate thread pools for each destination, so a slow
upload or a silent hub delays nothing else. A lane is claimed only when a thread is free for it. After a stop
nothing new is claimed, uploads get a short grace, and every lease is handed back.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hubqueue.__about__ import __version__
from hubqueue.config.declaration import Attempt, Transport
from hubqueue.config.reader import DestinationSettings
from hubqueue.config.registry import declaration
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import HubqueueError, WorkerError
from hubqueue.domain.lane import Batch, Lease
from hubqueue.domain.outcome import Outcome
from hubqueue.outbox.locks import Lock
from hubqueue.outbox.moves.claim import START_GRACE, Terms
from hubqueue.outbox.moves.holds import Probing
from hubqueue.outbox.outbox import Outbox
from hubqueue.worker import events
from hubqueue.worker.delivery import Delivery
from hubqueue.worker.events import Emit
from hubqueue.worker.routes import Route, adopt, routes, waiting

if TYPE_CHECKING:
    from hubqueue.outbox.opened import Transaction

_LOG = logging.getLogger("hubqueue")
Connect = Callable[[Outbox, DestinationSettings], Transport]
"""Opens a transport that needs no key. Replaces the transport that the destination declares."""
# A probe of a lock holds it for less than this, in seconds.
_PROBE_SECONDS = 0.05
_LIGHT = (Kind.REGISTRATION, Kind.METRICS, Kind.EVENT, Kind.COMPLETION)


@dataclass(slots=True)
class _Pool:
    """The threads that may send at the same time for some kinds of one row of `destinations`."""

    destination: str
    paces: Mapping[Kind, timedelta]
    size: int
    terms: Terms
    sending: dict[int, Lease] = field(default_factory=dict)  # by the attempt's row in the history
    retired: bool = False  # its key is missing: no new attempts, running ones may end

    @property
    def free(self) -> int:
        return self.size - len(self.sending)


class _Reopened:
    """A transport that could not be opened: each attempt tries that again, and is over when it fails."""

    def __init__(self, open: Callable[[], Transport]) -> None:
        self._open = open

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        opened = self._open()
        try:
            return opened.send(batch, attempt)
        finally:
            _close(opened)  # an error there must not cost the outcome: what was sent would be sent again

    def check(self) -> Outcome:
        with closing(self._open()) as opened:
            return opened.check()

    def close(self) -> None:
        """Nothing is open."""


class Worker:
    """Sends what one outbox owes. `start` it, call `step` whenever something may be due, `stop` it.

    `emit` receives every fact. A sending thread calls `on_free` when it becomes free, so that the caller can
    step again.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        emit: Emit,
        on_free: Callable[[], None] | None = None,
        dial: Connect | None = None,
    ) -> None:
        self.id = secrets.token_hex(6)
        self._outbox = outbox
        self._emit = emit
        self._on_free = on_free or (lambda: None)
        self._lease = outbox.config.worker.lease
        self._lock = Lock(outbox.worker_lock(self.id))
        self._dial = dial
        self._rows = -1
        self._serving: dict[Path, Lock] = {}
        self._transports: dict[str, Transport] = {}
        self._delivery = Delivery(outbox, self._transports, emit, START_GRACE)
        self._pools: tuple[_Pool, ...] = ()
        self._state = threading.Condition()
        self._stopping = False
        self._abort = threading.Event()

    def start(self, *, only_one: bool = False) -> bool:
        """Register the worker and take the locks that prove that it is alive.

        With `only_one`, returns False and does nothing when other workers already serve all of its rows.
        """
        if not self._lock.try_acquire():
            raise WorkerError(f"worker {self.id} cannot take its lock", hint="hubqueue check finds out why")
        self._outbox.note_destinations()
        with Lock(self._outbox.home.locks / "serving.lock"):  # of two starting workers, one gets all locks
            self.scan()
        if only_one and not any(lock.held for lock in self._serving.values()):
            self._lock.release()
            return False
        self._outbox.registry.worker_started(
            self.id, pid=os.getpid(), host=socket.gethostname(), version=__version__
        )
        self._emit(events.WorkerStarted(self.id, os.getpid(), str(self._outbox.home.path)))
        return True

    def scan(self) -> bool:
        """Find the rows this worker may send for: new runs add rows, a login adds keys. True if they changed."""
        before = self.serves
        adopt(self._outbox)
        self._open_routes(routes(self._outbox, keyless=self._dial is not None))
        serves, waits = self._outbox.serving_lock, self._outbox.waiting_lock
        self._hold_locks({*map(serves, self._transports), *map(waits, waiting(self._outbox))})
        return self.serves != before

    @property
    def serves(self) -> frozenset[str]:
        """The rows of `destinations` that this worker sends for."""
        return frozenset(self._transports)

    def step(self) -> int:
        """Claim everything that is due and has a free thread. Returns the number of started attempts."""
        if self._outbox.addresses.count() != self._rows:
            self.scan()
        now = self._outbox.database.now()
        return sum(self._step_pool(pool, now) for pool in self._pools)

    def next_due(self) -> datetime | None:
        """When a pool with a free thread has something to send next; None when nothing is known to be due."""
        moments = [self._pool_due(pool) for pool in self._pools if pool.free and not pool.retired]
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def busy(self) -> int:
        """The number of running attempts."""
        with self._state:
            return sum(len(pool.sending) for pool in self._pools)

    def wait_free(self, timeout: float) -> bool:
        """Wait until no attempt is running, at most `timeout` seconds. True if none is."""
        with self._state:
            return self._state.wait_for(lambda: not any(pool.sending for pool in self._pools), timeout)

    def renew(self) -> None:
        """Extend the leases of the running attempts, and record that this worker is alive."""
        with self._state:
            held = [lease for pool in self._pools for lease in pool.sending.values()]
        if held:
            self._outbox.settlement.renew(held, self._outbox.database.now() + self._lease)
        self._outbox.registry.worker_seen(self.id)

    def stop(self, grace: timedelta | None = None, *, reason: str = "stopped") -> None:
        """Claim nothing more, give attempts `grace` to end, abort the rest, hand back what is left."""
        grace = self._outbox.config.worker.grace if grace is None else grace
        with self._state:
            self._stopping = True
        if not self.wait_free(grace.total_seconds()):
            self._abort.set()
            self.wait_free(5.0)
        self._abort.set()
        for transport in self._transports.values():
            _close(transport)
        for lock in self._serving.values():
            lock.release()
        try:
            self._outbox.claims.reclaim([self.id])
            self._outbox.registry.workers_left([self.id])
        except HubqueueError as error:
            self._emit(events.StorageTroubled(str(error)))  # the leases expire anyway
        self._lock.release()
        self._emit(events.WorkerStopped(self.id, reason))

    def abort(self) -> None:
        """Abort the running attempts now; `stop` hands their leases back."""
        self._abort.set()

    def _open_routes(self, found: list[Route]) -> None:
        """Open transports and pools for new routes; retire those without a route."""
        self._rows = self._outbox.addresses.count()
        wanted = {each.name: each for each in found}
        with self._state:
            for pool in self._pools:
                pool.retired = pool.destination not in wanted
            busy = {pool.destination for pool in self._pools if pool.sending}
            kept = [pool for pool in self._pools if pool.destination in busy or not pool.retired]
        for name in set(self._transports) - {pool.destination for pool in kept}:
            _close(self._transports.pop(name))
        for route in found:
            if route.name not in self._transports:
                self._transports[route.name] = self._connect(route)
                kept += _new_pools(route.name, route.settings, self._outbox, self.id)
        self._pools = tuple(kept)

    def _connect(self, route: Route) -> Transport:
        if self._dial is not None:
            return self._dial(self._outbox, route.settings)
        settings = route.settings
        open = partial(declaration(settings.type).open, settings, route.keys, self._outbox.spool.open)
        try:
            return open()
        except (Exception, SystemExit):  # code of a plugin: its runs wait, those of the others continue
            _LOG.exception("destination %s cannot be opened", settings.name)
            return _Reopened(open)

    def _hold_locks(self, paths: set[Path]) -> None:
        """Hold the locks that mark the served rows. A lock that another worker holds stays with it."""
        for path in self._serving.keys() - paths:
            self._serving.pop(path).release()
        for path in sorted(paths):
            lock = self._serving.get(path) or Lock(path)
            self._serving[path] = lock
            if not lock.held:
                lock.acquire(_PROBE_SECONDS)

    def _step_pool(self, pool: _Pool, now: datetime) -> int:
        started = 0
        while pool.free and not self._stopping and not pool.retired:
            # A read takes no lock. A claim takes one, and would delay the training's enqueues.
            due = self._pool_due(pool)
            if due is None or due > now:
                break
            lease = self._outbox.claims.claim(pool.destination, pool.paces, pool.terms)
            if lease is None:
                break
            self._begin(pool, lease)
            started += 1
        return started

    def _pool_due(self, pool: _Pool) -> datetime | None:
        return self._outbox.stats.next_due(pool.destination, list(pool.paces))

    def _begin(self, pool: _Pool, lease: Lease) -> None:
        name = f"hubqueue-{lease.batch.kind}-{lease.batch.run.id}"
        # Daemons, because a training process with a worker thread must be able to exit at any moment.
        thread = threading.Thread(target=self._attempt, args=(pool, lease), name=name, daemon=True)
        with self._state:
            pool.sending[lease.attempt_id] = lease
        try:
            thread.start()
        except RuntimeError:  # too many threads, or the interpreter ends (Python 3.12): this thread sends it
            self._attempt(pool, lease)

    def _attempt(self, pool: _Pool, first: Lease) -> None:
        lease = first
        try:
            while True:
                following = self._delivery.attempt(lease, self._abort, partial(self._follow, pool))
                if following is None:
                    break
                with self._state:
                    del pool.sending[lease.attempt_id]
                    pool.sending[following.attempt_id] = following
                lease = following
        finally:
            with self._state:
                del pool.sending[lease.attempt_id]
                self._state.notify_all()
            self._on_free()

    def _follow(self, pool: _Pool, tx: Transaction) -> Lease | None:
        """Claim what a thread sends next, in the settle's transaction: a backlog costs one transaction a request."""
        if self._stopping or pool.retired:
            return None
        return self._outbox.claims.claim(pool.destination, pool.paces, pool.terms, within=tx)


def _close(transport: Transport) -> None:
    try:
        transport.close()
    except Exception:  # code of a plugin: the other transports are still to be closed
        _LOG.exception("a transport cannot be closed")


def _new_pools(name: str, destination: DestinationSettings, outbox: Outbox, worker: str) -> list[_Pool]:
    settings, limits, retry = outbox.config.worker, destination.rate_limits, outbox.config.retry
    declared = declaration(destination.type)
    most = declared.most_epochs or settings.batch_entries
    budget = replace(destination.budget, per_claim=declared.costs)
    carried = (settings.lease, most, settings.batch_bytes)
    terms = Terms(
        worker,
        *carried,
        budget=budget,
        probing=Probing(retry.probe, retry.probe_cap),
        resumes_from_last=declared.resumes_from_last,
    )
    sizes = {
        _LIGHT: settings.light_threads,
        (Kind.CKPT,): settings.ckpt_threads,
        (Kind.HEARTBEAT,): settings.heartbeat_threads,
    }
    return [
        _Pool(name, {kind: limits.pace(kind) for kind in kinds}, size, terms) for kinds, size in sizes.items()
    ]
