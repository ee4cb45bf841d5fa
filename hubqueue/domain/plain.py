"""Converts any value into JSON types, and checks JSON text. Pure functions."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

# No response of a hub nests deeper, and a recursive parser handles this depth easily.
DEEPEST = 100
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def plain(value: object) -> Any:
    """`value` in JSON types: scalars of numpy and torch become numbers, non-finite ones null, other types their text."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if not isinstance(value, str | bool | int | float | None):
        value = _scalar(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return str(value)


def _scalar(value: object) -> object:
    try:
        return value.item()  # type: ignore[attr-defined]
    except Exception:  # third-party code: a tensor with several elements, or not a scalar at all
        return str(value)


def union(older: str, newer: str) -> str:
    """Two payloads as one: the newer value wins name by name.

    It is the newer payload itself where the older one adds nothing, or one of them is not a JSON object. Never raises.
    """
    before, after = _object(older), _object(newer)
    if before is None or after is None or before.keys() <= after.keys():
        return newer
    try:
        return json.dumps({**before, **after}, allow_nan=False)
    except (ValueError, RecursionError):  # numbers that a double cannot have, in a payload of another program
        return newer


def has_all(payload: str, of: str) -> bool:
    """Whether a payload has every name of another one with the same value. Never raises."""
    found, wanted = _object(payload), _object(of)
    return payload == of or (found is not None and wanted is not None and wanted.items() <= found.items())


def lacks_names(payload: str, of: str) -> bool:
    """Whether a payload lacks a name of another one. Never raises."""
    return union(of, payload) is not payload


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def checksum(key: str, payload: str) -> int:
    """CRC-32 (ISO 3309) of an entry's key and payload, to detect changes after the enqueue."""
    return zlib.crc32(payload.encode(), zlib.crc32(key.encode()))


def is_intact(key: object, payload: object, kept: int | None) -> bool:
    """Whether key and payload are what was enqueued; without a checksum, whether the payload is a valid one."""
    if not (isinstance(key, str) and isinstance(payload, str)):
        return False  # one flipped bit can turn a text column into bytes
    if kept is None:
        return is_payload(payload)
    try:
        return checksum(key, payload) == kept
    except UnicodeEncodeError:
        return False


def is_payload(text: str) -> bool:
    """Whether a text is a valid payload: a JSON object without replacement characters of a failed UTF-8 decoding."""
    return "\ufffd" not in text and _object(text) is not None


def is_deep(text: bytes) -> bool:
    """Whether JSON nests deeper than `DEEPEST`.

    A parser that recurses to the end of the stack also breaks other code: any finalizer that Python runs at that
    depth (such as that of an abandoned socket) fails too.
    """
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return False
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found.group(), 0)
        if depth > DEEPEST:
            return True
    return False
