"""What several settings say together: the default destination, the addresses of a destination, limits for all of them.

Makes frozen settings of the values that were given. Notes what does not fit together and raises every problem at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hubqueue.config import forms
from hubqueue.config.config import Config
from hubqueue.config.forms import Given
from hubqueue.config.names import did_you_mean, variable
from hubqueue.config.registry import IMPLIED, USUAL, vendors_url
from hubqueue.config.setting import Table, settings_of, tables_of
from hubqueue.config.settings import DestinationSettings, RetrySettings
from hubqueue.config.values import Keys, Values


def assemble(values: Values) -> Config:
    """The configuration that the values make. Raises `ConfigError` with every problem, those of single values too."""
    default = _default_destination(values)
    named = ("default_destination",) in values.valid or len(values.types) == 1
    _check_retry(values)
    for name in values.types:
        _add_vendors_variables(values, name)
        _check_required(values, name)
        _check_encryption(values, name)
    values.raise_problems()
    return Config(
        default_destination=default,
        destinations={name: _destination(values, name) for name in values.types},
        implied=frozenset(values.implied) - (_names(default) if named else set()),
        default_named=named,
        **{key: _table(values, (key,), table) for key, table in tables_of(Config).items()},
    )


def _default_destination(values: Values) -> str | tuple[str, ...]:
    """The named one or ones; else `platform`, the vendor's current service; else `hub`; else the only one."""
    path, types = ("default_destination",), values.types
    named: Any = values.valid.get(path)
    if path in values.broken or ("destinations",) in values.broken:
        return USUAL
    unknown = sorted(_names(named) - set(types)) if named is not None else []
    if named is not None and not unknown:
        return named  # type: ignore[no-any-return]
    for each in unknown:
        what = "is no destination that the configuration has"
        what = what if isinstance(named, str) else "names a destination that the configuration does not have"
        values.refuse(path, f"{what}{did_you_mean(each, types)}")
    usual = next((type for type in (USUAL, *IMPLIED) if type in types), None)
    if named is None and usual is None and len(types) > 1:
        values.problem("default_destination must name one of several destinations", values.source)
    return usual or next(iter(types), USUAL)


def _names(default: str | tuple[str, ...]) -> set[str]:
    return {default} if isinstance(default, str) else set(default)


def _check_retry(values: Values) -> None:
    retry = {"base": RetrySettings().base, "cap": RetrySettings().cap, **values.section("retry")}
    if retry["cap"] < retry["base"] and not values.broken & {("retry", "base"), ("retry", "cap")}:
        values.problem("retry.cap must not be less than retry.base", values.source)


def _add_vendors_variables(values: Values, name: str) -> None:
    """Take an address from the vendor's own variable where neither the file nor a HUBQUEUE_ variable sets it."""
    declared = values.declaration(name)
    known = settings_of(declared.settings)
    for key, vendors in declared.address_variables.items():
        path, written = ("destinations", name, key), values.environ.get(vendors)
        if written and path not in values.given:
            values.take(path, known[key].form, Given(written, vendors, False, values.environ))


def _check_required(values: Values, name: str) -> None:
    """Note the settings of a destination that have no default and were not given."""
    for key, each in settings_of(values.declaration(name).settings).items():
        path = ("destinations", name, key)
        if each.required and path not in values.given:
            what = f"{'.'.join(path)} must be set ({variable(*path)}): {each.summary}"
            values.problem(what, values.source)


def _check_encryption(values: Values, name: str) -> None:
    """Refuse plain http over a network, which shows the key to others, unless `insecure` allows it."""
    path = ("destinations", name)
    found = values.section(*path)
    declared = values.declaration(name)
    has_url = "url" in settings_of(declared.settings)
    # Without it, the vendor's variable names the setting with the address.
    key = "url" if has_url else next(iter(declared.address_variables), "url")
    url, proxy = found.get(key, ""), found.get("proxy")
    if found.get("insecure") or (*path, "insecure") in values.broken:
        return
    if forms.is_plain_remote(url):
        why = "is plain http to another machine, which shows the key to the network"
        values.refuse((*path, key), f"{why}: use https, or insecure = true")
    elif forms.is_plain_remote(url, proxy):
        why = "leads plain http through another machine, which shows it the key"
        values.refuse((*path, "proxy"), f"{why}: use an https url, or insecure = true")


def _destination(values: Values, name: str) -> DestinationSettings:
    path, declared = ("destinations", name), values.declaration(name)
    found = values.section(*path)
    settings: dict[str, Any] = {"name": name, "type": declared.type}
    if "url" in found:
        settings["url_named"] = not values.given[*path, "url"].in_file
        if found["url"] != vendors_url(declared.type):
            settings["web_url"] = found["url"]  # a hub of one's own shows its runs itself
            values.given.setdefault((*path, "web_url"), values.given[*path, "url"])
    settings |= found
    for key, table in tables_of(declared.settings).items():
        if key in tables_of(Config):
            _inherit(values, (*path, key), table)
        settings[key] = _table(values, (*path, key), table)
    return declared.settings(**settings)


def _inherit(values: Values, path: Keys, table: Table) -> None:
    """Take what a table of a destination does not set from the table for all destinations."""
    key = path[-1]
    for inner in settings_of(table.holder).keys() & values.section(key).keys():
        values.valid.setdefault((*path, inner), values.valid[key, inner])
        values.given.setdefault((*path, inner), values.given[key, inner])


def _table(values: Values, path: Keys, table: Table) -> Any:
    inner = {key: _table(values, (*path, key), each) for key, each in tables_of(table.holder).items()}
    return dataclasses.replace(table.default, **values.section(*path), **inner)
