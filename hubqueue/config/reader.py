"""The configuration: TOML text and environment in, frozen settings out.

Promises to report every problem at once, each naming its key or variable and never repeating a value that
could be a key. Precedence: environment variable, then file, then default. Refuses what is not declared: a
misspelt key is an error, not a default. Reads no file and no environment of its own.

What can be set, and in which form, is declared in the settings classes; a destination's table is read with the class of its
type.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubqueue.config import forms
from hubqueue.config.config import Config, did_you_mean
from hubqueue.config.declaration import Destination
from hubqueue.config.forms import Form, Given, Refused
from hubqueue.config.names import LONGEST_NAME, NAME, PREFIX, looks_secret, variable
from hubqueue.config.registry import (
    BUILT_IN,
    TYPE_FORM,
    USUAL,
    absent,
    declaration,
    is_known,
    types_with,
    vendors_url,
)
from hubqueue.config.setting import Setting, Table, places, settings_of, tables_of
from hubqueue.config.settings import (
    DestinationSettings,
    OutboxSettings,
    RateLimits,
    RetrySettings,
    SpoolSettings,
    WorkerSettings,
)
from hubqueue.domain.errors import ConfigError
from hubqueue.domain.redact import clean

__all__ = [
    "Config",
    "DestinationSettings",
    "OutboxSettings",
    "RateLimits",
    "Reading",
    "RetrySettings",
    "SpoolSettings",
    "WorkerSettings",
    "parse",
    "read",
    "variable",
]

Keys = tuple[str, ...]
"""The keys that lead to a setting: ("destinations", "lab", "url")."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A configuration, its file, and where each setting comes from that is not a default."""

    config: Config
    given: Mapping[Keys, Given] = field(repr=False)  # passwords among them
    file: Path | None = None


_ENVIRONMENT = "the environment"


def parse(text: str, environ: Mapping[str, str], *, source: str) -> Config:
    """The settings that the TOML `text` and the `HUBQUEUE_<SECTION>__<KEY>` variables of `environ` give.

    `source` names where the text came from, for the hint. Raises `ConfigError` with every problem.
    """
    return read(text, environ, source=source).config


def read(text: str, environ: Mapping[str, str], *, source: str) -> Reading:
    """The same, with where each setting comes from."""
    return _Reader(environ, source).read(text)


class _Reader:
    """One reading. `_values` has what could be used, `_broken` where something could not."""

    def __init__(self, environ: Mapping[str, str], source: str) -> None:
        self._environ = environ
        self._source = source
        self._problems: list[str] = []
        self._culprits: dict[str, None] = {}
        self._values: dict[Keys, Any] = {}
        self._given: dict[Keys, Given] = {}
        self._broken: set[Keys] = set()
        self._types: dict[str, str] = {}  # of the destinations, by their names
        self._doubtful: set[str] = set()  # destinations whose type is not known
        self._implied: tuple[str, ...] = ()

    def read(self, text: str) -> Reading:
        self._take_file(self._load(text))
        self._take_environment()
        default = self._choose_default()
        named = ("default_destination",) in self._values or len(self._types) == 1
        self._check_retry()
        made = {name: self._destination(name) for name in self._types}
        if self._problems:
            raise ConfigError(tuple(self._problems), hint=f"correct {' and '.join(self._culprits)}")
        config = Config(
            default_destination=default,
            destinations={name: each for name, each in made.items() if each is not None},
            implied=frozenset(self._implied) - ({default} if named else set()),
            default_named=named,
            **{key: self._made((key,), table) for key, table in tables_of(Config).items()},
        )
        return Reading(config, self._given)

    def _load(self, text: str) -> dict[str, Any]:
        try:
            # Editors on Windows begin a file with a byte order mark.
            return tomllib.loads(text.removeprefix("\ufeff"))
        except tomllib.TOMLDecodeError as error:
            problem = str(error)
        except (ValueError, RecursionError):
            problem = "a number is too long or tables are nested too deeply"
        if problem.endswith("(at end of document)"):
            lines = text.split("\n")
            end = f"at line {len(lines)}, column {len(lines[-1]) + 1}"
            problem = problem.replace("at end of document", end)
        # The rest cannot be read, and a variable alone would be judged against destinations nobody knows.
        raise ConfigError((f"not valid TOML: {clean(problem)}",), hint=f"correct {self._source}")

    # --- the file

    def _take_file(self, tables: Mapping[str, Any]) -> None:
        self._take_table((), tables, Config)
        if not self._types and ("destinations",) not in self._broken:
            self._implied = tuple(BUILT_IN)  # one of each, by its type's name
            self._types.update({name: self._type_of(name, {}) for name in self._implied})

    def _take_destinations(self, tables: object) -> None:
        if not isinstance(tables, dict):
            self._broken.add(("destinations",))
            self._problem(f"destinations must be a table, not {forms.kind_of(tables)}", self._source)
            return
        for name, table in tables.items():
            if not re.fullmatch(NAME, name) or len(name) > LONGEST_NAME:
                wanted = f"at most {LONGEST_NAME} small letters and digits, with single - or _ between them"
                self._problem(f"{_shown(('destinations', name))}: the name must be {wanted}", self._source)
            elif twin := next((known for known in self._types if _flat(known) == _flat(name)), None):
                self._problem(f"destinations.{name}: its variables are those of {twin!r} too", self._source)
            else:
                self._types[name] = self._type_of(name, table if isinstance(table, dict) else {})
                self._take_table(("destinations", name), table, self._holder(name))

    def _take_table(self, path: Keys, table: object, holder: type) -> None:
        if not isinstance(table, dict):
            self._problem(f"{_shown(path)} must be a table, not {forms.kind_of(table)}", self._source)
            return
        known, inner = settings_of(holder), tables_of(holder)
        for key, value in table.items():
            place = (*path, key)
            if place == ("destinations",):
                self._take_destinations(value)
            elif key in inner:
                self._take_table(place, value, inner[key].holder)
            elif key in known:
                given = Given(value, _shown(place), True, self._environ)
                self._take(place, _form(place, known[key]), given)
            else:
                self._unknown(place, value, [*known, *inner, *([] if path else ["destinations"])])

    def _unknown(self, path: Keys, value: object, known: list[str]) -> None:
        name = path[-1]
        of_destination = len(path) == 3 and path[0] == "destinations"
        if of_destination and self._is_of_another_type(_shown(path), path[1], name, self._source):
            return
        if looks_secret(name) and not isinstance(value, dict):
            whose = path[1] if path[0] == "destinations" and len(path) > 2 else "DESTINATION"
            self._problem(
                f"{_shown(path)}: keys do not belong in the config file; use: hubqueue login {whose}",
                self._source,
            )
            return
        kind = "section" if len(path) == 1 and isinstance(value, dict) else "key"
        guess = did_you_mean(name, known)
        if not guess and len(path) == 1:
            homes = [key for key, each in tables_of(Config).items() if name in settings_of(each.holder)]
            guess = f"; did you mean '{homes[0]}.{name}'?" if homes else ""
        self._problem(f"unknown {kind} {_shown(path)}{guess}", self._source)

    # --- the type of a destination, which decides what its table may have

    def _type_of(self, name: str, table: Mapping[str, object]) -> str:
        """Its type, known before its other keys are judged. A name that is a type is of that type unless it says otherwise."""
        given = (self._environ.get(variable("destinations", name, "type")) or None, table.get("type"))
        for each in given:
            if isinstance(each, str) and is_known(each):
                return each
        if any(each is not None for each in given):
            self._doubtful.add(name)
        return name if is_known(name) else next(iter(BUILT_IN))

    def _declaration(self, name: str) -> Destination:
        """The declaration of a destination's type. One that cannot be loaded has what all destinations have."""
        return declaration(self._types[name])

    def _holder(self, name: str) -> type[DestinationSettings]:
        return self._declaration(name).settings

    def _is_of_another_type(self, label: str, name: str, key: str, culprit: str) -> bool:
        """Whether a setting is one of other types only: a problem, unless the type of this destination is one already."""
        if absent(self._types[name]) is not None:
            return True  # what it may have is not known, and `check` says why
        owners = types_with(key)
        if owners and name not in self._doubtful:
            whose, own = " or ".join(map(repr, owners)), self._types[name]
            why = f"is a setting of type {whose} only; this destination is of type {own!r}"
            self._problem(f"{label} {why}", culprit)
        return bool(owners)

    # --- the environment

    def _take_environment(self) -> None:
        known = self._variables()
        for name in sorted(self._new_destinations(known)):
            self._types[name] = self._type_of(name, {})
        known = self._variables()
        flattened = {name.replace("__", "_"): name for name in known}
        for name in sorted(self._environ):
            written = self._environ[name]
            if not written:
                continue  # set to nothing, as `docker run -e X=` and compose files do: not set
            if name in known:
                path, form = known[name]
                self._take(path, form, Given(form.literal(written), name, False, self._environ))
            elif name.startswith(PREFIX) and "__" in name:
                self._unknown_variable(name, list(known))
            elif name in flattened:
                self._problem(f"unknown variable {name}; did you mean {flattened[name]!r}?", _ENVIRONMENT)

    def _unknown_variable(self, name: str, known: list[str]) -> None:
        for each in self._types:
            start, key = variable("destinations", each, ""), name.rpartition("__")[2].lower()
            if name.lower() == start.lower() + key and self._is_of_another_type(
                clean(name), each, key, _ENVIRONMENT
            ):
                return
        if looks_secret(name.rpartition("__")[2]):
            advice = "; a key goes into HUBQUEUE_KEY_<DESTINATION>"
        else:
            advice = did_you_mean(name, known)
        self._problem(f"unknown variable {clean(name)}{advice}", _ENVIRONMENT)

    def _new_destinations(self, known: Mapping[str, object]) -> Iterator[str]:
        """A variable alone adds a destination, but only by its type: a misspelt name must stay an error."""
        for name in self._environ:
            found = re.fullmatch(r"HUBQUEUE_DESTINATIONS__([A-Z0-9]+(?:_[A-Z0-9]+)*)__TYPE", name)
            if found and name not in known and self._environ[name]:
                yield found[1].lower()

    def _variables(self) -> dict[str, tuple[Keys, Form]]:
        found = list(places(Config))
        for name in self._types:
            found += places(self._holder(name), ("destinations", name))
        return {variable(*path): (path, _form(path, setting)) for path, setting in found}

    # --- both

    def _take(self, path: Keys, form: Form, given: Given) -> None:
        self._given[path] = given
        try:
            self._values[path] = form.check(given)
        except Refused as refusal:
            self._broken.add(path)
            self._refuse(path, str(refusal))

    def _refuse(self, path: Keys, why: str) -> None:
        given = self._given[path]
        self._problem(f"{given.label} {why}", self._source if given.in_file else _ENVIRONMENT)

    def _problem(self, problem: str, culprit: str) -> None:
        self._problems.append(problem)
        self._culprits[culprit] = None

    # --- what several settings say together

    def _choose_default(self) -> str:
        """The one that is named; else `platform`, the service that there is; else `hub`; else the only one."""
        path = ("default_destination",)
        named = self._values.get(path)
        if named in self._types or path in self._broken or ("destinations",) in self._broken:
            return str(named)
        if named is not None:
            guess = did_you_mean(named, self._types)
            self._refuse(path, f"is no destination that the configuration has{guess}")
        usual = next((type for type in (USUAL, *BUILT_IN) if type in self._types), None)
        if named is None and usual is None and len(self._types) > 1:
            self._problem("default_destination must name one of several destinations", self._source)
        return usual or next(iter(self._types), USUAL)

    def _check_retry(self) -> None:
        both = {"base": RetrySettings().base, "cap": RetrySettings().cap, **self._section("retry")}
        if both["cap"] < both["base"] and not self._broken & {("retry", "base"), ("retry", "cap")}:
            self._problem("retry.cap must not be less than retry.base", self._source)

    def _destination(self, name: str) -> DestinationSettings | None:
        path, declared = ("destinations", name), self._declaration(name)
        known = settings_of(declared.settings)
        for key, source in declared.address_variables.items():
            place, value = (*path, key), self._environ.get(source)
            if value and place not in self._given:
                self._take(place, known[key].form, Given(value, source, False, self._environ))
        found = self._section(*path)
        settings: dict[str, Any] = {"name": name, "type": declared.type}
        if "url" in found:
            settings["url_named"] = not self._given[*path, "url"].in_file
            if found["url"] != vendors_url(declared.type):
                settings["web_url"] = found["url"]  # a hub of one's own shows its runs itself
                self._given.setdefault((*path, "web_url"), self._given[*path, "url"])
        settings |= found
        for key, table in tables_of(declared.settings).items():
            if key in tables_of(Config):  # what is not set here is that of the table for all destinations
                for inner in settings_of(table.holder).keys() & self._section(key).keys():
                    self._values.setdefault((*path, key, inner), self._values[key, inner])
                    self._given.setdefault((*path, key, inner), self._given[key, inner])
            settings[key] = self._made((*path, key), table)
        may_be_insecure = settings.get("insecure") or (*path, "insecure") in self._broken
        if forms.is_plain_remote(settings.get("url", "")) and not may_be_insecure:
            why = "is plain http to another machine, which shows the key to the network"
            self._refuse((*path, "url"), f"{why}: use https, or insecure = true")
        elif forms.is_plain_remote(settings.get("url", ""), settings.get("proxy")) and not may_be_insecure:
            why = "leads plain http through another machine, which shows it the key"
            self._refuse((*path, "proxy"), f"{why}: use an https url, or insecure = true")
        return None if self._problems else declared.settings(**settings)

    def _made(self, path: Keys, table: Table) -> Any:
        inner = {key: self._made((*path, key), each) for key, each in tables_of(table.holder).items()}
        return dataclasses.replace(table.default, **self._section(*path), **inner)

    def _section(self, *path: str) -> dict[str, Any]:
        return {key[-1]: value for key, value in self._values.items() if key[:-1] == path}


def _form(path: Keys, setting: Setting) -> Form:
    """The form of a setting. Which types there are is known to the registry only."""
    return TYPE_FORM if len(path) == 3 and path[0] == "destinations" and path[2] == "type" else setting.form


def _flat(name: str) -> str:
    return name.replace("-", "_")


def _shown(path: Keys) -> str:
    return clean(".".join(path), limit=100)
