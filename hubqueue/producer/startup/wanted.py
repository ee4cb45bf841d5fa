"""What a run is started with: the arguments of `start_run`, read with the settings of its home.

If the settings cannot be read for a reason that may pass (an I/O error, no permission, too many open files, no home), the
destination and the path of the outbox are unknown: with the default settings, entries would go to another address. Until
then the start is preliminary: what is logged is kept in memory, and the settings are read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hubqueue.config.choice import choose_all
from hubqueue.config.credentials import Credentials
from hubqueue.config.home import Home
from hubqueue.config.known_keys import without_keys
from hubqueue.config.reader import Config, DestinationSettings, parse
from hubqueue.config.registry import declaration
from hubqueue.domain.entry import Draft
from hubqueue.domain.errors import ConfigError, InvalidModel, OutboxUnavailable
from hubqueue.domain.identifier import Identifier
from hubqueue.producer.intake import describing


@dataclass(frozen=True, slots=True)
class Start:
    """What a run is started with. `named` identifies its model, `resume` the run to continue (an id, or "last").

    `described` completes its drafts with facts about the machine.
    `again` is set in a preliminary start: it reads the settings again and returns the actual start. It raises
    `OutboxUnavailable` as long as they cannot be read, and `ConfigError` and `InvalidModel` for what they turn out to be.
    `further` has the starts at the other destinations, if there are several. With `is_joined` this process only saves to a
    run of another process, `resume`, and does not end it. `name` is that of a new run, empty without one.
    """

    home: Home
    config: Config
    destination: DestinationSettings
    named: Identifier
    args: Mapping[str, object]
    resume: str | None = None
    further: tuple[Start, ...] = ()
    described: Callable[[Draft], Draft] = lambda draft: draft
    again: Callable[[], Start] | None = None
    is_joined: bool = False
    name: str = ""

    @property
    def takes_steps(self) -> bool | None:
        """Whether the destination takes steps; None in a preliminary start, as its destination may be another one."""
        return None if self.again is not None else declaration(self.destination.type).takes_steps


@dataclass(frozen=True, slots=True)
class Wanted:
    """The arguments of `start_run`, checked, but not read with any settings yet. `destinations` is None for the default."""

    home: Home
    config: str | os.PathLike[str] | None
    model: str
    args: Mapping[str, object]
    destinations: tuple[str, ...] | None
    resume: str | None
    name: str = ""

    def start(self, *, strict: bool) -> Start:
        """The start, preliminary if the settings cannot be read. With `strict` that is raised: `OutboxUnavailable`.

        A preliminary start has one destination; the actual one has all of them. Raises `ConfigError` and `InvalidModel` for
        errors that only the caller can fix.
        """
        try:
            return self._read()
        except OutboxUnavailable:
            if strict:
                raise
        settings = _of_environment()
        try:
            (start, *_) = self._with(settings, self.destinations)
            return replace(start, again=self._read)
        except (ConfigError, InvalidModel):
            if self.destinations is None:
                raise
        # The settings that cannot be read may name this destination.
        (start, *_) = self._with(settings, None, Identifier(filename=self.model))
        return replace(start, again=self._read)

    def _read(self) -> Start:
        chosen = None if self.config is None else Path(self.config)
        starts = self._with(self.home.load_config(chosen, os.environ), self.destinations)
        first, *further = (
            replace(each, described=describing(each.destination, self.args)) for each in starts
        )
        return replace(first, further=tuple(further))

    def _with(
        self, settings: Config, destinations: tuple[str, ...] | None, named: Identifier | None = None
    ) -> list[Start]:
        keys, others = Credentials(self.home.credentials, os.environ), settings.destinations.values()
        starts = []
        for target in choose_all(settings, keys, destinations, model=self.model):
            model = named or declaration(target.type).identify(self.model, target)
            args = without_keys(self.args, self.home.credentials, os.environ, others, model.api_key)
            starts.append(Start(self.home, settings, target, model, args, self.resume, name=self.name))
        return starts


def store_key(start: Start) -> None:
    """Store the key of an identifier. Raises `OutboxUnavailable`, `CredentialsError` and `OSError`."""
    key = start.named.api_key
    if key is not None:
        start.home.create()
        Credentials(start.home.credentials, os.environ).add(start.destination, key)


def readable_settings(
    home: Home, config: str | os.PathLike[str] | None, *, strict: bool = False
) -> tuple[Config, bool]:
    """The settings of a training, and whether all could be read: else only those of the environment.

    Nothing may be saved with the latter: `start_run` reads the settings again until it can, and logs why it cannot. With
    `strict` the reason is raised here. Raises `ConfigError` for errors that only the caller can fix.
    """
    try:
        return home.load_config(None if config is None else Path(config), os.environ), True
    except OutboxUnavailable:
        if strict:
            raise
        return _of_environment(), False


def _of_environment() -> Config:
    return parse("", os.environ, source="the environment")
