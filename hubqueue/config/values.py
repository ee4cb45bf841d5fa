"""What was given for each setting: the values of the file, and those of the environment, which replace them.

Promises to note every problem, each naming its key or variable and never repeating a value that could be a key. Refuses
what is not declared: a misspelt key is an error, not a default.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from hubqueue.config import forms
from hubqueue.config.config import Config
from hubqueue.config.declaration import Destination
from hubqueue.config.forms import Form, Given, Refused
from hubqueue.config.names import LONGEST_NAME, NAME, PREFIX, did_you_mean, looks_secret, variable
from hubqueue.config.registry import BUILT_IN, IMPLIED, TYPE_FORM, absent, declaration, is_known, types_with
from hubqueue.config.setting import Setting, places, settings_of, tables_of
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.errors import ConfigError
from hubqueue.domain.redact import clean

Keys = tuple[str, ...]
"""The keys that lead to a setting: ("destinations", "lab", "url")."""

_ENVIRONMENT = "the environment"


class Values:
    """The values of one configuration.

    `valid` has the values that their forms accept, `given` each value as it was written, `broken` the settings without a
    valid value. `types` has the type of each destination by its name. `implied` are the destinations that exist because
    the configuration names none. `source` names the file in hints.
    """

    def __init__(self, environ: Mapping[str, str], source: str) -> None:
        self.environ, self.source = environ, source
        self.valid: dict[Keys, Any] = {}
        self.given: dict[Keys, Given] = {}
        self.broken: set[Keys] = set()
        self.types: dict[str, str] = {}
        self.implied: tuple[str, ...] = ()
        self._problems: list[str] = []
        self._culprits: dict[str, None] = {}
        self._doubtful: set[str] = set()  # destinations whose type is unknown

    def read(self, text: str) -> None:
        """Read the TOML `text`, then the environment. Raises `ConfigError` for a text that is not TOML."""
        self._take_file(self._load(text))
        self._take_environment()

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
        # The variables cannot be judged either: the destinations are unknown.
        raise ConfigError((f"not valid TOML: {clean(problem)}",), hint=f"correct {self.source}")

    # --- the file

    def _take_file(self, tables: Mapping[str, Any]) -> None:
        self._take_table((), tables, Config)
        if not self.types and ("destinations",) not in self.broken:
            self.implied = IMPLIED  # one of each, by its type's name
            self.types.update({name: self._type_of(name, {}) for name in self.implied})

    def _take_destinations(self, tables: object) -> None:
        if not isinstance(tables, dict):
            self.broken.add(("destinations",))
            self.problem(f"destinations must be a table, not {forms.kind_of(tables)}", self.source)
            return
        for name, table in tables.items():
            if not re.fullmatch(NAME, name) or len(name) > LONGEST_NAME:
                wanted = f"at most {LONGEST_NAME} small letters and digits, with single - or _ between them"
                self.problem(f"{_shown(('destinations', name))}: the name must be {wanted}", self.source)
            elif twin := next((known for known in self.types if _flat(known) == _flat(name)), None):
                self.problem(f"destinations.{name}: its variables are those of {twin!r} too", self.source)
            else:
                self.types[name] = self._type_of(name, table if isinstance(table, dict) else {})
                self._take_table(("destinations", name), table, self._holder(name))

    def _take_table(self, path: Keys, table: object, holder: type) -> None:
        if not isinstance(table, dict):
            self.problem(f"{_shown(path)} must be a table, not {forms.kind_of(table)}", self.source)
            return
        known, inner = settings_of(holder), tables_of(holder)
        for key, value in table.items():
            full = (*path, key)
            if full == ("destinations",):
                self._take_destinations(value)
            elif key in inner:
                self._take_table(full, value, inner[key].holder)
            elif key in known:
                given = Given(value, _shown(full), True, self.environ)
                self.take(full, _form(full, known[key]), given)
            else:
                self._unknown(full, value, [*known, *inner, *([] if path else ["destinations"])])

    def _unknown(self, path: Keys, value: object, known: list[str]) -> None:
        name = path[-1]
        of_destination = len(path) == 3 and path[0] == "destinations"
        if of_destination and self._is_of_another_type(_shown(path), path[1], name, self.source):
            return
        if looks_secret(name) and not isinstance(value, dict):
            whose = path[1] if path[0] == "destinations" and len(path) > 2 else "DESTINATION"
            self.problem(
                f"{_shown(path)}: keys do not belong in the config file; use: hubqueue login {whose}",
                self.source,
            )
            return
        kind = "section" if len(path) == 1 and isinstance(value, dict) else "key"
        guess = did_you_mean(name, known)
        if not guess and len(path) == 1:
            homes = [key for key, each in tables_of(Config).items() if name in settings_of(each.holder)]
            guess = f"; did you mean '{homes[0]}.{name}'?" if homes else ""
        self.problem(f"unknown {kind} {_shown(path)}{guess}", self.source)

    # --- the type of a destination, which decides what its table may have

    def _type_of(self, name: str, table: Mapping[str, object]) -> str:
        """Its type, which decides the keys that its table may have. By default the type of the same name, else the first."""
        given = (self.environ.get(variable("destinations", name, "type")) or None, table.get("type"))
        for each in given:
            if isinstance(each, str) and is_known(each):
                return each
        if any(each is not None for each in given):
            self._doubtful.add(name)
        return name if is_known(name) else next(iter(BUILT_IN))

    def declaration(self, name: str) -> Destination:
        """The declaration of a destination's type. A type that cannot be loaded has the settings of all destinations."""
        return declaration(self.types[name])

    def _holder(self, name: str) -> type[DestinationSettings]:
        return self.declaration(name).settings

    def _is_of_another_type(self, label: str, name: str, key: str, culprit: str) -> bool:
        """Whether only other types have a setting. Notes that as a problem, unless the type itself is a problem."""
        missing = absent(self.types[name])
        if missing is not None and not missing.declared:
            return True  # its settings are unknown, and `check` says why
        owners = types_with(key)
        if owners and name not in self._doubtful:
            whose, own = (
                " or ".join(map(repr, owners)).replace(" or ", ", ", len(owners) - 2),
                self.types[name],
            )
            why = f"is a setting of type {whose} only; this destination is of type {own!r}"
            self.problem(f"{label} {why}", culprit)
        return bool(owners)

    # --- the environment

    def _take_environment(self) -> None:
        known = self._variables()
        for name in sorted(self._new_destinations(known)):
            self.types[name] = self._type_of(name, {})
        known = self._variables()
        flattened = {name.replace("__", "_"): name for name in known}
        for name in sorted(self.environ):
            written = self.environ[name]
            if not written:
                continue  # empty counts as unset: `docker run -e X=` and compose files do this
            if name in known:
                path, form = known[name]
                self.take(path, form, Given(form.literal(written), name, False, self.environ))
            elif name.startswith(PREFIX) and "__" in name:
                self._unknown_variable(name, list(known))
            elif name in flattened:
                self.problem(f"unknown variable {name}; did you mean {flattened[name]!r}?", _ENVIRONMENT)

    def _unknown_variable(self, name: str, known: list[str]) -> None:
        for each in self.types:
            start, key = variable("destinations", each, ""), name.rpartition("__")[2].lower()
            if name.lower() == start.lower() + key and self._is_of_another_type(
                clean(name), each, key, _ENVIRONMENT
            ):
                return
        if looks_secret(name.rpartition("__")[2]):
            advice = "; a key goes into HUBQUEUE_KEY_<DESTINATION>"
        else:
            advice = did_you_mean(name, known)
        self.problem(f"unknown variable {clean(name)}{advice}", _ENVIRONMENT)

    def _new_destinations(self, known: Mapping[str, object]) -> Iterator[str]:
        """A variable alone adds a destination, but only by its type: a misspelt name must stay an error."""
        for name in self.environ:
            found = re.fullmatch(r"HUBQUEUE_DESTINATIONS__([A-Z0-9]+(?:_[A-Z0-9]+)*)__TYPE", name)
            if found and name not in known and self.environ[name]:
                yield found[1].lower()

    def _variables(self) -> dict[str, tuple[Keys, Form]]:
        found = list(places(Config))
        for name in self.types:
            found += places(self._holder(name), ("destinations", name))
        return {variable(*path): (path, _form(path, setting)) for path, setting in found}

    # --- both

    def take(self, path: Keys, form: Form, given: Given) -> None:
        self.given[path] = given
        try:
            self.valid[path] = form.check(given)
        except Refused as refusal:
            self.broken.add(path)
            self.refuse(path, str(refusal))

    def refuse(self, path: Keys, why: str) -> None:
        """Note that the value given for a setting cannot be used. `why` continues the name of the setting."""
        given = self.given[path]
        self.problem(f"{given.label} {why}", self.source if given.in_file else _ENVIRONMENT)

    def problem(self, problem: str, culprit: str) -> None:
        """Note a problem. `culprit` is what to correct: the file or the environment."""
        self._problems.append(problem)
        self._culprits[culprit] = None

    def raise_problems(self) -> None:
        """Raise `ConfigError` with every problem noted, if there is one."""
        if self._problems:
            raise ConfigError(tuple(self._problems), hint=f"correct {' and '.join(self._culprits)}")

    def section(self, *path: str) -> dict[str, Any]:
        """The valid values directly below these keys."""
        return {key[-1]: value for key, value in self.valid.items() if key[:-1] == path}


def _form(path: Keys, setting: Setting) -> Form:
    """The form of a setting. Only the registry knows the types of destinations."""
    return TYPE_FORM if len(path) == 3 and path[0] == "destinations" and path[2] == "type" else setting.form


def _flat(name: str) -> str:
    return name.replace("-", "_")


def _shown(path: Keys) -> str:
    return clean(".".join(path), limit=100)
