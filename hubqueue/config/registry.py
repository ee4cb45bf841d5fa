"""The types of destinations: a name, and where its declaration is. Each is loaded when it is first used.

A stranger's package brings its type as an entry point of the group `hubqueue.destinations`.
"""

from __future__ import annotations

import difflib
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from hubqueue.config.declaration import Destination
from hubqueue.config.forms import Form, Given, Refused
from hubqueue.config.setting import settings_of, tables_of
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
USUAL = "platform"
"""The type of the destination that a run goes to where nothing else decides."""


def types() -> tuple[str, ...]:
    """The names of all types that are installed."""
    return (*BUILT_IN, *sorted(set(_strangers()) - set(BUILT_IN)))


def is_known(type: str) -> bool:
    """Whether there is a declaration of this name."""
    return type in BUILT_IN or type in _strangers()


@cache
def declaration(type: str) -> Destination:
    """The declaration of a type. Raises `ConfigError` when there is none, or it cannot be loaded."""
    if type in BUILT_IN:
        module, _, name = BUILT_IN[type].partition(":")
        found: object = getattr(import_module(module), name)
    else:
        found = _of_a_stranger(type)
    if not isinstance(found, Destination) or found.type != type:
        raise ConfigError(
            (f"the package that brings destinations of type {type!r} declares none",),
            hint="ask its author; it has to name a hubqueue.destinations.base.Destination of that type",
        )
    return found


def built_in() -> tuple[Destination, ...]:
    """The declarations of the types that hubqueue brings."""
    return tuple(declaration(type) for type in BUILT_IN)


def _known_type(given: Given) -> str:
    if isinstance(given.value, str) and is_known(given.value):
        return given.value
    raise Refused(f"must be {' or '.join(map(repr, types()))}")


TYPE_FORM = Form(_known_type, unit="word")
"""The form of the setting `type`: a type that is installed. The built-in ones are known without looking."""


def usable() -> tuple[str, ...]:
    """The names of all types whose declaration can be loaded: the package of one that is not used here may be broken."""
    found = []
    for each in types():
        with suppress(ConfigError):
            found.append(declaration(each).type)
    return tuple(found)


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


def _of_a_stranger(type: str) -> object:
    found = _strangers().get(type)
    if found is None:
        close = difflib.get_close_matches(type, types(), n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            (f"unknown type of destination {clean(type, limit=60)!r}{guess}",),
            hint=f"known here: {', '.join(types())}; another one comes with the package that brings it",
        )
    try:
        return found.load()
    except Exception as error:  # a stranger's code may raise anything
        what = clean(f"{error.__class__.__name__}: {error}", limit=200)
        raise ConfigError(
            (f"destinations of type {type!r} cannot be loaded: {what}",),
            hint=f"repair or reinstall {found.dist.name if found.dist else found.value}",
        ) from error
