"""The worker: claims what is due and sends it, each attempt on a thread of its own.

Promises: checkpoints, heartbeats and the small requests have separate crews for each destination, so that a
slow upload or a silent hub delays nobody else; a lane is claimed only when a thread is free for it; stopping
claims nothing new, gives uploads a short grace and hands every lease back.
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
from hubqueue.outbox.outbox import Outbox
from hubqueue.worker import events
from hubqueue.worker.delivery import Delivery
from hubqueue.worker.events import Emit
from hubqueue.worker.routes import Route, adopt, routes, waiting

if TYPE_CHECKING:
    from hubqueue.outbox.opened import Transaction

_LOG = logging.getLogger("hubqueue")
Connect = Callable[[Outbox, DestinationSettings], Transport]
"""Opens a transport that needs no key of ours, in place of that of its declaration."""
# A look at whether a lock is held takes it for less than this, in seconds.
_INSTANT = 0.05
_LIGHT = (Kind.REGISTRATION, Kind.METRICS, Kind.EVENT, Kind.COMPLETION)


@dataclass(slots=True)
class _Crew:
    """The threads that may send at once for some kinds of one row of `destinations`."""

    destination: str
    paces: Mapping[Kind, timedelta]
    size: int
    terms: Terms
    at_work: dict[int, Lease] = field(default_factory=dict)  # by the attempt's row in the history
    retired: bool = False  # its key has gone; what is under way ends

    @property
    def free(self) -> int:
        return self.size - len(self.at_work)


class _Reopened:
    """A transport that could not be opened: each attempt tries that again, and is over when it fails."""

    def __init__(self, open: Callable[[], Transport]) -> None:
        self._open = open

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        with closing(self._open()) as opened:
            return opened.send(batch, attempt)

    def check(self) -> Outcome:
        with closing(self._open()) as opened:
            return opened.check()

    def close(self) -> None:
        """Nothing is open."""


class Worker:
    """Sends what one outbox owes. `start` it, call `step` whenever something may be due, `stop` it.

    `emit` hears every fact; `on_free` is called from the sending threads whenever one becomes free, so that the
    caller can step again.
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
        self._crews: tuple[_Crew, ...] = ()
        self._state = threading.Condition()
        self._stopping = False
        self._abort = threading.Event()

    def start(self, *, only_one: bool = False) -> bool:
        """Put the worker on the list and take the locks that prove that it lives.

        False, and nothing is done, if it is to be the `only_one` and others are at work for all that it could send.
        """
        if not self._lock.try_acquire():
            raise WorkerError(f"worker {self.id} cannot take its lock", hint="hubqueue check finds out why")
        self._outbox.note_destinations()
        with Lock(self._outbox.home.locks / "serving.lock"):  # of two that start now, one gets all of them
            self.look_around()
        if only_one and not any(lock.held for lock in self._serving.values()):
            self._lock.release()
            return False
        self._outbox.registry.worker_started(
            self.id, pid=os.getpid(), host=socket.gethostname(), version=__version__
        )
        self._emit(events.WorkerStarted(self.id, os.getpid(), str(self._outbox.home.path)))
        return True

    def look_around(self) -> bool:
        """Find out which runs this worker may send for: rows come with new runs, keys with a login. Whether it is news."""
        before = self.serves
        adopt(self._outbox)
        self._take(routes(self._outbox, keyless=self._dial is not None))
        serves, waits = self._outbox.serving_lock, self._outbox.waiting_lock
        self._hold({*map(serves, self._transports), *map(waits, waiting(self._outbox))})
        return self.serves != before

    @property
    def serves(self) -> frozenset[str]:
        """The rows of `destinations` that this worker sends for."""
        return frozenset(self._transports)

    def step(self) -> int:
        """Claim everything that is due and has a free thread; how many attempts were started."""
        if self._outbox.addresses.count() != self._rows:
            self.look_around()
        now = self._outbox.database.now()
        return sum(self._step_crew(crew, now) for crew in self._crews)

    def next_due(self) -> datetime | None:
        """When a crew with a free thread has something to send next; None when nobody knows of anything."""
        moments = [self._crew_due(crew) for crew in self._crews if crew.free and not crew.retired]
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def busy(self) -> int:
        """How many attempts are under way."""
        with self._state:
            return sum(len(crew.at_work) for crew in self._crews)

    def wait_free(self, timeout: float) -> bool:
        """Wait until no attempt is under way, at most `timeout` seconds."""
        with self._state:
            return self._state.wait_for(lambda: not any(crew.at_work for crew in self._crews), timeout)

    def renew(self) -> None:
        """Prolong the leases of the attempts under way, and say that this worker is at work."""
        with self._state:
            held = [lease for crew in self._crews for lease in crew.at_work.values()]
        if held:
            self._outbox.settlement.renew(held, self._outbox.database.now() + self._lease)
        self._outbox.registry.worker_seen(self.id)

    def stop(self, grace: timedelta | None = None, *, reason: str = "stopped") -> None:
        """Claim nothing more, let attempts end for `grace`, abort the rest, hand back what is left."""
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
            self._emit(events.StorageTroubled(str(error)))  # the leases run out by themselves
        self._lock.release()
        self._emit(events.WorkerStopped(self.id, reason))

    def abort(self) -> None:
        """End the attempts under way now; `stop` hands their leases back."""
        self._abort.set()

    def _take(self, found: list[Route]) -> None:
        """Open what is new, let go of what is not ours any more."""
        self._rows = self._outbox.addresses.count()
        wanted = {each.name: each for each in found}
        with self._state:
            for crew in self._crews:
                crew.retired = crew.destination not in wanted
            busy = {crew.destination for crew in self._crews if crew.at_work}
            kept = [crew for crew in self._crews if crew.destination in busy or not crew.retired]
        for name in set(self._transports) - {crew.destination for crew in kept}:
            _close(self._transports.pop(name))
        for route in found:
            if route.name not in self._transports:
                self._transports[route.name] = self._connect(route)
                kept += _crews(route.name, route.settings, self._outbox, self.id)
        self._crews = tuple(kept)

    def _connect(self, route: Route) -> Transport:
        if self._dial is not None:
            return self._dial(self._outbox, route.settings)
        settings = route.settings
        open = partial(declaration(settings.type).open, settings, route.keys, self._outbox.spool.open)
        try:
            return open()
        except Exception:  # a stranger's code: its runs wait, and those of the others go on
            _LOG.exception("destination %s cannot be opened", settings.name)
            return _Reopened(open)

    def _hold(self, paths: set[Path]) -> None:
        """Say for which rows somebody is at work. Where another worker says so already, it stays the one."""
        for path in self._serving.keys() - paths:
            self._serving.pop(path).release()
        for path in sorted(paths):
            lock = self._serving.get(path) or Lock(path)
            self._serving[path] = lock
            if not lock.held:
                lock.acquire(_INSTANT)

    def _step_crew(self, crew: _Crew, now: datetime) -> int:
        started = 0
        while crew.free and not self._stopping and not crew.retired:
            # A look costs no lock; a claim does, and would stand in the way of the training's enqueues.
            due = self._crew_due(crew)
            if due is None or due > now:
                break
            lease = self._outbox.claims.claim(crew.destination, crew.paces, crew.terms)
            if lease is None:
                break
            self._begin(crew, lease)
            started += 1
        return started

    def _crew_due(self, crew: _Crew) -> datetime | None:
        return self._outbox.stats.next_due(crew.destination, list(crew.paces))

    def _begin(self, crew: _Crew, lease: Lease) -> None:
        name = f"hubqueue-{lease.batch.kind}-{lease.batch.run.id}"
        # Daemons, because a training process that holds a worker thread must be free to exit at any moment.
        thread = threading.Thread(target=self._attempt, args=(crew, lease), name=name, daemon=True)
        with self._state:
            crew.at_work[lease.attempt_id] = lease
        thread.start()

    def _attempt(self, crew: _Crew, first: Lease) -> None:
        lease = first
        try:
            while True:
                following = self._delivery.attempt(lease, self._abort, partial(self._follow, crew))
                if following is None:
                    break
                with self._state:
                    del crew.at_work[lease.attempt_id]
                    crew.at_work[following.attempt_id] = following
                lease = following
        finally:
            with self._state:
                del crew.at_work[lease.attempt_id]
                self._state.notify_all()
            self._on_free()

    def _follow(self, crew: _Crew, tx: Transaction) -> Lease | None:
        """What a thread sends next, claimed with the settle: a long line costs one transaction a request."""
        if self._stopping or crew.retired:
            return None
        return self._outbox.claims.claim(crew.destination, crew.paces, crew.terms, within=tx)


def _close(transport: Transport) -> None:
    try:
        transport.close()
    except Exception:  # a stranger's code; what is left to do is not its business
        _LOG.exception("a transport cannot be closed")


def _crews(name: str, destination: DestinationSettings, outbox: Outbox, worker: str) -> list[_Crew]:
    settings, limits = outbox.config.worker, destination.rate_limits
    declared = declaration(destination.type)
    most = declared.most_epochs or settings.batch_entries
    budget = replace(destination.budget, per_claim=declared.costs)
    terms = Terms(worker, settings.lease, most, settings.batch_bytes, budget=budget)
    sizes = {
        _LIGHT: settings.light_threads,
        (Kind.CKPT,): settings.ckpt_threads,
        (Kind.HEARTBEAT,): settings.heartbeat_threads,
    }
    return [
        _Crew(name, {kind: limits.pace(kind) for kind in kinds}, size, terms) for kinds, size in sizes.items()
    ]
