"""Opens the outbox of a run and registers the run in it: as soon as that succeeds, and again after damage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from hubqueue.domain.errors import HubqueueError, OutboxDamaged
from hubqueue.outbox.database.patience import impatient
from hubqueue.outbox.locks import Lock
from hubqueue.outbox.moves.registry import new_run_id
from hubqueue.outbox.outbox import Outbox, replace_damaged
from hubqueue.producer.announcement import announce
from hubqueue.producer.intake import open_run
from hubqueue.producer.sharing import SHARED
from hubqueue.producer.startup.handle import join, refuse_new_outbox
from hubqueue.producer.startup.wanted import Start
from hubqueue.producer.survival import logger

_T = TypeVar("_T")
_LOG = logger()
# Seconds between attempts to open a storage that could not be opened.
_REOPEN = 5.0
_SET_ASIDE = (
    "the outbox was damaged: it is kept as %s, and a new one was started (for details: hubqueue check)"
)


class Opening:
    """The outbox of one run and the run's id in it; both None until they exist. Safe to use from several threads."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self.outbox: Outbox | None = None
        self.run_id: str | None = None
        self.guard = threading.RLock()
        self.first_entry = 0  # entries of this run have higher ids, unless it is continued
        self._new_id: str | None = None
        self._in_use = self._continues = False
        self._lock: Lock | None = None
        self._retry_at = 0.0
        self._trouble: HubqueueError | OSError | None = None
        self.on_settings: Callable[[Start], object] = lambda _start: None  # a preliminary start was completed

    @property
    def start(self) -> Start:
        """What the run is started with."""
        return self._start

    @property
    def model_id(self) -> str | None:
        """The id at the hub, None until it is known."""
        found: str | None = self.column("remote_id")
        return found or self._start.named.model_id

    def opened(self) -> tuple[Outbox, str]:
        """The outbox and the run's id in it. Opens and registers first if needed, also when the file was replaced."""
        with self.guard:
            if self.outbox is not None and self.outbox.database.was_replaced():
                self._forget_outbox()
            if self.outbox is None or self.run_id is None:
                self._open()
            elif not self._in_use:
                SHARED.hold(self.outbox)
                self._in_use = True
            assert self.outbox is not None and self.run_id is not None
            return self.outbox, self.run_id

    def repaired(self, act: Callable[[], _T]) -> _T:
        """Call `act`; if the outbox proves to be damaged, replace it with a new one and call `act` again."""
        try:
            return act()
        except OutboxDamaged:
            with self.guard:
                if self.outbox is None:
                    raise
                self._forget_outbox()
                with impatient(self._start.config.outbox.busy_timeout.total_seconds()):
                    aside = replace_damaged(self._start.home, self._start.config)
            _LOG.error(_SET_ASIDE, aside)
            return act()

    def column(self, column: str) -> Any:
        """A column of the run's row, which the worker updates; None when it is empty or cannot be read."""
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
        """Let the next call try to open the outbox, however recently the last attempt failed."""
        self._retry_at = 0.0

    def ended(self) -> None:
        """Release the run's lock: the run has ended, even if its process continues."""
        if self._lock is not None:
            self._lock.release()

    def give_back(self) -> None:
        """Close the outbox if no other run uses it; the next use opens it again."""
        with self.guard:
            if self._in_use and self.outbox is not None:
                self._in_use = False
                SHARED.give_back(self.outbox)

    def after_fork(self) -> None:
        """Give the child process a new lock, because a thread of the parent may have held the old one at the fork."""
        self.guard = threading.RLock()

    def _open(self) -> None:
        if self._trouble is not None and time.monotonic() < self._retry_at:
            raise self._trouble.with_traceback(None)
        self._retry_at = time.monotonic() + _REOPEN
        # A training waits for every lock as for other writers: some have no setting of their own.
        busy_timeout = self._start.config.outbox.busy_timeout
        try:
            if self._start.again is not None:
                self._start = self._start.again()
                self.on_settings(self._start)
            if self._start.is_joined:
                refuse_new_outbox(self._start)
            with impatient(busy_timeout.total_seconds()):
                outbox = SHARED.borrow(self._start.home, self._start.config)
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
        if self._start.is_joined:
            return
        try:
            announce(
                outbox,
                self._start.destination,
                self.run_id,
                continues=self._continues,
                resume=self._start.resume,
            )
        except Exception as error:  # an informational line must not prevent a run from being saved
            _LOG.debug("the run could not be announced: %s", error)

    def _register(self, outbox: Outbox) -> str:
        if self._start.is_joined:
            return join(outbox, self._start.resume)
        # After an error the run may exist already: the confirmation of its commit may have been lost.
        unsure = self._new_id is not None
        if self._new_id is None:
            self._new_id, self.first_entry = new_run_id(), outbox.stats.newest_entry()
        run_id, continues = open_run(
            outbox,
            self._start.named,
            self._start.args,
            self._start.destination,
            resume=self._start.resume,
            new_id=self._new_id,
            unsure_after=self.first_entry if unsure else None,
        )
        self._lock = Lock(outbox.run_lock(run_id))
        if not self._lock.try_acquire():
            _LOG.warning("run %s: another process is training this model too; both share its lanes", run_id)
        if continues:
            # A worker may have found the lock free a moment ago, and marked the run as interrupted.
            outbox.registry.revive(run_id)
        self._continues = continues
        return run_id

    def _forget_outbox(self) -> None:
        """Stop using an outbox that is damaged, or whose file was replaced by another one."""
        assert self.outbox is not None
        # If the model's id can still be read, the hub does not get a second model.
        named = replace(self._start.named, model_id=self.model_id)
        self._start = replace(self._start, named=named)
        SHARED.forget(self.outbox)
        if self._in_use:
            SHARED.give_back(self.outbox)
        self.outbox = self.run_id = self._new_id = None
        self._in_use = False
        self._retry_at = 0.0
