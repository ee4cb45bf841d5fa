"""What this process has enqueued for one run, kept in memory: saved again when the outbox turns out to be another file.

Bounded: of a long run the oldest entries are dropped from it. A checkpoint is kept as long as its copy is in the spool.
Not thread-safe; the lock of the run guards it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hubqueue.domain.drafts import position
from hubqueue.domain.entry import MERGED, Draft, Kind
from hubqueue.domain.lifecycle import State
from hubqueue.domain.quantities import plural
from hubqueue.outbox.outbox import Outbox
from hubqueue.producer.intake import owe

# Payload bytes of one run: thousands of epochs.
_LIMIT = 1 << 20
_AT_ONCE = 500
_MOST_NAMED = 5


@dataclass(slots=True)
class _Enqueued:
    id: int
    draft: Draft


@dataclass(slots=True)
class Restored:
    """How many entries were saved again, and what is lost, in words."""

    again: int = 0
    lost: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.again or self.lost)

    def __str__(self) -> str:
        named = ", ".join(self.lost[:_MOST_NAMED])
        more = f" and {len(self.lost) - _MOST_NAMED} more" if len(self.lost) > _MOST_NAMED else ""
        again = [f"{plural(self.again, 'entry', 'entries')} saved again"] if self.again else []
        return "; ".join([*again, *([f"lost: {named}{more}"] if self.lost else [])])


class Kept:
    """The drafts that this process has enqueued for a run, oldest first, each with the id of its entry."""

    def __init__(self) -> None:
        self._enqueued: deque[_Enqueued] = deque()
        # Drafts that merge, with all that the hub has under their key, once their outbox was replaced.
        self._delivered: dict[tuple[Kind, str], Draft] = {}
        self._bytes = 0
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._enqueued)

    @property
    def newest(self) -> int:
        """The id of the newest entry; an outbox gives higher ids to later ones. 0 without any."""
        return self._enqueued[-1].id if self._enqueued else 0

    def note(self, entry_id: int, draft: Draft) -> None:
        """Keep a draft that was enqueued."""
        self._delivered.pop(_key(draft), None)
        if draft.kind is Kind.CKPT:
            # The copy of a superseded checkpoint is deleted.
            gone = (draft.key, *draft.replaces)
            self._keep(
                [
                    each
                    for each in self._enqueued
                    if _key(each.draft)[1] not in gone or not each.draft.snapshot
                ]
            )
        self._enqueued.append(_Enqueued(entry_id, draft))
        self._bytes += len(draft.payload)
        while self._bytes > _LIMIT and len(self._enqueued) > 1:
            self._bytes -= len(self._enqueued.popleft().draft.payload)
            self._dropped += 1

    def clear(self) -> None:
        """Forget everything."""
        self._keep([])
        self._delivered.clear()
        self._dropped = 0

    def completed(self, draft: Draft) -> Draft:
        """A draft with what the hub has under its key: the outbox that took its place does not know it."""
        delivered = self._delivered.get(_key(draft))
        return draft if delivered is None else draft.following(delivered.payload)

    def forget_settled(self, outbox: Outbox, run_id: str) -> None:
        """Forget what was delivered or is not owed any more, as far as an outbox that was replaced still shows it.

        Drafts that merge are one value: what the newest entry of their key has, also from another process.
        """
        rows = _rows(outbox, [each.id for each in self._enqueued])
        values = _values(outbox, run_id)
        kept: list[_Enqueued] = []
        waiting = set[tuple[Kind, str]]()
        for each in reversed(self._enqueued):
            key = _key(each.draft)
            state, payload = values.get(key, (None, each.draft.payload))
            if state == State.PENDING:
                if key not in waiting:
                    waiting.add(key)
                    kept.append(_Enqueued(each.id, each.draft._replace(payload=payload)))
                continue
            if state == State.DELIVERED:
                self._delivered[key] = each.draft._replace(payload=payload)
            if each.id not in rows or rows[each.id]["state"] in (State.PENDING, State.DEAD):
                kept.append(each)
        self._keep(kept[::-1])

    def restore(self, outbox: Outbox, run_id: str) -> Restored:
        """Enqueue again what an outbox does not have. Raises the `OutboxError`s; a further call continues."""
        found, repeated = Restored(), set[tuple[Kind, str]]()
        rows = _rows(outbox, [each.id for each in self._enqueued])
        for each in list(self._enqueued):
            row, draft = rows.get(each.id), each.draft
            there = row is not None and _is(outbox, row, run_id, draft)
            if draft.snapshot is not None and outbox.spool.went_with_home(draft.snapshot):
                if row is None or not there or row["state"] == State.PENDING:
                    found.lost.append(_named(draft))
                self._keep([other for other in self._enqueued if other is not each])
            elif not there or _key(draft) in repeated:
                # A later value of the same key is enqueued again too, so that the later one stays the newest.
                each.id, _ = owe(outbox, run_id, draft)
                repeated.add(_key(draft))
                found.again += 1
        found.again += self._send_again(outbox, run_id)
        if found.again and self._dropped:
            found.lost.append(f"{self._dropped} older entries that are not in memory any more")
            self._dropped = 0
        self._enqueued = deque(sorted(self._enqueued, key=lambda each: each.id))
        return found

    def _send_again(self, outbox: Outbox, run_id: str) -> int:
        """Enqueue what the hub has, where an older value waits that would replace it there. Returns how many."""
        again = 0
        for key, (state, payload) in _values(outbox, run_id).items() if self._delivered else ():
            delivered = self._delivered.get(key)
            if delivered is not None and state == State.PENDING and not delivered.is_in(payload):
                self.note(owe(outbox, run_id, delivered)[0], delivered)
                again += 1
        return again

    def _keep(self, kept: list[_Enqueued]) -> None:
        self._enqueued = deque(kept)
        self._bytes = sum(len(each.draft.payload) for each in kept)


def _rows(outbox: Outbox, ids: list[int]) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for at in range(0, len(ids), _AT_ONCE):
        some = ids[at : at + _AT_ONCE]
        rows |= {row["id"]: row for row in outbox.stats.entries(ids=some, limit=len(some))}
    return rows


def _is(outbox: Outbox, row: dict[str, Any], run_id: str, draft: Draft) -> bool:
    """Whether an entry is that of a draft. In an outbox that was replaced, another process may have got its id."""
    if (row["run_id"], row["kind"], row["key"]) != (run_id, *_key(draft)):
        return False
    if draft.snapshot is not None:
        return bool(row["snapshot"] == draft.snapshot.name)
    return draft.is_in(outbox.stats.payload(row["id"]) or "")


def _values(outbox: Outbox, run_id: str) -> dict[tuple[Kind, str], tuple[str, str]]:
    """By kind and key: the state and the payload of the newest entry that merges, and waits or is delivered."""
    return {
        (kind, key): (state, payload)
        for kind in MERGED
        for key, state, payload in outbox.stats.values(run_id, kind)
    }


def _key(draft: Draft) -> tuple[Kind, str]:
    return draft.kind, draft.key


def _named(draft: Draft) -> str:
    at = str(position(draft))
    return f"the {draft.key} checkpoint" + (f" of {at}" if at else "")
