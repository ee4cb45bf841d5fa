"""One open outbox for all runs of a process that share a home and its settings.

Opening an outbox costs much more than using it: settings, schema check, compilation of statements. So when the last run
gives an outbox back, all its file descriptors are closed but the object is kept. The next run only reopens the file,
with the same checks as the first time. An outbox whose file was replaced in the meantime is forgotten.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hubqueue.config.home import Home
from hubqueue.config.reader import Config
from hubqueue.domain.errors import HubqueueError
from hubqueue.outbox.database import forks
from hubqueue.outbox.outbox import Outbox, open_with

# Closed outboxes to keep; they hold no file descriptor.
_REMEMBERED = 8


@dataclass(slots=True)
class _Shared:
    outbox: Outbox
    users: int


class Sharing:
    """The outboxes of one process, each with its number of users."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._shared: list[_Shared] = []
        forks.watch(self)

    def borrow(self, home: Home, config: Config) -> Outbox:
        """An open outbox, to be given back. A damaged one is set aside and replaced. Raises the `OutboxError`s."""
        found = self._known(home, config)
        if found is not None:
            if found.users > 1:
                return found.outbox  # in use, therefore open, and its file was not replaced
            try:
                found.outbox.reopen()
                return found.outbox
            except HubqueueError:
                # A complete open finds the reason and reports it.
                self.forget(found.outbox)
                found.outbox.close()
        outbox = open_with(home, config, os.environ, set_aside_damaged=True)
        with self._guard:
            self._shared.append(_Shared(outbox, 1))
        return outbox

    def hold(self, outbox: Outbox) -> None:
        """Use an outbox that was given back."""
        with self._guard:
            found = self._of(outbox)
            if found is None:
                self._shared.append(_Shared(outbox, 1))
            else:
                found.users += 1

    def give_back(self, outbox: Outbox) -> None:
        """Stop using an outbox; it is closed when it has no users left."""
        with self._guard:
            found = self._of(outbox)
            if found is not None:
                found.users -= 1
                idle = [each for each in self._shared if not each.users]
                for each in idle[:-_REMEMBERED]:
                    self._shared.remove(each)
            unused = found is None or not found.users
        if unused:
            outbox.close()  # if a run borrows it at this moment, it reopens automatically

    def forget(self, outbox: Outbox) -> None:
        """Never lend an outbox again: its file is damaged, or was replaced by another one."""
        with self._guard:
            self._shared = [each for each in self._shared if each.outbox is not outbox]

    @contextmanager
    def used(self, outbox: Outbox) -> Iterator[Outbox]:
        """Use an outbox within a `with` block, whether or not it was given back."""
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
