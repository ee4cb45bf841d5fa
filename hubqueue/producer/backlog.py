"""What waits in memory while the storage fails: oldest first, one for each place, never without a limit.

An error, whatever it is, costs no draft: it stays, and is tried again with the next call. One that is refused while the
storage takes others goes to the end of the line, so that it stands in nobody's way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from hubqueue.domain.entry import Draft
from hubqueue.domain.errors import HubqueueError, OutboxDamaged
from hubqueue.producer.intake import is_unsure

# The oldest give way beyond this.
_LIMIT = 100_000
# After so many refusals the others wait for the next call: a training must not try thousands in vain after each epoch.
_REFUSALS = 10


@dataclass(slots=True, eq=False)
class _Waiting:
    draft: Draft
    unsure: bool = False  # whether an earlier try may have saved it all the same


class Backlog:
    """Drafts that are not on the disk yet, as far as is known. Guarded by its run.

    `leave` is told of each draft that gives way, and whether it may be on the disk all the same; `replaced` says
    whether a newer one took its place.
    """

    def __init__(self, leave: Callable[[Draft, bool, bool], None]) -> None:
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._leave = leave

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, draft: Draft) -> None:
        """Add a draft, in the place of an older one with its key."""
        for key in (draft.key, *draft.replaces):
            older = self._waiting.pop(key, None)
            if older is not None:
                self._leave(older.draft, older.unsure, True)
        self._waiting[draft.key] = _Waiting(draft)
        while len(self._waiting) > _LIMIT:
            oldest = self._waiting.popitem(last=False)[1]
            self._leave(oldest.draft, oldest.unsure, False)

    def save(self, enqueue: Callable[[Draft, bool], int]) -> int | None:
        """Enqueue everything; the id of the newest. Raises what kept the newest from being saved.

        `enqueue` hears whether an earlier try may have saved the draft: then it has to look first.
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
            # The handler of a signal may have put a newer one in its place meanwhile.
            if self._waiting.get(key) is each:
                del self._waiting[key]
            entry_id = found if key == newest else entry_id
        return entry_id

    def _defer(self, key: str, each: _Waiting, error: BaseException) -> None:
        """Another one is tried first next time, in case the trouble is with this one."""
        each.unsure |= is_unsure(error)
        if self._waiting.get(key) is each:
            self._waiting.move_to_end(key)
