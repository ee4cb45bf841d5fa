"""Metrics in memory while the storage fails: oldest first, one an epoch, never without a limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from hubqueue.entry import Draft
from hubqueue.errors import HubqueueError

# The oldest give way beyond this.
_LIMIT = 100_000


class Backlog:
    """Drafts that are not on the disk yet. `lost` counts what will never be. Guarded by its run."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, Draft] = OrderedDict()
        self.lost = 0

    def __len__(self) -> int:
        """What never reached the disk, so far."""
        return len(self._waiting) + self.lost

    def put(self, draft: Draft) -> None:
        """Add a draft, in the place of an older one with its key."""
        self._waiting[draft.key] = draft
        self._waiting.move_to_end(draft.key)
        while len(self._waiting) > _LIMIT:
            self._waiting.popitem(last=False)
            self.lost += 1

    def save(self, enqueue: Callable[[Draft], int]) -> int | None:
        """Enqueue everything; the id of the last entry. What fails for the storage's sake stays."""
        entry_id = None
        while self._waiting:
            key, draft = next(iter(self._waiting.items()))
            try:
                entry_id = enqueue(draft)
            except (HubqueueError, OSError):
                raise
            except Exception:
                # A defect met this very draft: it must not stand in the way of all that follow.
                self._done(key, draft)
                self.lost += 1
                raise
            self._done(key, draft)
        return entry_id

    def _done(self, key: str, draft: Draft) -> None:
        # The handler of a signal may have put a newer one in its place meanwhile.
        if self._waiting.get(key) is draft:
            del self._waiting[key]
