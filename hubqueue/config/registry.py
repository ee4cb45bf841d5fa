"""The types of destinations: a name, and the path of its declaration, which is loaded when it is first used.

Another package adds its type with an entry point of the group `hubqueue.destinations`. If that cannot be loaded, only its
own runs wait; everything else continues.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from hubqueue.config.declaration import Destination
from hubqueue.config.forms import Form, Given, Refused
from hubqueue.config.names import did_you_mean
from hubqueue.config.setting import settings_of, tables_of
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import ConfigError
from hubqueue.domain.redact import clean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "hubqueue.destinations"
BUILT_IN = {
    "hub": "hubqueue.destinations.hub:DESTINATION",
    "platform": "hubqueue.destinations.platform:DESTINATION",
    "s3": "hubqueue.destinations.s3:DESTINATION",
    "folder": "hubqueue.destinations.folder:DESTINATION",
    "http": "hubqueue.destinations.http:DESTINATION",
    "mlflow": "hubqueue.destinations.mlflow:DESTINATION",
    "huggingface": "hubqueue.destinations.huggingface:DESTINATION",
}
IMPLIED = ("hub", "platform")
"""Without a configuration there is a destination of each of these types, with the type's name."""
EXTRAS = {"s3": "boto3", "huggingface": "huggingface_hub"}
"""By each of them that needs a library of its own, that library. The extra `hubqueue[TYPE]` installs it."""
_INSTALL = "another type needs its own package: install it with pip"
USUAL = "platform"
"""The type of a run's destination if nothing else decides."""


def types() -> tuple[str, ...]:
    """The names of all types that are installed."""
    return (*BUILT_IN, *sorted(set(_entry_points()) - set(BUILT_IN)))


def is_known(type: str) -> bool:
    """Whether there is a declaration of this name."""
    return type in BUILT_IN or type in _entry_points()


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent(Destination):
    """Replaces the declaration of a type that cannot be used: nothing is sent, and nothing is lost.

    `problem` says what is wrong, `hint` what to do. `declared`: everything of the declaration that needs no library is
    there, so runs are started and ended as always.
    """

    problem: str
    hint: str
    declared: bool = False

    @property
    def error(self) -> ConfigError:
        """The problem as an error, for code that cannot continue without the declaration."""
        return ConfigError((self.problem,), hint=self.hint)


@cache
def declaration(type: str) -> Destination:
    """The declaration of a type; an `Absent` where its package cannot be loaded.

    Raises `ConfigError` for a type that is not installed.
    """
    if type in BUILT_IN:
        module, _, name = BUILT_IN[type].partition(":")
        found: Destination = getattr(import_module(module), name)
        return found if has_library(type) else _without_library(found)
    if type in _entry_points():
        return _of_package(type, _entry_points()[type])
    problem = f"unknown type of destination {clean(type, limit=60)!r}{did_you_mean(type, types())}"
    hint = f"installed: {', '.join(types())}; {_INSTALL}"
    raise ConfigError((problem,), hint=hint)


def has_library(type: str) -> bool:
    """Whether the library is installed that a type of hubqueue's own needs. It is not loaded."""
    from importlib.util import find_spec

    return type not in EXTRAS or find_spec(EXTRAS[type]) is not None


def install_line(type: str) -> str:
    """The command that installs what a type of `EXTRAS` needs."""
    return f"pip install 'hubqueue[{type}]'"


def absent(type: str) -> Absent | None:
    """What is wrong with a type that is installed, or was when a row of an outbox was written; None if it is usable."""
    found = of_row(type)
    return found if isinstance(found, Absent) else None


def of_row(type: str) -> Destination:
    """The declaration of a type that an outbox names; an `Absent` if it is no longer installed."""
    try:
        return declaration(type)
    except ConfigError as error:
        return _absent(type, error.problems[0], error.hint or _INSTALL)


def packages() -> tuple[tuple[str, str], ...]:
    """The types of other packages, each with its package and version."""
    return tuple(
        (type, f"{each.dist.name} {each.dist.version}" if each.dist else each.value)
        for type, each in sorted(_entry_points().items())
        if type not in BUILT_IN
    )


def built_in() -> tuple[Destination, ...]:
    """The declarations of hubqueue's own types."""
    return tuple(declaration(type) for type in BUILT_IN)


def _known_type(given: Given) -> str:
    if isinstance(given.value, str) and is_known(given.value):
        return given.value
    known = f"must be {' or '.join(map(repr, types()))}"
    raise Refused(known + (did_you_mean(str(given.value), types()) or f"; {_INSTALL}"))


TYPE_FORM = Form(_known_type, unit="word")
"""The form of the setting `type`: a type that is installed. The built-in ones need no search for packages."""


def usable() -> tuple[str, ...]:
    """The names of all types whose declaration can be loaded. The package of an unused type may be broken."""
    return tuple(each for each in types() if absent(each) is None)


def types_with(key: str) -> list[str]:
    """The types whose destinations have a setting, or a table of settings, of this name."""
    holders = {each: declaration(each).settings for each in usable()}
    return [type for type, each in holders.items() if key in settings_of(each) or key in tables_of(each)]


def vendors_url(type: str) -> str:
    """The address of the vendor's own service of a type."""
    return declaration(type).settings(type, type).url


@cache
def _entry_points() -> dict[str, EntryPoint]:
    from importlib import metadata  # slow to load, and seldom needed

    return {each.name: each for each in metadata.entry_points(group=GROUP)}


def _of_package(type: str, entry: EntryPoint) -> Destination:
    package = entry.dist.name if entry.dist else entry.value
    try:
        found: object = entry.load()
    except (Exception, SystemExit) as error:  # another package's code may raise anything
        what = clean(f"{error.__class__.__name__}: {error}", limit=200)
        problem = f"destinations of type {type!r} cannot be loaded from {package}: {what}"
        return _absent(type, problem, f"repair or reinstall {package}; entries that wait for it are kept")
    if not isinstance(found, Destination) or found.type != type:
        problem = f"{entry.value} of {package} is not a destination of type {type!r}"
        return _absent(type, problem, f"repair or reinstall {package}; entries that wait for it are kept")
    return found


def _without_library(found: Destination) -> Absent:
    """A type of hubqueue's own without its library: runs can be started and saved, and wait until it is installed."""
    library, line = EXTRAS[found.type], install_line(found.type)
    problem = f"destinations of type {found.type!r} need {library}, which is not installed"
    hint = f"install it with: {line}; entries that wait for it are kept"
    refusing = _absent(found.type, problem, hint)
    kept = {each.name: getattr(found, each.name) for each in fields(Destination)}
    return Absent(**{**kept, "open": refusing.open}, problem=problem, hint=hint, declared=True)


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
