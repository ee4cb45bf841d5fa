"""The types of destinations: a name, and where its declaration is. Each is loaded when it is first used.

A stranger's package brings its type as an entry point of the group `hubqueue.destinations`. One that cannot be loaded
stops only its own runs: they wait, and everything else continues.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from hubqueue.config.declaration import Destination
from hubqueue.config.forms import Form, Given, Refused
from hubqueue.config.setting import settings_of, tables_of
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import ConfigError
from hubqueue.domain.redact import clean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "hubqueue.destinations"
# What is there without any configuration, a destination of each type under its type's name.
BUILT_IN = {
    "hub": "hubqueue.destinations.hub:DESTINATION",
    "platform": "hubqueue.destinations.platform:DESTINATION",
}
_INSTALL = "another type needs the package that brings it: install that with pip"
USUAL = "platform"
"""The type of the destination that a run goes to where nothing else decides."""


def types() -> tuple[str, ...]:
    """The names of all types that are installed."""
    return (*BUILT_IN, *sorted(set(_strangers()) - set(BUILT_IN)))


def is_known(type: str) -> bool:
    """Whether there is a declaration of this name."""
    return type in BUILT_IN or type in _strangers()


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent(Destination):
    """Stands for a type whose declaration cannot be had: nothing is sent, and nothing is lost.

    `problem` says what is wrong, `hint` what to do.
    """

    problem: str
    hint: str

    @property
    def error(self) -> ConfigError:
        """The same, to be raised where nothing can be done without the declaration."""
        return ConfigError((self.problem,), hint=self.hint)


@cache
def declaration(type: str) -> Destination:
    """The declaration of a type; an `Absent` where its package cannot be loaded.

    Raises `ConfigError` for a type that is not installed.
    """
    if type in BUILT_IN:
        module, _, name = BUILT_IN[type].partition(":")
        found: Destination = getattr(import_module(module), name)
        return found
    if type in _strangers():
        return _of_a_stranger(type, _strangers()[type])
    close = difflib.get_close_matches(type, types(), n=1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    problem = f"unknown type of destination {clean(type, limit=60)!r}{guess}"
    raise ConfigError((problem,), hint=f"known here: {', '.join(types())}; {_INSTALL}")


def absent(type: str) -> Absent | None:
    """What is wrong with a type that is installed, or was when a row of an outbox was written; None where nothing is."""
    found = of_row(type)
    return found if isinstance(found, Absent) else None


def of_row(type: str) -> Destination:
    """The declaration of a type that an outbox names. It may be installed no more: then an `Absent`."""
    try:
        return declaration(type)
    except ConfigError as error:
        return _absent(type, error.problems[0], error.hint or _INSTALL)


def packages() -> tuple[tuple[str, str], ...]:
    """The types of strangers, and of each the package with its version."""
    return tuple(
        (type, f"{each.dist.name} {each.dist.version}" if each.dist else each.value)
        for type, each in sorted(_strangers().items())
        if type not in BUILT_IN
    )


def built_in() -> tuple[Destination, ...]:
    """The declarations of the types that hubqueue brings."""
    return tuple(declaration(type) for type in BUILT_IN)


def _known_type(given: Given) -> str:
    if isinstance(given.value, str) and is_known(given.value):
        return given.value
    is_misspelt = difflib.get_close_matches(str(given.value), types(), n=1)
    raise Refused(f"must be {' or '.join(map(repr, types()))}" + ("" if is_misspelt else f"; {_INSTALL}"))


TYPE_FORM = Form(_known_type, unit="word")
"""The form of the setting `type`: a type that is installed. The built-in ones are known without looking."""


def usable() -> tuple[str, ...]:
    """The names of all types whose declaration can be loaded: the package of one that is not used here may be broken."""
    return tuple(each for each in types() if absent(each) is None)


def types_with(key: str) -> list[str]:
    """The types whose destinations have a setting, or a table of settings, of this name."""
    holders = {each: declaration(each).settings for each in usable()}
    return [type for type, each in holders.items() if key in settings_of(each) or key in tables_of(each)]


def vendors_url(type: str) -> str:
    """The address of the vendor's own service of a type."""
    return declaration(type).settings(type, type).url


@cache
def _strangers() -> dict[str, EntryPoint]:
    from importlib import metadata  # slow to load, and seldom needed

    return {each.name: each for each in metadata.entry_points(group=GROUP)}


def _of_a_stranger(type: str, entry: EntryPoint) -> Destination:
    package = entry.dist.name if entry.dist else entry.value
    try:
        found: object = entry.load()
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        what = clean(f"{error.__class__.__name__}: {error}", limit=200)
        problem = f"destinations of type {type!r} cannot be loaded from {package}: {what}"
        return _absent(type, problem, f"repair or reinstall {package}; what waits for it is kept")
    if not isinstance(found, Destination) or found.type != type:
        problem = f"{entry.value} of {package} is no destination of type {type!r}"
        return _absent(type, problem, f"repair or reinstall {package}; what waits for it is kept")
    return found


def _absent(type: str, problem: str, hint: str) -> Absent:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ConfigError((problem,), hint=hint)

    return Absent(
        type=type,
        settings=DestinationSettings,
        lanes=tuple(Kind),
        identify=refuse,
        registration=refuse,
        open=refuse,
        problem=problem,
        hint=hint,
    )
