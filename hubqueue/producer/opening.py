"""Opens the outbox of a run and registers the run in it: as soon as that succeeds, and again after damage.

An outbox that was deleted, moved or replaced by another file is noticed before the next write. What this process still
has (its open file, and in memory what it has enqueued) is saved again, under the same run, and one line says what is lost.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hubqueue.domain.entry import Draft
from hubqueue.domain.errors import HubqueueError, OutboxDamaged, RunMissing
from hubqueue.outbox import exits, presence
from hubqueue.outbox.database.files.replacement import Fate
from hubqueue.outbox.database.patience import impatient
from hubqueue.outbox.moves.registry import new_run_id
from hubqueue.outbox.outbox import Outbox, replace_damaged
from hubqueue.producer.announcement import announce
from hubqueue.producer.intake import open_run
from hubqueue.producer.memory.kept import Kept, Restored
from hubqueue.producer.several.together import Together
from hubqueue.producer.sharing import SHARED
from hubqueue.producer.startup.handle import join, refuse_new_outbox
from hubqueue.producer.startup.wanted import Start
from hubqueue.producer.survival import logger
from hubqueue.worker.closing import correct

_T = TypeVar("_T")
_LOG = logger()
# Seconds between attempts to open a storage that could not be opened.
_REOPEN = 5.0
_SET_ASIDE = (
    "the outbox was damaged: it is kept as %s, and a new one was started (for details: hubqueue check)"
)
# By what happened to an outbox that the run was using: its path, the run, and what became of its entries.
_GONE = {
    Fate.WRITTEN_AGAIN: "the outbox %s was deleted or moved while run %s was using it: it was written again from the open file",
    Fate.LOG_SAVED: "the log of the outbox %s was deleted while run %s was using it: it was written again from the open file",
    Fate.LOG_LOST: "the log of the outbox %s was deleted while run %s was using it, and another one was begun",
    Fate.REPLACED: "the outbox %s was replaced by another file while run %s was using it: the run continues in that one",
}
_HINT = "clean or restore a home only while no training and no worker uses it"


class Opening:
    """The outbox of one run and the run's id in it; both None until they exist. Safe to use from several threads.

    `on_lost(number, why)` is called with what is lost because the outbox was replaced, `on_settings` when the settings of
    a preliminary start could be read. `together` knows the runs of the training at its other destinations.
    """

    def __init__(
        self,
        start: Start,
        *,
        on_lost: Callable[[int, str], None] = lambda _number, _why: None,
        on_settings: Callable[[Start], object] = lambda _start: None,
        together: Together | None = None,
    ) -> None:
        self._start, self._on_lost, self._on_settings = start, on_lost, on_settings
        self.kept = Kept()
        self.outbox: Outbox | None = None
        self.run_id: str | None = None
        self.guard = threading.RLock()
        self.first_entry = 0  # entries of this run have higher ids, unless it is continued
        self.intended_id = new_run_id()  # of a new run
        self.continues = False
        self.knows_model = start.named.model_id is not None
        self._together = together or Together()
        self._together.add(self)
        self._new_id: str | None = None
        self._in_use = False
        self._is_older = False  # the file at the path is an older copy of the outbox
        self._gone: Fate | None = None  # what happened to the outbox before this one, until it is reported
        # The run's first lock file while this process counts as one of the run's.
        self._present: Path | None = None
        self._has_ended = False
        self._retry_at = 0.0
        self._trouble: HubqueueError | OSError | None = None

    @property
    def start(self) -> Start:
        """What the run is started with."""
        return self._start

    @property
    def wants(self) -> str | None:
        """The run to continue: an id, or "last"; None for a new one."""
        return self._start.resume

    @property
    def model_id(self) -> str | None:
        """The id at the hub, None until it is known."""
        found: str | None = self.column("remote_id")
        return found or self._start.named.model_id

    def opened(self) -> tuple[Outbox, str]:
        """The outbox and the run's id in it. Opens and registers first if needed, also when the file was replaced."""
        with self.guard:
            if self.outbox is None or self.run_id is None or self.was_replaced():
                self._open()
            elif not self._in_use:
                SHARED.hold(self.outbox)
                self._in_use = True
            assert self.outbox is not None and self.run_id is not None
            if self._present is None and not self._has_ended:
                self._enter(self.outbox, self.run_id)  # in a forked child, at its first use
            return self.outbox, self.run_id

    def repaired(self, act: Callable[[], _T]) -> _T:
        """Call `act`; if the outbox proves to be damaged, or an older copy, begin anew in it and call `act` again."""
        try:
            return act()
        except RunMissing:
            with self.guard:
                if self.outbox is None:
                    raise
                self._is_older = True
            return act()
        except OutboxDamaged:
            with self.guard:
                if self.outbox is None:
                    raise
                model_id = self.model_id
                SHARED.forget(self.outbox)
                with impatient(self._start.config.outbox.busy_timeout.total_seconds()):
                    aside = replace_damaged(self._start.home, self._start.config)
                if aside is None and not self.outbox.database.was_set_aside():
                    self._is_older = True  # the file was emptied, or replaced by one of ours
                else:
                    self._begin_anew(model_id)
            if aside is not None:
                _LOG.error(_SET_ASIDE, aside)
            return act()

    def was_replaced(self) -> bool:
        """Whether the outbox is not the file at its path any more, or an older copy of it."""
        return self.outbox is not None and (self._is_older or self.outbox.database.was_replaced())

    def enqueued(self, entry_id: int, draft: Draft) -> None:
        """Keep a draft in memory that was enqueued. An outbox that gives an id twice is an older copy: it is completed."""
        is_older = entry_id <= self.kept.newest
        self.kept.note(entry_id, draft)
        if is_older and self.outbox is not None and self.run_id is not None:
            self._report(Fate.REPLACED, self.kept.restore(self.outbox, self.run_id))

    def column(self, column: str) -> Any:
        """A column of the run's row, which the worker updates; None when it is empty or cannot be read."""
        row = self.row()
        return None if row is None else row[column]

    def row(self) -> Mapping[str, Any] | None:
        """The run's row, which the worker updates; None when it cannot be read."""
        outbox, run_id = self.outbox, self.run_id
        if outbox is None or run_id is None:
            return None
        try:
            with SHARED.used(outbox):
                return outbox.stats.run(run_id)
        except HubqueueError as error:
            _LOG.debug("the run could not be read: %s", error)
            return None

    def is_open(self) -> bool:
        """Whether the run is in an outbox whose file is still the opened one."""
        outbox = self.outbox
        return outbox is not None and self.run_id is not None and not outbox.database.was_replaced()

    def try_again(self) -> None:
        """Let the next call try to open the outbox, however recently the last attempt failed."""
        self._retry_at = 0.0

    def ended(self) -> None:
        """Release the run's lock: the run has ended, even if its process continues."""
        self._has_ended = True
        self.leave()

    def leave(self) -> None:
        """Stop to count as a process of the run; the next use of the run counts again, until it has ended."""
        present, self._present = self._present, None
        if present is not None:
            presence.leave(present)

    def continued(self) -> None:
        """The run had ended and is running again, because of this process."""
        if self._present is not None:
            presence.lead(self._present)

    def give_back(self) -> None:
        """Close the outbox if no other run uses it; the next use opens it again."""
        with self.guard:
            if self._in_use and self.outbox is not None:
                self._in_use = False
                SHARED.give_back(self.outbox)

    def after_fork(self) -> None:
        """Give the child process a new lock, because a thread of the parent may have held the old one at the fork."""
        self.guard = threading.RLock()
        self._present = None

    def _open(self) -> None:
        if self._trouble is not None and time.monotonic() < self._retry_at:
            raise self._trouble.with_traceback(None)
        self._retry_at = time.monotonic() + _REOPEN
        # A training waits for every lock as for other writers: some have no setting of their own.
        busy_timeout = self._start.config.outbox.busy_timeout
        try:
            if self._start.again is not None:
                self._start = self._start.again()
                self._on_settings(self._start)
            if self._start.is_joined:
                refuse_new_outbox(self._start)
            with impatient(busy_timeout.total_seconds()):
                if self.was_replaced():
                    self._let_go()
                outbox = SHARED.borrow(self._start.home, self._start.config)
            try:
                if outbox.set_aside is not None:
                    _LOG.error(_SET_ASIDE, outbox.set_aside)
                if self._gone is Fate.WRITTEN_AGAIN:
                    with contextlib.suppress(HubqueueError, OSError):
                        outbox.spool.make_again()
                self.run_id = self._register(outbox)
                restored = self.kept.restore(outbox, self.run_id)
            except BaseException:
                SHARED.give_back(outbox)
                raise
        except (HubqueueError, OSError) as error:
            self._trouble = error
            raise
        self.outbox, self._in_use, self._trouble = outbox, True, None
        if self._gone is not None:
            self._report(self._gone, restored)
            self._gone = None
            return
        if self._start.is_joined:
            return
        try:
            announce(
                outbox,
                self._start.destination,
                self.run_id,
                continues=self.continues,
                resume=None if self.continues and self._together.is_several else self._start.resume,
            )
        except Exception as error:  # an informational line must not prevent a run from being saved
            _LOG.debug("the run could not be announced: %s", error)

    def _register(self, outbox: Outbox) -> str:
        if self._start.is_joined:
            return join(outbox, self._start.resume)
        # After an error the run may exist already: the confirmation of its commit may have been lost.
        unsure = self._new_id is not None
        if self._new_id is None:
            self._new_id, self.first_entry = self.intended_id, outbox.stats.newest_entry()
        resume, together = self._together.of(self)
        run_id, continues = open_run(
            outbox,
            self._start.named,
            self._start.args,
            self._start.destination,
            resume=resume,
            new_id=self._new_id,
            unsure_after=self.first_entry if unsure else None,
            described=self._start.described,
            name=self._start.name,
            together=together,
        )
        self.leave()
        if not self._enter(outbox, run_id):
            _LOG.warning("run %s: another process is training this model too; both log to this run", run_id)
        if continues:
            self._forget_exits(outbox, run_id)
            # A worker may have found the lock free a moment ago, and marked the run as interrupted.
            outbox.registry.revive(run_id)
        self.continues = continues
        return run_id

    def _forget_exits(self, outbox: Outbox, run_id: str) -> None:
        """Take the exit codes into account that no worker has seen: they say nothing about how the run ends from now on."""
        with contextlib.suppress(HubqueueError):
            for each in exits.reported(outbox.home.locks):
                if run_id in each.runs:
                    correct(outbox, each)
                    exits.forget(each)

    def _enter(self, outbox: Outbox, run_id: str) -> bool:
        """Count as a process of the run. False when another process does already."""
        present = outbox.run_lock(run_id)
        is_first = presence.enter(present)
        self._present = present
        return is_first

    def _begin_anew(self, model_id: str | None) -> None:
        """Stop using a damaged outbox. What can be read of the run in it is salvaged, so it continues as another run."""
        self._forget_outbox(model_id)
        self.kept.clear()
        self.intended_id = new_run_id()

    def _let_go(self) -> None:
        """Save what the open file of a replaced outbox still has, and stop using it. The run keeps its id."""
        assert self.outbox is not None and self.run_id is not None
        run_id, model_id = self.run_id, self.model_id
        if self.outbox.database.was_set_aside():
            self._begin_anew(model_id)
            return
        with contextlib.suppress(HubqueueError):
            self.kept.forget_settled(self.outbox, run_id)
        self._gone = self.outbox.let_go()
        self._forget_outbox(model_id)
        self._start = replace(self._start, resume=run_id)
        self._new_id = self.intended_id = run_id
        self.first_entry = 0

    def _report(self, gone: Fate, restored: Restored) -> None:
        """Log what happened to the outbox, and what that cost."""
        path = self._start.home.outbox
        if gone is Fate.REPLACED and not restored:
            _LOG.warning("the outbox %s was opened again: another process has renewed it", path)
            return
        _LOG.error(f"{_GONE[gone]}; %s (%s)", path, self.run_id, restored or "nothing is lost", _HINT)
        if restored.lost:
            self._on_lost(len(restored.lost), f"the outbox was replaced: {restored}")

    def _forget_outbox(self, model_id: str | None) -> None:
        """Stop using an outbox that is damaged, or whose file was replaced by another one."""
        assert self.outbox is not None
        # If the model's id can still be read, the hub does not get a second model.
        self._start = replace(self._start, named=replace(self._start.named, model_id=model_id))
        self.leave()
        SHARED.forget(self.outbox)
        if self._in_use:
            SHARED.give_back(self.outbox)
        self.outbox = self.run_id = self._new_id = None
        self._in_use = self._is_older = False
        self._retry_at = 0.0
