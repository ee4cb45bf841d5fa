"""The JSON Schema (draft 2020-12) of the configuration file, from the declarations.

It accepts every file that the reader accepts, and refuses what is visible in one file: unknown keys, values of the wrong
kind, numbers out of bounds, keys of another type of destination. It does not see environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from inspect import getdoc
from typing import Any

from hubqueue.config.config import Config
from hubqueue.config.names import LONGEST_NAME, NAME
from hubqueue.config.registry import BUILT_IN, declaration
from hubqueue.config.setting import Setting, settings_of, tables_of
from hubqueue.config.settings import DestinationSettings

Schema = dict[str, Any]


def schema(types: Sequence[str] = tuple(BUILT_IN)) -> Schema:
    """The schema of a configuration whose destinations are of these types."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hubqueue configuration",
        "description": "Where runs are uploaded to, how fast, and what is kept.",
        **_table(Config, {"destinations": _destinations(types)}),
        "$defs": {f"destination-{each}": _of_type(each, types) for each in types},
    }


def _table(holder: type, more: Mapping[str, Schema]) -> Schema:
    inner = {
        key: {"description": _plain(each.help), **_table(each.holder, {})}
        for key, each in tables_of(holder).items()
    }
    own = {key: _value(each) for key, each in settings_of(holder).items()}
    return {"type": "object", "properties": {**own, **inner, **more}, "additionalProperties": False}


def _value(setting: Setting) -> Schema:
    made: Schema = {"description": _plain(setting.help), **setting.form.schema}
    if setting.has_value:
        made["default"] = setting.form.written(setting.default)
    elif setting.example is not None:
        made["examples"] = [setting.example]
    return made


def _destinations(types: Sequence[str]) -> Schema:
    """By name. The default type is the one with the destination's name, else the first one."""
    others = rf"^(?!(?:{'|'.join(map(re.escape, types))})$){NAME}$"
    return {
        "description": "Where runs can go to, by name.",
        "type": "object",
        "properties": {each: _destination(types, each) for each in types},
        "patternProperties": {others: _destination(types, next(iter(BUILT_IN)))},
        "propertyNames": {"maxLength": LONGEST_NAME},
        "additionalProperties": False,
    }


def _destination(types: Sequence[str], usual: str) -> Schema:
    chosen = [
        {
            "if": {
                "properties": {"type": {"const": each}},
                # Without a type the condition would hold for all of them.
                **({} if each == usual else {"required": ["type"]}),
            },
            "then": {"$ref": f"#/$defs/destination-{each}"},
        }
        for each in types
    ]
    return {"type": "object", "properties": {"type": _type(types, default=usual)}, "allOf": chosen}


def _of_type(type: str, types: Sequence[str]) -> Schema:
    holder = declaration(type).settings
    made = _table(holder, {})
    made["properties"]["type"] = _type(types)
    return {"title": f"a destination of type {type}", "description": _first_line(holder), **made}


def _type(types: Sequence[str], **more: str) -> Schema:
    help = settings_of(DestinationSettings)["type"].help
    return {"description": _plain(help), "enum": list(types), **more}


def _first_line(holder: type) -> str:
    return (getdoc(holder) or "").partition("\n")[0]


def _plain(help: str) -> str:
    return help.replace("`", "")
