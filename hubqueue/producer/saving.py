"""Saves what a run logs: in its outbox, or in memory while the storage fails.

Promises: a draft is saved, kept in memory for the next attempt, or counted as unsaved. No storage error reaches the
training, unless `strict`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.errors import RunFinished
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.redact import clean
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.spool.ballast import Ballast
from hubqueue.producer.backlog import Backlog
from hubqueue.producer.called_with import Ending
from hubqueue.producer.intake import copy_checkpoint, owe, was_swept
from hubqueue.producer.leftover import Leftover, count_safely
from hubqueue.producer.opening import Opening, Start
from hubqueue.producer.sharing import SHARED
from hubqueue.producer.survival import Survivor
from hubqueue.worker.closing import close_run

_T = TypeVar("_T")
_LOG = logging.getLogger("hubqueue")
# The longest reason, in characters, that is recorded for a loss.
_LONGEST_REASON = 300


class Saving:
    """The entries of one run on their way to its outbox. Safe to use from several threads.

    `on_enqueue` is called after each attempt to enqueue, successful or not.
    """

    def __init__(self, start: Start, *, strict: bool, on_enqueue: Callable[[], None]) -> None:
        self._home, self._on_enqueue = start.home, on_enqueue
        self._destination = start.destination
        self.opening = Opening(start)
        self.backlog = Backlog(self._removed_unsaved)
        self._unsaved = _Unsaved()
        self._survivor = Survivor(strict=strict, name=lambda: self.opening.run_id, note=self._unsaved.because)
        self.ended: RunState | None = None
        self._refused: set[Kind] = set()

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
            self.backlog.put(draft)
            what = "checkpoint" if draft.kind is Kind.CKPT else str(draft.kind)
            saved = self.attempt(what, lambda: self.backlog.save(self._enqueue))
            if saved is not None and self._unsaved.lost:
                self.attempt("loss of a checkpoint", self._note_unsaved)
        self._on_enqueue()
        return saved

    def save_checkpoint(self, checkpoint: Checkpoint) -> int | None:
        """Copy a checkpoint and enqueue it; return its entry id, None when that failed and was logged.

        Raises `RunFinished` after the end of the run.
        """

        def copy() -> Draft:
            outbox, run_id = self.opening.opened()
            folders = declaration(self._destination.type).takes_folders
            return copy_checkpoint(outbox, run_id, checkpoint, folders=folders)

        self._refuse_finished()
        if not self._takes(Kind.CKPT):
            return None
        while (draft := self.attempt("checkpoint", copy)) is not None:
            saved, outbox = self.save(draft), self.opening.outbox
            if saved is None or outbox is None:
                return saved
            if not self.attempt("checkpoint", partial(was_swept, outbox, saved, draft)):
                return saved
        with self.opening.guard:
            self._unsaved.lose()
        self.attempt("loss of a checkpoint", self._note_unsaved)
        return None

    def end(self, ending: Ending) -> None:
        """Try once more to save what is in memory, then end the run."""

        def save() -> None:
            self.attempt("metrics", lambda: self.backlog.save(self._enqueue))

        def close() -> None:
            outbox, run_id = self.opening.opened()
            close_run(outbox, run_id, ending.state, results=ending.results, error=ending.error)
            self.ended = ending.state
            self.opening.ended()

        with self.opening.guard:
            self.opening.try_again()
            save()
            if self.backlog and Ballast(self._home.ballast).release():
                save()  # the disk is full; releasing the ballast is the last chance before the memory is lost
            if self._unsaved.lost or self.backlog or self._unsaved.noted:
                self.attempt("loss", lambda: self._note_unsaved(waiting=len(self.backlog)))
            if self.ended is None:
                self.attempt("end of the run", close)

    def left(self) -> Leftover:
        """What the run owes now, including what could not be saved."""
        unsaved, why = len(self.backlog) + self._unsaved.lost, self._unsaved.why
        outbox = self.opening.outbox
        if outbox is None:
            return count_safely(None, None, unsaved=unsaved, why=why)
        with SHARED.used(outbox):
            return count_safely(outbox, self.opening.run_id, unsaved=unsaved, why=why)

    def _takes(self, kind: Kind) -> bool:
        """Whether the destination takes entries of a kind: one that no lane has would wait in memory and be lost."""
        takes = kind in declaration(self._destination.type).lanes
        if not takes and kind not in self._refused:
            self._refused.add(kind)
            _LOG.warning("destination %s takes no %s: nothing of it is saved", self._destination.name, kind)
        return takes

    def _refuse_finished(self) -> None:
        if self.ended is not None:
            raise RunFinished(
                f"run {self.opening.run_id} is {self.ended}", hint="start another: hubqueue.start_run"
            )

    def _enqueue(self, draft: Draft, unsure: bool) -> int:
        outbox, run_id = self.opening.opened()
        entry_id = None
        if unsure:
            entry_id = outbox.stats.saved(run_id, draft, after=self.opening.first_entry)
        if entry_id is None:
            entry_id = owe(outbox, run_id, draft)
        return entry_id

    def _removed_unsaved(self, draft: Draft, unsure: bool, replaced: bool) -> None:
        """Account for a draft that the backlog removed without saving it."""
        if not replaced:
            self._unsaved.lose()
        outbox = self.opening.outbox
        if draft.snapshot is not None and not unsure and outbox is not None:
            outbox.spool.remove(draft.snapshot.name)

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
