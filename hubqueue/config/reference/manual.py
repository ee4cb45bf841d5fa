"""The tables of docs/configuration.md, between markers; the text around them is written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from hubqueue.config.config import Config
from hubqueue.config.names import variable
from hubqueue.config.reference.example import value_of
from hubqueue.config.registry import BUILT_IN, built_in, declaration
from hubqueue.config.setting import Setting, settings_of, tables_of

_MARKED = re.compile(r"(<!-- settings: (\S+) -->\n).*?(<!-- end of settings -->)", re.DOTALL)
_HEAD = "| key | default | unit | variable | meaning |\n|---|---|---|---|---|\n"
_PATH = ("destinations", "<name>")


def with_tables(text: str) -> str:
    """The manual with its tables from the declarations. Raises `KeyError` for a marker without a table."""
    tables = dict(_tables())
    return _MARKED.sub(lambda found: found[1] + _HEAD + tables[found[2]] + found[3], text)


def marked(text: str) -> list[str]:
    """The tables that a text has markers for."""
    return [found[2] for found in _MARKED.finditer(text)]


def names() -> list[str]:
    """The tables that the manual must have."""
    return [name for name, _ in _tables()]


def _tables() -> Iterator[tuple[str, str]]:
    yield "top", "".join(_row(each, (each.key,)) for each in settings_of(Config).values())
    for key, table in tables_of(Config).items():
        yield key, "".join(_row(each, (key, each.key)) for each in settings_of(table.holder).values())
    yield "destinations.<name>", "".join(_destination_rows())
    for key, table in {k: t for each in built_in() for k, t in tables_of(each.settings).items()}.items():
        rows = settings_of(table.holder).values()
        of_all = f"that of `[{key}]`" if key in tables_of(Config) else None
        yield (
            f"destinations.<name>.{key}",
            "".join(_row(each, (*_PATH, key, each.key), default=of_all) for each in rows),
        )


def _destination_rows() -> Iterator[str]:
    """A row for each key; if the types differ in its default, with the default of each type."""
    types = {each.type: settings_of(each.settings) for each in built_in()}
    for key in dict.fromkeys(key for settings in types.values() for key in settings):
        have = {type: settings[key] for type, settings in types.items() if key in settings}
        first = next(iter(have.values()))
        defaults = {type: _default_of(type, each) for type, each in have.items()}
        same = len(set(defaults.values())) == 1
        shown = (
            defaults[next(iter(have))] if same else "; ".join(f"{t}: {text}" for t, text in defaults.items())
        )
        if key == "type":
            shown = f"the destination's name if it is a type, else `{next(iter(BUILT_IN))}`"
        others = [type for type in types if type not in have]
        only = (
            f"Type {_types(have)} only: " if len(have) <= len(others) else f"Not for type {_types(others)}: "
        )
        only = only if others else ""
        yield _row(first, (*_PATH, key), default=shown, prefix=only)


def _types(names: Iterable[str]) -> str:
    return ", ".join(f"`{each}`" for each in names)


def _default_of(type: str, setting: Setting) -> str:
    source = declaration(type).address_variables.get(setting.key)
    return f"`{source}`, else {_default(setting)}" if source else _default(setting)


def _default(setting: Setting) -> str:
    if setting.required:
        return "none; must be set"
    return f"`{value_of(setting)}`" if setting.has_value else str(setting.absent)


def _row(setting: Setting, path: tuple[str, ...], *, default: str | None = None, prefix: str = "") -> str:
    shown = default or _default(setting)
    unit, name = setting.form.unit, variable(*path)
    return f"| `{setting.key}` | {shown} | {unit} | `{name}` | {prefix}{setting.help} |\n"
