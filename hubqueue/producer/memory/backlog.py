"""Drafts kept in memory while the storage fails: oldest first, one for each key with all of its values, up to a limit.

No error loses a draft: it stays and is tried again with the next call. A draft that is refused while the storage
accepts others moves to the end of the queue, so that it does not block them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hubqueue.domain.entry import Draft
from hubqueue.domain.errors import HubqueueError, OutboxDamaged
from hubqueue.producer.intake import is_unsure

# Beyond this many drafts, the oldest are dropped.
_LIMIT = 100_000
# After this many refusals the others wait for the next call: a training must not retry thousands after each epoch.
_REFUSALS = 10


@dataclass(slots=True, eq=False)
class _Waiting:
    draft: Draft
    unsure: bool = False  # whether an earlier attempt may have saved it


class Backlog:
    """Drafts that are not known to be on disk. Not thread-safe; the lock of its run guards changes.

    `on_removed(draft, unsure, replaced)` is called for each draft that is removed without being saved. `unsure`: it may
    be on disk after all. `replaced`: a newer draft has replaced it.
    """

    def __init__(self, on_removed: Callable[[Draft, bool, bool], None]) -> None:
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._on_removed = on_removed

    def __len__(self) -> int:
        return len(self._waiting)

    def drafts(self) -> list[Draft]:
        """The drafts in memory, oldest first."""
        return [each.draft for each in self._waiting.values()]

    def put(self, draft: Draft) -> None:
        """Add a draft. It replaces an older one with the same key, with the values of that one if it merges."""
        for key in (draft.key, *draft.replaces):
            older = self._waiting.pop(key, None)
            if older is not None:
                draft = draft.following(older.draft.payload) if key == draft.key else draft
                self._on_removed(older.draft, older.unsure, True)
        self._waiting[draft.key] = _Waiting(draft)
        while len(self._waiting) > _LIMIT:
            oldest = self._waiting.popitem(last=False)[1]
            self._on_removed(oldest.draft, oldest.unsure, False)

    def change_keys(self, keyed: Callable[[Draft], Draft]) -> None:
        """Replace each draft by `keyed(draft)`, in the same order. Those that get one key become one, as in `put`."""
        for key in list(self._waiting):
            # A signal handler may have replaced it with a newer draft in the meantime.
            each = self._waiting.pop(key, None)
            if each is not None:
                self.put(keyed(each.draft))

    def save(self, enqueue: Callable[[Draft, bool], int]) -> int | None:
        """Enqueue all drafts; return the entry id of the newest. Raises the error that prevented saving the newest.

        `enqueue(draft, unsure)` returns an entry id. When `unsure`, an earlier attempt may have saved the draft, so it
        must check the outbox first.
        """
        refused = 0
        entry_id: int | None = None
        newest = next(reversed(self._waiting), None)
        for key, each in list(self._waiting.items()):
            try:
                found = enqueue(each.draft, each.unsure)
            except (HubqueueError, OSError) as error:
                self._defer(key, each, error)
                if entry_id is None or isinstance(error, OutboxDamaged):
                    raise
                return entry_id
            except Exception as error:
                self._defer(key, each, error)
                refused += 1
                if key == newest or refused >= _REFUSALS:
                    raise
                continue
            except BaseException:
                each.unsure = True
                raise
            # A signal handler may have replaced it with a newer draft in the meantime.
            if self._waiting.get(key) is each:
                del self._waiting[key]
            entry_id = found if key == newest else entry_id
        return entry_id

    def _defer(self, key: str, each: _Waiting, error: BaseException) -> None:
        """Try the other drafts first next time, in case this draft causes the error."""
        each.unsure |= is_unsure(error)
        if self._waiting.get(key) is each:
            self._waiting.move_to_end(key)
