"""The configuration: TOML text and environment in, frozen settings out.

Promises to report every problem at once, each naming its key or variable and never repeating a value that
could be a key. Precedence: environment variable, then file, then default. Refuses what it does not know: a
misspelt key is an error, not a default. Reads no file and no environment of its own.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from hubqueue.config import forms
from hubqueue.config.config import Config, did_you_mean
from hubqueue.config.forms import Form, Given, Refused
from hubqueue.config.registry import BUILT_IN, USUAL, declaration, is_known, types, vendors_url
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
    "SECTIONS",
    "Config",
    "DestinationSettings",
    "OutboxSettings",
    "RateLimits",
    "RetrySettings",
    "SpoolSettings",
    "WorkerSettings",
    "parse",
    "variable",
]

Place = tuple[str, ...]
"""Where a setting stands: ("destinations", "lab", "url")."""


def _known_type(given: Given) -> str:
    """A type that is installed; the built-in ones are known without looking."""
    if isinstance(given.value, str) and is_known(given.value):
        return given.value
    raise Refused(f"must be {' or '.join(map(repr, types()))}")


_RATE_LIMITS = {"metrics": forms.seconds(), "ckpt": forms.seconds(), "heartbeat": forms.seconds()}
_DESTINATION = {
    "type": forms.Form(_known_type),
    "url": forms.web_address(),
    "web_url": forms.web_address(),
    "insecure": forms.flag(),
    "ca_bundle": forms.path(),
    "proxy": forms.proxy_address(),
    "connect_timeout": forms.seconds(zero=False),
    "answer_timeout": forms.seconds(zero=False),
    "stall_window": forms.seconds(zero=False),
    "stall_rate": forms.count("bytes"),
    "requests_per_minute": forms.count("requests", least=0),
    "uploads_per_minute": forms.count("uploads", least=0),
    "upload_hosts": forms.hosts(),
}

SECTIONS: Mapping[str, Mapping[str, Form]] = {
    "outbox": {
        "url": forms.database_address(),
        "driver": forms.choice("auto", "pysqlite3", "sqlite3"),
        "busy_timeout": forms.seconds(zero=False),
        "keep_delivered": forms.seconds(),
        "keep_attempts": forms.seconds(),
    },
    "spool": {
        "path": forms.path(),
        "max_bytes": forms.count("bytes"),
        "min_free_bytes": forms.count("bytes", least=0),
    },
    "rate_limits": _RATE_LIMITS,
    "retry": {"base": forms.seconds(), "cap": forms.seconds()},
    "worker": {
        "idle_exit": forms.seconds(),
        "lease": forms.seconds(zero=False),
        "grace": forms.seconds(),
        "light_threads": forms.count("threads"),
        "ckpt_threads": forms.count("threads"),
        "heartbeat_threads": forms.count("threads"),
        "batch_entries": forms.count("entries"),
        "batch_bytes": forms.count("bytes"),
    },
    "destinations.<name>": _DESTINATION,
    "destinations.<name>.rate_limits": _RATE_LIMITS,
}
"""Every section with its keys; `default_destination` stands before all of them."""

_PREFIX = "HUBQUEUE_"
_ENVIRONMENT = "the environment"
_NAME = re.compile(r"[a-z0-9]+([-_][a-z0-9]+)*")
_SECRET = re.compile(r"key$|token|passw(or)?d|secret|credential|^auth$")


def parse(text: str, environ: Mapping[str, str], *, source: str) -> Config:
    """The settings that the TOML `text` and the `HUBQUEUE_<SECTION>__<KEY>` variables of `environ` give.

    `source` names where the text came from, for the hint. Raises `ConfigError` with every problem.
    """
    return _Reader(environ, source).read(text)


def variable(*path: str) -> str:
    """The environment variable that overrides a setting: `variable("destinations", "lab", "url")`."""
    return _PREFIX + "__".join(part.replace("-", "_").upper() for part in path)


class _Reader:
    """One reading. `_values` has what could be used, `_broken` where something could not."""

    def __init__(self, environ: Mapping[str, str], source: str) -> None:
        self._environ = environ
        self._source = source
        self._problems: list[str] = []
        self._culprits: dict[str, None] = {}
        self._values: dict[Place, Any] = {}
        self._given: dict[Place, Given] = {}
        self._broken: set[Place] = set()
        self._names: list[str] = []
        self._implied: tuple[str, ...] = ()

    def read(self, text: str) -> Config:
        self._take_file(self._load(text))
        self._take_environment()
        default = self._choose_default()
        named = ("default_destination",) in self._values or len(self._names) == 1
        self._check_retry()
        destinations = {name: self._destination(name) for name in self._names}
        if self._problems:
            raise ConfigError(tuple(self._problems), hint=f"correct {' and '.join(self._culprits)}")
        return Config(
            default_destination=default,
            outbox=OutboxSettings(**self._section("outbox")),
            spool=SpoolSettings(**self._section("spool")),
            rate_limits=RateLimits(**self._section("rate_limits")),
            retry=RetrySettings(**self._section("retry")),
            worker=WorkerSettings(**self._section("worker")),
            destinations={
                name: declaration(keys["type"]).settings(**keys) for name, keys in destinations.items()
            },
            implied=frozenset(self._implied) - ({default} if named else set()),
            default_named=named,
        )

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
        for key, value in tables.items():
            if key == "default_destination":
                self._take((key,), forms.text(), self._in_file((key,), value))
            elif key == "destinations":
                self._take_destinations(value)
            elif key in SECTIONS:
                self._take_table((key,), value, SECTIONS[key])
            else:
                self._unknown((key,), value, ["default_destination", "destinations", *_plain_sections()])
        if not self._names and ("destinations",) not in self._broken:
            self._implied = tuple(BUILT_IN)  # one of each, by its type's name
            self._names += self._implied

    def _take_destinations(self, tables: object) -> None:
        if not isinstance(tables, dict):
            self._broken.add(("destinations",))
            self._problem(f"destinations must be a table, not {forms.kind_of(tables)}", self._source)
            return
        for name, table in tables.items():
            if not _NAME.fullmatch(name) or len(name) > 40:
                wanted = "at most 40 small letters and digits, with single - or _ between them"
                self._problem(f"{_shown(('destinations', name))}: the name must be {wanted}", self._source)
            elif twin := next((known for known in self._names if _flat(known) == _flat(name)), None):
                self._problem(f"destinations.{name}: its variables are those of {twin!r} too", self._source)
            else:
                self._names.append(name)
                self._take_table(("destinations", name), table, _DESTINATION)

    def _take_table(self, path: Place, table: object, known: Mapping[str, Form]) -> None:
        if not isinstance(table, dict):
            self._problem(f"{_shown(path)} must be a table, not {forms.kind_of(table)}", self._source)
            return
        for key, value in table.items():
            if known is _DESTINATION and key == "rate_limits":
                self._take_table((*path, key), value, _RATE_LIMITS)
            elif key in known:
                self._take((*path, key), known[key], self._in_file((*path, key), value))
            else:
                tables = ["rate_limits"] if known is _DESTINATION else []
                self._unknown((*path, key), value, [*known, *tables])

    def _in_file(self, path: Place, value: object) -> Given:
        return Given(value, _shown(path), True, self._environ)

    def _unknown(self, path: Place, value: object, known: list[str]) -> None:
        name = path[-1]
        if _looks_secret(name) and not isinstance(value, dict):
            place = path[1] if path[0] == "destinations" and len(path) > 2 else "DESTINATION"
            self._problem(
                f"{_shown(path)}: keys do not belong in the config file; use: hubqueue login {place}",
                self._source,
            )
            return
        kind = "section" if len(path) == 1 and isinstance(value, dict) else "key"
        guess = did_you_mean(name, known)
        if not guess and len(path) == 1:
            homes = [section for section in _plain_sections() if name in SECTIONS[section]]
            guess = f"; did you mean '{homes[0]}.{name}'?" if homes else ""
        self._problem(f"unknown {kind} {_shown(path)}{guess}", self._source)

    # --- the environment

    def _take_environment(self) -> None:
        known = {variable(*path): (path, form) for path, form in self._places()}
        self._names += sorted(self._new_destinations(known))
        known = {variable(*path): (path, form) for path, form in self._places()}
        flattened = {name.replace("__", "_"): name for name in known}
        for name in sorted(self._environ):
            written = self._environ[name]
            if not written:
                continue  # set to nothing, as `docker run -e X=` and compose files do: not set
            if name in known:
                path, form = known[name]
                self._take(path, form, Given(form.literal(written), name, False, self._environ))
            elif name.startswith(_PREFIX) and "__" in name:
                self._unknown_variable(name, list(known))
            elif name in flattened:
                self._problem(f"unknown variable {name}; did you mean {flattened[name]!r}?", _ENVIRONMENT)

    def _unknown_variable(self, name: str, known: list[str]) -> None:
        if _looks_secret(name.rpartition("__")[2]):
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

    def _places(self) -> Iterator[tuple[Place, Form]]:
        yield ("default_destination",), forms.text()
        for section in _plain_sections():
            for key, form in SECTIONS[section].items():
                yield (section, key), form
        for name in self._names:
            for key, form in _DESTINATION.items():
                yield ("destinations", name, key), form
            for key, form in _RATE_LIMITS.items():
                yield ("destinations", name, "rate_limits", key), form

    # --- both

    def _take(self, path: Place, form: Form, given: Given) -> None:
        self._given[path] = given
        try:
            self._values[path] = form.check(given)
        except Refused as refusal:
            self._broken.add(path)
            self._refuse(path, str(refusal))

    def _refuse(self, path: Place, why: str) -> None:
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
        if named in self._names or path in self._broken or ("destinations",) in self._broken:
            return str(named)
        if named is not None:
            guess = did_you_mean(named, self._names)
            self._refuse(path, f"is no destination that the configuration has{guess}")
        usual = next((type for type in (USUAL, *BUILT_IN) if type in self._names), None)
        if named is None and usual is None and len(self._names) > 1:
            self._problem("default_destination must name one of several destinations", self._source)
        return usual or next(iter(self._names), USUAL)

    def _check_retry(self) -> None:
        both = {"base": RetrySettings().base, "cap": RetrySettings().cap, **self._section("retry")}
        if both["cap"] < both["base"] and not self._broken & {("retry", "base"), ("retry", "cap")}:
            self._problem("retry.cap must not be less than retry.base", self._source)

    def _destination(self, name: str) -> dict[str, Any]:
        path = ("destinations", name)
        given = self._section(*path)
        # A name that is a type is of that type unless it says otherwise.
        type = given.get("type") or (name if is_known(name) else next(iter(BUILT_IN)))
        settings: dict[str, Any] = {"name": name, "type": type, **given}
        for key, source in declaration(type).address_variables.items():
            place, value = (*path, key), self._environ.get(source)
            if value and place not in self._given:
                self._take(place, _DESTINATION[key], Given(value, source, False, self._environ))
        found = self._section(*path)
        if "url" in found:
            settings["url_named"] = not self._given[*path, "url"].in_file
            if found["url"] != vendors_url(type):
                settings["web_url"] = found["url"]  # a hub of one's own shows its runs itself
        settings |= found
        limits = {**self._section("rate_limits"), **self._section(*path, "rate_limits")}
        settings["rate_limits"] = RateLimits(**limits)
        may_be_insecure = settings.get("insecure") or (*path, "insecure") in self._broken
        if forms.is_plain_remote(settings.get("url", "")) and not may_be_insecure:
            why = "is plain http to another machine, which shows the key to the network"
            self._refuse((*path, "url"), f"{why}: use https, or insecure = true")
        elif forms.is_plain_remote(settings.get("url", ""), settings.get("proxy")) and not may_be_insecure:
            why = "leads plain http through another machine, which shows it the key"
            self._refuse((*path, "proxy"), f"{why}: use an https url, or insecure = true")
        return settings

    def _section(self, *path: str) -> dict[str, Any]:
        return {key[-1]: value for key, value in self._values.items() if key[:-1] == path}


def _plain_sections() -> list[str]:
    return [section for section in SECTIONS if not section.startswith("destinations")]


def _looks_secret(name: str) -> bool:
    return _SECRET.search(re.sub(r"[-_]", "", name.lower())) is not None


def _flat(name: str) -> str:
    return name.replace("-", "_")


def _shown(path: Place) -> str:
    return clean(".".join(path), limit=100)
