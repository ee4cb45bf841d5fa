"""A run's place in its outbox: opened and registered as soon as that succeeds, and anew after damage."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from hubqueue.config.home import Home
from hubqueue.config.reader import Config, DestinationSettings
from hubqueue.domain.clock import Clock
from hubqueue.domain.errors import HubqueueError, OutboxDamaged
from hubqueue.domain.identifier import Identifier
from hubqueue.outbox.locks import Lock
from hubqueue.outbox.moves.registry import new_run_id
from hubqueue.outbox.outbox import Outbox, replace_damaged
from hubqueue.producer.announcement import announce
from hubqueue.producer.intake import open_run
from hubqueue.producer.sharing import SHARED

_T = TypeVar("_T")
_LOG = logging.getLogger("hubqueue")
# How often a storage that could not be opened is tried again.
_REOPEN = 5.0
_SET_ASIDE = "the outbox was damaged: it is kept as %s, and a new one was started (hubqueue check tells more)"


class Opening:
    """The outbox of one run and its id in it, as soon as there are both. Safe to use from several threads."""

    def __init__(
        self,
        home: Home,
        config: Config,
        destination: DestinationSettings,
        named: Identifier,
        args: Mapping[str, object],
        *,
        resume: str | None,
        clock: Clock | None,
    ) -> None:
        self._home, self._config, self._destination = home, config, destination
        self._named, self._args, self._resume, self._clock = named, args, resume, clock
        self.outbox: Outbox | None = None
        self.run_id: str | None = None
        self.guard = threading.RLock()
        self.first_entry = 0  # entries of this run have higher ids, unless it goes on
        self._new_id: str | None = None
        self._in_use = self._continues = False
        self._lock: Lock | None = None
        self._retry_at = 0.0
        self._trouble: HubqueueError | OSError | None = None

    @property
    def model_id(self) -> str | None:
        """The id at the hub, as far as it is known."""
        found: str | None = self.told("remote_id")
        return found or self._named.model_id

    def opened(self) -> tuple[Outbox, str]:
        """The outbox and the run's id in it; opened and registered when that has not succeeded yet, or not in this file."""
        with self.guard:
            if self.outbox is not None and self.outbox.database.was_replaced():
                self._leave_damaged()
            if self.outbox is None or self.run_id is None:
                self._open()
            elif not self._in_use:
                SHARED.hold(self.outbox)
                self._in_use = True
            assert self.outbox is not None and self.run_id is not None
            return self.outbox, self.run_id

    def repaired(self, act: Callable[[], _T]) -> _T:
        """Do something; when the outbox turns out to be damaged, once more with a new one in its place."""
        try:
            return act()
        except OutboxDamaged:
            with self.guard:
                if self.outbox is None:
                    raise
                self._leave_damaged()
                aside = replace_damaged(self._home, self._config)
            _LOG.error(_SET_ASIDE, aside)
            return act()

    def told(self, column: str) -> Any:
        """What the worker has written on the run; None when there is nothing, or no storage."""
        outbox, run_id = self.outbox, self.run_id
        if outbox is None or run_id is None:
            return None
        try:
            with SHARED.used(outbox):
                row = outbox.stats.run(run_id)
        except HubqueueError as error:
            _LOG.debug("the run could not be read: %s", error)
            return None
        return None if row is None else row[column]

    def try_again(self) -> None:
        """Let the next call try to open what could not be opened, however short ago."""
        self._retry_at = 0.0

    def ended(self) -> None:
        """The run is over: its process may live on."""
        if self._lock is not None:
            self._lock.release()

    def give_back(self) -> None:
        """Hold nothing open any more; the next use opens it again."""
        with self.guard:
            if self._in_use and self.outbox is not None:
                self._in_use = False
                SHARED.give_back(self.outbox)

    def after_fork(self) -> None:
        """A thread of the parent may hold the guard at the moment of a fork; the child gets a free one."""
        self.guard = threading.RLock()

    def _open(self) -> None:
        if self._trouble is not None and time.monotonic() < self._retry_at:
            raise self._trouble.with_traceback(None)
        self._retry_at = time.monotonic() + _REOPEN
        try:
            outbox = SHARED.borrow(self._home, self._config, clock=self._clock)
            try:
                if outbox.set_aside is not None:
                    _LOG.error(_SET_ASIDE, outbox.set_aside)
                self.run_id = self._register(outbox)
            except BaseException:
                SHARED.give_back(outbox)
                raise
        except (HubqueueError, OSError) as error:
            self._trouble = error
            raise
        self.outbox, self._in_use, self._trouble = outbox, True, None
        try:
            announce(outbox, self._destination, self.run_id, continues=self._continues, resume=self._resume)
        except Exception as error:  # a line for a person never decides whether a run is saved
            _LOG.debug("the run could not be announced: %s", error)

    def _register(self, outbox: Outbox) -> str:
        target = self._destination
        # After trouble the run may be there already: the confirmation of its commit may have been lost.
        unsure = self._new_id is not None
        if self._new_id is None:
            self._new_id, self.first_entry = new_run_id(), outbox.stats.newest_entry()
        run_id, goes_on = open_run(
            outbox,
            self._named,
            self._args,
            target,
            resume=self._resume,
            new_id=self._new_id,
            unsure_after=self.first_entry if unsure else None,
        )
        self._lock = Lock(outbox.run_lock(run_id))
        if not self._lock.try_acquire():
            _LOG.warning("run %s: another process is training this model too; both share its lanes", run_id)
        if goes_on:
            outbox.registry.revive(run_id)  # a worker may have missed the lock a moment ago
        self._continues = goes_on
        return run_id

    def _leave_damaged(self) -> None:
        """Let go of an outbox that is lost, or of which another one stands in its place."""
        assert self.outbox is not None
        # What can still be read keeps the hub from getting a second model.
        self._named = dataclasses.replace(self._named, model_id=self.model_id)
        SHARED.forget(self.outbox)
        if self._in_use:
            SHARED.give_back(self.outbox)
        self.outbox = self.run_id = self._new_id = None
        self._in_use = False
        self._retry_at = 0.0
