"""One setting, declared once: the field of a settings class with its type, default, form and help.

The reader, `config.example.toml`, the tables of docs/configuration.md and the JSON Schema all come from these declarations.
A subclass may give a field another default; form and help stay those of the class that declared it. A field without a
declaration, or with `unset`, cannot be configured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar, cast

from hubqueue.config.forms import Form

_T = TypeVar("_T")
_SETTING, _TABLE = "setting", "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The declaration of a setting. `key` and `default` are those of the class given to `settings_of`.

    `help` is one line of Markdown; its first sentence is the comment in the example. `absent` describes the effect of an
    unset setting if its default value does not; the example then shows `example`, commented out. The value of a `secret`
    setting may carry a password, so it is masked wherever it is shown. A `required` one has no default: a destination
    without it is refused.
    """

    form: Form
    help: str
    example: object = None
    absent: str | None = None
    secret: bool = False
    required: bool = False
    key: str = ""
    default: Any = None
    has_value: bool = True
    """Whether the default is a value to show, not the absence of one."""

    @property
    def summary(self) -> str:
        """The first sentence of the help."""
        return self.help.partition(". ")[0].removesuffix(".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of settings inside another one. `holder` is its settings class."""

    holder: type
    help: str
    default: Any = None


def setting(
    form: Form,
    *,
    default: _T,
    help: str,
    example: object = None,
    absent: str | None = None,
    secret: bool = False,
    required: bool = False,
) -> _T:
    """A field that can be configured, for a frozen dataclass; see `Setting`."""
    declared = Setting(form=form, help=help, example=example, absent=absent, secret=secret, required=required)
    return field(default=default, repr=not secret, metadata={_SETTING: (declared, default)})


def unset(default: _T) -> _T:
    """A field that a base class declares as a setting and that this type does not have."""
    return field(default=default, metadata={_SETTING: None})


def table(holder: type[_T], *, help: str) -> _T:
    """A field that is a table of its own, with the settings of `holder`."""
    return field(default=holder(), metadata={_TABLE: Table(holder=holder, help=help)})


def settings_of(holder: type) -> Mapping[str, Setting]:
    """The settings of a class by key, in the order of its fields."""
    return _settings_of(cast("Any", holder))


def tables_of(holder: type) -> Mapping[str, Table]:
    """The tables inside the table of a class, by key."""
    return _tables_of(cast("Any", holder))


def places(holder: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Setting]]:
    """Every setting of a class and of the tables in it, each with its path of keys."""
    for key, each in settings_of(holder).items():
        yield (*path, key), each
    for key, inner in tables_of(holder).items():
        yield from places(inner.holder, (*path, key))


@cache
def _settings_of(holder: Any) -> Mapping[str, Setting]:
    found = {}
    for each in fields(holder):
        declared = _declared(holder, each, _SETTING)
        if declared is not None:
            made, first_default = declared
            has_value = made.absent is None or each.default != first_default
            found[each.name] = replace(made, key=each.name, default=each.default, has_value=has_value)
    return MappingProxyType(found)


@cache
def _tables_of(holder: Any) -> Mapping[str, Table]:
    found = {}
    for each in fields(holder):
        declared = _declared(holder, each, _TABLE)
        if declared is not None:
            found[each.name] = replace(declared, default=each.default)
    return MappingProxyType(found)


def _declared(holder: type, of: Field[Any], what: str) -> Any:
    """The declaration of a field: its own, else that of the nearest base class with one."""
    for each in holder.__mro__:
        known = each.__dict__.get("__dataclass_fields__", {}).get(of.name)
        if known is not None and what in known.metadata:
            return known.metadata[what]
    return None
