"""What one training saves at each of its destinations, in the order in which the script named them.

Promises: an error at one destination does not keep the others from what they get. With `strict` the first error is raised,
after all destinations had their turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from hubqueue.config.declaration import Destination
from hubqueue.config.registry import declaration
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.drafts import Checkpoint
from hubqueue.domain.entry import Draft
from hubqueue.producer.called_with import Ending
from hubqueue.producer.leftover import Leftover, added
from hubqueue.producer.opening import Opening
from hubqueue.producer.saving import Saving
from hubqueue.producer.several.copies import save_copies
from hubqueue.producer.several.together import Together
from hubqueue.producer.startup.wanted import Start
from hubqueue.producer.survival import COPY, Survivor

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class RunDestination:
    """A training at one destination: the name in the configuration, and the run there.

    `id` is its local id, None until the storage could be opened. `remote_id` and `url` are None until the destination has
    responded. `cancelled`: it has asked the training to stop.
    """

    name: str
    type: str
    id: str | None
    remote_id: str | None
    url: str | None
    cancelled: bool


class Savings:
    """The `Saving` of each destination. The first one is that of the first destination.

    `on_added` is called with a further one: the destinations are known when the settings could be read.
    """

    def __init__(
        self,
        start: Start,
        *,
        strict: bool,
        on_enqueue: Callable[[], None],
        on_settings: Callable[[Start], None],
        on_added: Callable[[Saving], None],
    ) -> None:
        self._strict, self._on_enqueue = strict, on_enqueue
        self._on_settings, self._on_added = on_settings, on_added
        self._together, self._family = Together(), list[Survivor]()
        self.each: tuple[Saving, ...] = ()
        for one in (start, *start.further):
            self._add(one)

    @property
    def first(self) -> Saving:
        """That of the first destination."""
        return self.each[0]

    @property
    def names(self) -> str:
        """The names of the destinations, for a person."""
        return ", ".join(each.opening.start.destination.name for each in self.each)

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended at every destination."""
        return all(each.ended is not None for each in self.each)

    def save(
        self,
        make: Callable[[Start], Draft | None],
        among: Callable[[Destination], bool] = lambda _declared: True,
    ) -> int | None:
        """Save the draft that `make` returns for each destination `among` them (None: nothing).

        Returns the first entry id, None without one. Raises `RunFinished` after the end of the run.
        """

        def save(saving: Saving) -> int | None:
            draft = make(saving.opening.start)
            return None if draft is None else saving.save(draft)

        return next((each for each in in_turn(self._among(among), save) if each is not None), None)

    def save_checkpoint(
        self, checkpoint: Checkpoint, among: Callable[[Destination], bool] = lambda _declared: True
    ) -> int | None:
        """Copy a checkpoint once and enqueue it for each destination `among` them; otherwise as `save`."""
        if self.first.opening.start.again is not None:
            self.first.attempt(COPY, self.first.opening.opened)  # all destinations are known then
        return save_copies(self._among(among), checkpoint)

    def end(self, ending: Ending) -> None:
        """End the run at each destination, all before the deadline."""
        known = self.each
        try:
            in_turn(known, lambda saving: saving.end(ending))
        finally:
            # The settings may be readable only now.
            in_turn(self.each[len(known) :], lambda saving: saving.end(ending))

    def left(self) -> Leftover:
        """What the run owes now, with that of each destination."""
        return added({each.opening.start.destination.name: each.left() for each in self.each})

    def ends_of_others(self, left: Leftover) -> Leftover:
        """The same, with the states that other processes had set."""
        found = {}
        for each in self.each:
            name = each.opening.start.destination.name
            found[name] = replace(left.by_destination.get(name, Leftover()), other_end=each.ends.other)
        return added(found)

    def may_arrive(self, left: Leftover) -> bool:
        """Whether waiting can help at any destination: what it owes is not on hold, and is more than an end that waits."""
        return any(
            one.entries and one.held is None and not (each.ends.waits and one.entries == 1)
            for each in self.each
            if (one := left.by_destination.get(each.opening.start.destination.name)) is not None
        )

    def openings(self) -> Iterator[Opening]:
        """Those of all destinations, for reading. An unpickled run opens its outbox when it is first used."""
        for each in self.each:
            if each.opening.start.is_joined and each.opening.outbox is None:
                each.attempt("run", each.opening.opened)
            yield each.opening

    def destinations(self) -> tuple[RunDestination, ...]:
        """What is known of each destination now. Reads the outbox."""
        found = []
        for opening, (run_id, target) in zip(self.openings(), self.targets(), strict=True):
            row = opening.row() or {}
            remote_id = row.get("remote_id") or opening.start.named.model_id
            at = (target.name, target.type, run_id, remote_id)
            found.append(RunDestination(*at, row.get("url"), bool(row.get("cancelled"))))
        return tuple(found)

    def targets(self) -> Iterator[tuple[str | None, DestinationSettings]]:
        """The local id of each run, if it has one yet, and its destination."""
        for each in self.each:
            start = each.opening.start
            yield start.resume if start.is_joined else each.opening.run_id, start.destination

    def _among(self, among: Callable[[Destination], bool]) -> list[Saving]:
        return [each for each in self.each if among(declaration(each.opening.start.destination.type))]

    def _add(self, start: Start) -> Saving:
        saving = Saving(
            start,
            strict=self._strict,
            on_enqueue=self._on_enqueue,
            on_settings=self._settings_read,
            together=self._together,
            family=self._family,
        )
        self.each = (*self.each, saving)
        return saving

    def _settings_read(self, start: Start) -> None:
        """A preliminary start was that of one destination: add the others, with what was logged until now."""
        self._on_settings(start)
        for one in () if start.is_joined else start.further:
            saving = self._add(one)
            saving.take_over(self.first)
            self._on_settings(one)
            self._on_added(saving)


def in_turn(savings: Sequence[Saving], act: Callable[[Saving], _T]) -> list[_T]:
    """Call `act` for each. An error does not keep the others from their turn: the first one is raised after the last turn."""
    done, failed = [], list[Exception]()
    for each in savings:
        try:
            done.append(act(each))
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return done
