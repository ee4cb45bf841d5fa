"""One copy of a checkpoint for all destinations of a training.

Promises: the checkpoint is read once. The other destinations get further names for that copy, all of them before the first
entry is enqueued: neither a worker that has sent one already, nor a file that changes meanwhile, can make two destinations
get different checkpoints. A destination that refuses a folder does not cost the others theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from hubqueue.domain.drafts import Checkpoint
from hubqueue.domain.entry import Draft, Snapshot
from hubqueue.domain.errors import CheckpointUnreadable
from hubqueue.outbox.spool.source import is_folder
from hubqueue.producer.saving import Saving

_T = TypeVar("_T")


def save_copies(savings: Sequence[Saving], checkpoint: Checkpoint) -> int | None:
    """Copy a checkpoint and enqueue it for each destination; return the first entry id.

    None when all failed and that was logged. Raises the first error after all destinations had their turn: `RunFinished`
    after the end of the run, and with `strict` every error.
    """
    copies = _Copies(checkpoint)
    takers = [each for each in savings if copies.attempt(each, each.takes_checkpoints)]
    waiting, same = takers, None
    while waiting:
        drafts = copies.taken(waiting, same)
        if drafts is None:
            waiting, same = takers, None
            continue
        swept = [each for each in waiting if each in drafts and copies.is_swept(each, drafts[each])]
        if not swept:
            break
        # Without a copy that is left, all get a new one: for some alone it could have another content.
        left = (drafts[each].snapshot for each in drafts if each not in swept and _has(each, drafts))
        same = next(left, None)
        waiting = takers if same is None else swept
    return copies.result(savings)


class _Copies:
    """What became of one checkpoint at each destination."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._entry_ids: dict[Saving, int | None] = {}
        self._errors: dict[Saving, Exception] = {}
        # The destinations without a copy, with what makes the checkpoint unreadable.
        self._without: dict[Saving, CheckpointUnreadable | None] = {}

    def attempt(self, saving: Saving, act: Callable[[], _T]) -> _T | None:
        """Call `act` for a destination, and keep its error for the end."""
        try:
            return act()
        except Exception as error:
            self._errors[saving] = error
            return None

    def taken(self, savings: Sequence[Saving], same: Snapshot | None) -> dict[Saving, Draft] | None:
        """A draft for each destination that can have one; None if the first copy was swept before it had further names."""
        drafts: dict[Saving, Draft] = {}
        alike = len(savings) == 1 or self._checkpoint.archive or not is_folder(self._checkpoint.path)
        unreadable: list[CheckpointUnreadable] = []
        for saving in savings:
            self._errors.pop(saving, None)
            if alike and unreadable:  # reported already
                self._without[saving] = unreadable[0]
                continue
            shared = same if alike or saving.takes_folders else None
            unreadable.clear()
            copy = partial(saving.copy, self._checkpoint, shared, unreadable.append)
            draft = self.attempt(saving, copy)
            if draft is not None:
                drafts[saving] = draft
                same = same or draft.snapshot
                self._without.pop(saving, None)
            elif shared is not None and saving.has_lost(shared):
                for each, taken in drafts.items():
                    each.discard(taken)
                return None
            else:
                self._without[saving] = unreadable[0] if unreadable else None
        return drafts

    def is_swept(self, saving: Saving, draft: Draft) -> bool:
        """Enqueue a draft. Returns whether its copy was swept before that."""
        entry_id = self.attempt(saving, lambda: saving.save(draft))
        self._entry_ids[saving] = entry_id
        return entry_id is not None and bool(self.attempt(saving, lambda: saving.was_swept(entry_id, draft)))

    def result(self, savings: Sequence[Saving]) -> int | None:
        """Count what could not be copied; return the first entry id. Raises the first error."""
        for each, why in self._without.items():
            if each not in self._errors:
                each.lose_checkpoint(why)
        for each in savings:
            if each in self._errors:
                raise self._errors[each]
        found = (self._entry_ids.get(each) for each in savings)
        return next((each for each in found if each is not None), None)


def _has(saving: Saving, drafts: dict[Saving, Draft]) -> bool:
    """Whether the copy of a destination is still there: not sent and removed yet."""
    snapshot = drafts[saving].snapshot
    return snapshot is not None and not saving.has_lost(snapshot)
