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
    try:
        return "\ufffd" not in text and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


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
