"""One opened outbox for all runs of a process that share a home and its settings.

Opening costs many times what a run needs of it: the settings, the schema check, statements compiled anew. So an outbox
that its last run gives back is closed, down to the last descriptor, and remembered: the next run only opens its file
again, with the same checks as at first. One whose file was replaced meanwhile is forgotten.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hubqueue.config.home import Home
from hubqueue.config.reader import Config
from hubqueue.domain.clock import Clock
from hubqueue.domain.errors import HubqueueError
from hubqueue.outbox.database import forks
from hubqueue.outbox.outbox import Outbox, open_with

# So many closed ones are remembered; they hold no descriptor.
_REMEMBERED = 8


@dataclass(slots=True)
class _Shared:
    outbox: Outbox
    users: int


class Sharing:
    """The outboxes of one process, each with how many use it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._shared: list[_Shared] = []
        forks.watch(self)

    def borrow(self, home: Home, config: Config, *, clock: Clock | None = None) -> Outbox:
        """An opened outbox, set aside and started anew where it is damaged; to be given back. Raises the `OutboxError`s."""
        found = None if clock is not None else self._known(home, config)
        if found is not None:
            if found.users > 1:
                return found.outbox  # in use, so open, and its file is still the one
            try:
                found.outbox.reopen()
                return found.outbox
            except HubqueueError:
                # Whatever it is, the long way finds out and says it.
                self.forget(found.outbox)
                found.outbox.close()
        outbox = open_with(home, config, os.environ, clock=clock, set_aside_damaged=True)
        with self._guard:
            self._shared.append(_Shared(outbox, 1))
        return outbox

    def hold(self, outbox: Outbox) -> None:
        """Use an outbox again that was given back."""
        with self._guard:
            found = self._of(outbox)
            if found is None:
                self._shared.append(_Shared(outbox, 1))
            else:
                found.users += 1

    def give_back(self, outbox: Outbox) -> None:
        """Use it no more; it is closed when nobody does."""
        with self._guard:
            found = self._of(outbox)
            if found is not None:
                found.users -= 1
                idle = [each for each in self._shared if not each.users]
                for each in idle[:-_REMEMBERED]:
                    self._shared.remove(each)
            unused = found is None or not found.users
        if unused:
            outbox.close()  # should a run borrow it at this very moment, it opens again by itself

    def forget(self, outbox: Outbox) -> None:
        """Never lend it again: its file is damaged, or another one stands in its place."""
        with self._guard:
            self._shared = [each for each in self._shared if each.outbox is not outbox]

    @contextmanager
    def used(self, outbox: Outbox) -> Iterator[Outbox]:
        """Use an outbox for a moment, whether or not it was given back."""
        self.hold(outbox)
        try:
            yield outbox
        finally:
            self.give_back(outbox)

    def locks(self) -> tuple[threading.Lock, ...]:
        return (self._guard,)

    def after_fork(self) -> None:
        self._guard = threading.Lock()

    def _known(self, home: Home, config: Config) -> _Shared | None:
        with self._guard:
            self._shared = [
                each for each in self._shared if not (each.users and each.outbox.database.was_replaced())
            ]
            for each in self._shared:
                if each.outbox.home == home and each.outbox.config == config:
                    each.users += 1
                    return each
        return None

    def _of(self, outbox: Outbox) -> _Shared | None:
        return next((each for each in self._shared if each.outbox is outbox), None)


SHARED = Sharing()
