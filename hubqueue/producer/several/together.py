"""The runs of one training at several destinations: they know each other by the id of the first one.

A training that continues a run at one destination continues its runs at the others. Destinations that know the model already
are opened first, because they decide whether the training continues. If one cannot be opened, the others do not wait for it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from hubqueue.domain.errors import HubqueueError


class Member(Protocol):
    """The run at one destination. `run_id` is None until it is in an outbox, `intended_id` is that of a new run.

    `knows_model`: the training has named a model that the destination has already.
    """

    run_id: str | None
    intended_id: str
    continues: bool
    knows_model: bool

    @property
    def wants(self) -> str | None:
        """The run to continue: an id, or "last"; None for a new one."""
        ...

    def opened(self) -> object:
        """Open the outbox, and register the run in it."""
        ...


class Together:
    """The runs of one training, in the order of its destinations."""

    def __init__(self) -> None:
        self._members: list[Member] = []
        # Never changed, so that two threads that open several of them lock them in the same order.
        self._in_turn: list[Member] = []

    @property
    def is_several(self) -> bool:
        """Whether the training has more than one destination."""
        return len(self._members) > 1

    def add(self, member: Member) -> None:
        """A further destination."""
        self._members.append(member)
        at = sum(each.knows_model for each in self._in_turn) if member.knows_model else len(self._in_turn)
        self._in_turn.insert(at, member)

    def of(self, member: Member) -> tuple[str | None, str | None]:
        """The run to continue at a destination, and the id of a run of the same training; None for that of a run alone.

        That is the first one, unless the training continues another one. The destinations whose turn is before this one are
        opened first, without raising.
        """
        if not self.is_several:
            return member.wants, None
        first, before = self._members[0], self._in_turn[: self._in_turn.index(member)]
        for each in before:
            if each.run_id is None:
                with suppress(HubqueueError, OSError):
                    each.opened()
        continued = next((each.run_id for each in before if each.run_id and each.continues), None)
        is_own = member.wants == member.intended_id  # in an outbox that has replaced its own
        wanted = member.wants if is_own else continued or member.wants
        return wanted, continued or first.run_id or first.intended_id
