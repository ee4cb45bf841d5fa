"""The runs of one training at several destinations: they know each other by the id of the first one.

A training that continues a run at one destination continues its runs at the others. If the run at one destination cannot
be opened, the others do not wait for it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from hubqueue.domain.errors import HubqueueError


class Member(Protocol):
    """The run at one destination. `run_id` is None until it is in an outbox, `intended_id` is that of a new run."""

    run_id: str | None
    intended_id: str
    continues: bool

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

    @property
    def is_several(self) -> bool:
        """Whether the training has more than one destination."""
        return len(self._members) > 1

    def add(self, member: Member) -> None:
        """A further destination."""
        self._members.append(member)

    def of(self, member: Member) -> tuple[str | None, str | None]:
        """The run to continue at a destination, and the id of the first run; None for that of a run alone.

        The earlier destinations are opened first, without raising: whether their runs continue decides about this one.
        """
        if not self.is_several:
            return member.wants, None
        first, before = self._members[0], self._members[: self._members.index(member)]
        for each in before:
            if each.run_id is None:
                with suppress(HubqueueError, OSError):
                    each.opened()
        continued = next((each.run_id for each in before if each.run_id and each.continues), None)
        is_own = member.wants == member.intended_id  # in an outbox that has replaced its own
        return member.wants if is_own else continued or member.wants, first.run_id or first.intended_id
