"""The example configuration: every setting with its default, its unit and its help. It is a valid file that changes nothing."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hubqueue.config.config import Config
from hubqueue.config.registry import BUILT_IN, IMPLIED, declaration
from hubqueue.config.setting import Setting, settings_of, tables_of

_HEAD = """\
#:schema ./hubqueue.schema.json
# hubqueue: every setting with its default. A line that begins with "# key =" has no default value to show. A section that
# begins with "#[" is a destination that exists only if it is configured.
# Durations are texts such as "90 s", "15 min" or "7 days", or numbers of seconds; sizes are texts such as "20 GB" or
# "512 MiB", or numbers of bytes. Every key can be overridden by a variable: HUBQUEUE_<SECTION>__<KEY>, as
# HUBQUEUE_RATE_LIMITS__METRICS=1.5. Do not put keys or passwords in this file: use `hubqueue login hub`.
# The first line lets an editor complete and check this file, if the schema is in the same folder:
# hubqueue config schema > hubqueue.schema.json. More: docs/configuration.md
"""
_COLUMN, _WIDTH = 33, 120


def example(types: Sequence[str] = tuple(BUILT_IN)) -> str:
    """The text of config.example.toml, with a destination of each of these types."""
    return "\n".join([_HEAD, *_sections(types)]).rstrip() + "\n"


def value_of(setting: Setting) -> str:
    """The default of a setting as TOML, else its example. A required setting has no default."""
    has_value = setting.has_value and not setting.required
    return in_toml(setting.form.written(setting.default) if has_value else setting.example)


def in_toml(value: object) -> str:
    """A value of the file as TOML."""
    return json.dumps(
        value, ensure_ascii=False
    )  # texts, numbers, booleans and arrays of texts are the same in both


def _sections(types: Sequence[str]) -> Iterator[str]:
    yield from _lines(settings_of(Config).values())
    for key, table in tables_of(Config).items():
        yield from ("", _commented(f"[{key}]", table.help))
        yield from _lines(settings_of(table.holder).values())
    for at, type in enumerate(types):
        lines = _destination(type, like=None if at == 0 else types[0])
        # In a file that changes nothing, no destination is added.
        is_extra = type in BUILT_IN and type not in IMPLIED
        yield from ("", *(_disabled(each) if is_extra else each for each in lines))


def _destination(type: str, *, like: str | None) -> Iterator[str]:
    """The table of a destination; if it is `like` another one, only what differs."""
    declared = declaration(type)
    known = {} if like is None else settings_of(declaration(like).settings)
    own = settings_of(declared.settings)
    heading, lacking = f"[destinations.{type}]", [each for each in known if each not in own]
    shown = [
        each for each in own.values() if each.key not in known or each.default != known[each.key].default
    ]
    different = f"the same keys, with these differences for type {type}"
    if lacking:
        is_all = len(shown) == len(own)
        different = (
            f"only these keys for type {type}" if is_all else f"{different}, without {', '.join(lacking)}"
        )
    yield heading if like is None else _commented(heading, different)
    for each in shown:
        source = declared.address_variables.get(each.key)
        replaced = f"{source} applies if this is not set" if source else ""
        if each.key in known:
            yield _brief(each, replaced)
        else:
            yield _line(each, f"{each.summary}; {replaced}" if source else None)
    for key, table in tables_of(declared.settings).items():
        inner = [
            replace(each, default=getattr(table.default, each.key))
            for each in settings_of(table.holder).values()
        ]
        if like is not None:
            usual = tables_of(declaration(like).settings).get(key)
            inner = [
                each for each in inner if usual is None or each.default != getattr(usual.default, each.key)
            ]
        if inner:
            yield from ("", _commented(f"[destinations.{type}.{key}]", table.help), *map(_brief, inner))


def _disabled(line: str) -> str:
    return "\n".join(f"#{each}" if each else each for each in line.split("\n"))


def _lines(settings: Iterable[Setting]) -> Iterator[str]:
    for each in settings:
        yield _line(each)


def _line(setting: Setting, help: str | None = None) -> str:
    line, help = f"{setting.key} = {value_of(setting)}", help or setting.summary
    if setting.required:
        return _commented(line, f"must be set: {help}")
    if not setting.has_value:
        return _commented(f"# {line}", f"default: {setting.absent}; {help}")
    is_number = type(setting.form.written(setting.default)) is int
    return _commented(line, f"{setting.form.unit}: {help}" if is_number else help)


def _brief(setting: Setting, comment: str = "") -> str:
    line = f"{setting.key} = {value_of(setting)}"
    return _commented(line, comment) if comment else line


def _commented(line: str, comment: str) -> str:
    """The line and its comment, which continues on further lines if it is too long."""
    start = f"{line:<{_COLUMN - 1}} # " if len(line) < _COLUMN else f"{line}   # "
    return "\n".join(
        textwrap.wrap(
            comment.replace("`", ""),
            _WIDTH,
            initial_indent=start,
            subsequent_indent=f"{'':<{_COLUMN}}# ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    )
