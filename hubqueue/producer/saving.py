"""Saves what a run logs: in its outbox, or in memory while the storage fails.

Promises: a draft is saved, kept in memory for the next attempt, or counted as unsaved. No storage error reaches the
training, unless `strict`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, is_preliminary, keyed
from hubqueue.domain.entry import Draft, Kind, Snapshot
from hubqueue.domain.errors import CheckpointUnreadable, OutboxLocked, RunFinished
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.redact import clean
from hubqueue.outbox.database.patience import alone
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.spool.ballast import Ballast
from hubqueue.outbox.spool.source import is_folder
from hubqueue.producer.called_with import Ending
from hubqueue.producer.ending.departure import Departure
from hubqueue.producer.ending.ends import Ends
from hubqueue.producer.intake import copy_checkpoint, owe, was_swept
from hubqueue.producer.leftover import Leftover, count_safely
from hubqueue.producer.memory.backlog import Backlog
from hubqueue.producer.opening import Opening
from hubqueue.producer.several.together import Together
from hubqueue.producer.sharing import SHARED
from hubqueue.producer.startup.wanted import Start
from hubqueue.producer.survival import COPY, Survivor, logger

_T = TypeVar("_T")
_LOG = logger()
# The longest reason, in characters, that is recorded for a loss.
_LONGEST_REASON = 300
# Seconds between the attempts to end a run while another process keeps a lock.
_AGAIN = 0.05


class Saving:
    """The entries of one run on their way to its outbox. Safe to use from several threads.

    `on_enqueue` is called after each attempt to enqueue, successful or not; `on_settings` when the settings of a
    preliminary start could be read. `together` and `family` know the training's other destinations.
    """

    def __init__(
        self,
        start: Start,
        *,
        strict: bool,
        on_enqueue: Callable[[], None],
        on_settings: Callable[[Start], None],
        together: Together | None = None,
        family: list[Survivor] | None = None,
    ) -> None:
        self._home, self._on_enqueue = start.home, on_enqueue
        self._together = together
        self.opening = Opening(start, on_lost=self._lost, on_settings=on_settings, together=together)
        self.backlog = Backlog(self._removed_unsaved)
        self._unsaved = _Unsaved()
        self._survivor = Survivor(
            strict=strict, name=lambda: self.opening.run_id, note=self._note, family=family
        )
        self._locked = False  # whether another process kept a lock since this was set to False
        self.ended: RunState | None = None
        self.has_reported = False  # whether `finish` has logged what is left
        self._ending: Ending | None = None
        self.ends = Ends(self.opening)
        self._refused: set[Kind] = set()
        self._preliminary = 0  # drafts that were put into the backlog before the destination was known

    def attempt(self, what: str, act: Callable[[], _T]) -> _T | None:
        """Call `act`, with a new outbox if the present one is damaged; None when it failed and that was logged."""
        return self._survivor.attempt(what, lambda: self.opening.repaired(act))

    def save(self, draft: Draft) -> int | None:
        """Enqueue a draft and everything in memory; return the draft's entry id, None when it is only in memory.

        Raises `RunFinished` after the end of the run.
        """
        with self.opening.guard:
            self._refuse_finished()
            if not self._takes(draft.kind):
                return None
            self.backlog.put(self._keyed(draft))
            what = "checkpoint" if draft.kind is Kind.CKPT else str(draft.kind)
            saved = self.attempt(what, self._save_backlog)
            if saved is not None and self._unsaved.lost:
                self.attempt("loss of a checkpoint", self._note_unsaved)
        self._on_enqueue()
        return saved

    @property
    def takes_folders(self) -> bool:
        """Whether a checkpoint may be a folder."""
        return declaration(self.opening.start.destination.type).takes_folders

    def takes_checkpoints(self) -> bool:
        """Whether the destination takes checkpoints; a refusal is logged once. Raises `RunFinished`."""
        self._refuse_finished()
        return self._takes(Kind.CKPT)

    def copy(
        self,
        checkpoint: Checkpoint,
        same: Snapshot | None,
        on_unreadable: Callable[[CheckpointUnreadable], object],
    ) -> Draft | None:
        """Copy a checkpoint, or give `same`, the copy of another destination, a further name.

        None when that failed and was logged.
        """

        def copy() -> Draft:
            outbox, run_id = self.opening.opened()
            type = declaration(self.opening.start.destination.type)
            takes = {"folders": type.takes_folders, "steps": type.takes_steps}
            try:
                return copy_checkpoint(outbox, run_id, checkpoint, **takes, same=same)
            except CheckpointUnreadable as error:
                named = self._named(error, checkpoint)
                on_unreadable(named)
                raise named from error.__cause__

        return self.attempt(COPY, copy)

    def _named(self, error: CheckpointUnreadable, checkpoint: Checkpoint) -> CheckpointUnreadable:
        """The same error; of several destinations, with the name of one that takes no folder."""
        is_alone = self._together is None or not self._together.is_several
        if is_alone or checkpoint.archive or self.takes_folders or not is_folder(checkpoint.path):
            return error
        name = self.opening.start.destination.name
        message = f"{checkpoint.path} is a folder, and destination {name} takes one file"
        return CheckpointUnreadable(message, hint=error.hint)

    def was_swept(self, entry_id: int, draft: Draft) -> bool:
        """Whether the copy of an enqueued checkpoint was swept before its entry was written (`was_swept`)."""
        outbox = self.opening.outbox
        if outbox is None:
            return False
        return bool(self.attempt("checkpoint", partial(was_swept, outbox, entry_id, draft)))

    def has_lost(self, snapshot: Snapshot) -> bool:
        """Whether a copy is not in the spool any more."""
        outbox = self.opening.outbox
        return outbox is not None and not outbox.spool.exists(snapshot)

    def discard(self, draft: Draft) -> None:
        """Remove the copy of a draft that is not enqueued."""
        if draft.snapshot is not None and self.opening.outbox is not None:
            self.opening.outbox.spool.remove(draft.snapshot.name)

    def lose_checkpoint(self, why: CheckpointUnreadable | None) -> None:
        """Count a checkpoint that could not be copied. `why` is None where that was logged for this destination."""
        with self.opening.guard:
            self._unsaved.lose()
            if why is not None:
                self._unsaved.because(why)
        self.attempt("loss of a checkpoint", self._note_unsaved)

    def take_over(self, other: Saving) -> None:
        """Keep in memory what another destination of the training has not saved yet."""
        for draft in other.backlog.drafts():
            if self._takes(draft.kind):
                self.backlog.put(self._keyed(draft))

    def end(self, ending: Ending) -> None:
        """Save what is in memory, then end the run. While another process keeps a lock, try again until the deadline."""
        pause = threading.Event()
        while True:
            self._locked = False
            try:
                self._end(ending)
            except OutboxLocked:  # strict
                if time.monotonic() >= ending.deadline:
                    raise
                self._locked = True
            remaining = ending.deadline - time.monotonic()
            if not self._locked or remaining <= 0 or sys.is_finalizing():
                return
            pause.wait(min(_AGAIN, remaining))

    def _end(self, ending: Ending) -> None:
        self._ending = ending

        def save() -> None:
            self.attempt("metrics", self._save_backlog)

        def close() -> None:
            self.ends.end(ending)
            self.ended = ending.state

        with self.opening.guard:
            self.opening.try_again()
            save()
            if self.backlog and Ballast(self._home.ballast).release():
                save()  # the disk is full; releasing the ballast is the last chance before the memory is lost
            self._note_loss()
            if self.opening.start.is_joined:
                if self.opening.was_replaced():
                    self.attempt("metrics", self.opening.opened)  # the run may be in the new one
                self.ended = ending.state  # only for this process
                self.opening.ended()
            elif self.ended is None or self.opening.was_replaced():
                self.attempt("end of the run", close)
                self._note_loss()  # of an outbox that was replaced

    def leave(self, departure: Departure | None) -> bool:
        """The process ends, and `end` was not called: save what is in memory, and how the training ended, if known.

        Returns whether the exit code may change that. Never raises, and opens an outbox only for what would be lost
        otherwise: the end of a process must not be delayed.
        """
        depends: bool | None = False
        try:
            with alone(self.opening.guard):
                self.ends.leaving = True
                if self.ended is None and not self.opening.is_open() and self._unwritten():
                    self.opening.try_again()
                    self.attempt("metrics", self.opening.opened)
                if self.ended is None and self.opening.is_open():
                    self.attempt("metrics", self._save_backlog)
                    self._note_loss()
                    if departure is not None:
                        depends = self.attempt("end of the run", lambda: self.ends.leave(departure))
                unsaved = self._unwritten()
                if unsaved and not self.has_reported:
                    _LOG.warning(
                        "run %s: %d could not be saved (%s)", self.opening.run_id, unsaved, self._unsaved.why
                    )
        except Exception as error:
            _LOG.debug("run %s: its end could not be saved: %s", self.opening.run_id, error)
        return bool(depends)

    def left(self) -> Leftover:
        """What the run owes now, including what could not be saved. Ends the run again in an outbox that was replaced."""
        if self._ending is not None and self.opening.was_replaced():
            self.end(self._ending)
        unsaved, why = self._unwritten() + self._unsaved.lost, self._unsaved.why
        outbox = None if self.opening.was_replaced() else self.opening.outbox
        if outbox is None:
            return count_safely(None, None, unsaved=unsaved, why=why)
        with SHARED.used(outbox):
            return count_safely(outbox, self.opening.run_id, unsaved=unsaved, why=why)

    def _unwritten(self) -> int:
        """How many drafts only this process has: if nothing can be saved at the path, also what was saved there before."""
        is_gone = self.opening.outbox is None or self.opening.was_replaced()
        return len(self.backlog) + (len(self.opening.kept) if is_gone else 0)

    def _takes(self, kind: Kind) -> bool:
        """Whether the destination takes entries of a kind: one that no lane has would wait in memory and be lost."""
        start = self.opening.start
        takes = start.again is not None or kind in declaration(start.destination.type).lanes
        if not takes and kind not in self._refused:
            self._refused.add(kind)
            _LOG.warning("destination %s takes no %s: nothing of it is saved", start.destination.name, kind)
        return takes

    def _refuse_finished(self) -> None:
        if self.ended is not None:
            raise RunFinished(
                f"run {self.opening.run_id} is {self.ended}", hint="start another: hubqueue.start_run"
            )

    def _keyed(self, draft: Draft) -> Draft:
        """A draft with its key at the destination.

        While that is unknown, each draft has a key of its own: merged in memory, one could get behind a newer one that
        turns out to have the same key.
        """
        takes_steps = self.opening.start.takes_steps
        if takes_steps is not None:
            return keyed(draft, takes_steps=takes_steps)
        if is_preliminary(draft):
            self._preliminary += 1
            return draft._replace(key=f"{draft.key}/{self._preliminary}")
        return draft

    def _save_backlog(self) -> int | None:
        """Enqueue everything in memory (`Backlog.save`), with its keys at the destination."""
        if self._preliminary:
            self.opening.opened()  # the destination is known then
            self.backlog.change_keys(self._keyed)
            self._preliminary = 0
        return self.backlog.save(self._enqueue)

    def _enqueue(self, draft: Draft, unsure: bool) -> int:
        outbox, run_id = self.opening.opened()
        draft, entry_id = self.opening.kept.completed(draft), None
        if unsure:
            entry_id = outbox.stats.saved(run_id, draft, after=self.opening.first_entry)
        if entry_id is None:
            trains = self.ended is None and not self.ends.leaving
            entry_id, moved = owe(outbox, run_id, draft, alive=trains)
            if moved.ended:
                self.ends.continued(outbox, run_id, moved.ended)
        self.opening.enqueued(entry_id, draft)
        return entry_id

    def _lost(self, number: int, why: str) -> None:
        """Account for entries that were saved, in an outbox that has been replaced since then."""
        self._unsaved.lost += number
        self._unsaved.why = why

    def _removed_unsaved(self, draft: Draft, unsure: bool, replaced: bool) -> None:
        """Account for a draft that the backlog removed without saving it."""
        if not replaced:
            self._unsaved.lose()
        outbox = self.opening.outbox
        if draft.snapshot is not None and not unsure and outbox is not None:
            outbox.spool.remove(draft.snapshot.name)

    def _note(self, error: BaseException) -> None:
        self._unsaved.because(error)
        self._locked |= isinstance(error, OutboxLocked)

    def _note_loss(self) -> None:
        if self._unsaved.lost or self.backlog or self._unsaved.noted:
            self.attempt("loss", lambda: self._note_unsaved(waiting=len(self.backlog)))

    def _note_unsaved(self, *, waiting: int = 0) -> None:
        outbox, run_id = self.opening.opened()
        self._unsaved.note(outbox, run_id, waiting=waiting)


class _Unsaved:
    """Counts what could not be saved, with the last reason. The lock of the run guards the counts."""

    def __init__(self) -> None:
        self.lost = 0
        self.why: str | None = None
        self.noted = 0

    def lose(self) -> None:
        """Count something that will never be saved."""
        self.lost += 1

    def because(self, error: BaseException) -> None:
        """Keep the reason why something could not be saved, permanently or for now."""
        self.why = clean(str(error) or type(error).__name__, limit=_LONGEST_REASON)

    def note(self, outbox: Outbox, run_id: str, *, waiting: int = 0) -> None:
        """Record losses with the run that are not recorded yet. `waiting` drafts count as lost until they are saved.

        Raises the `OutboxError`s; the next call then tries again.
        """
        more = self.lost + waiting - self.noted
        if more:
            outbox.registry.note_unsaved(run_id, more, self.why or "unknown reason")
            self.noted += more
