"""Any value as JSON knows it. Pure; nothing is refused."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

# Nothing that a hub says needs more, and a parser that recurses has ample room for it.
DEEPEST = 100
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def plain(value: object) -> Any:
    """`value` as JSON: scalars of numpy and torch become numbers, non-finite ones null, what JSON lacks its text."""
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
    except Exception:  # foreign code: a tensor of many, or no scalar at all
        return str(value)


def checksum(key: str, payload: str) -> int:
    """What tells that an entry's key and payload are still what was enqueued: CRC-32 (ISO 3309) over both."""
    return zlib.crc32(payload.encode(), zlib.crc32(key.encode()))


def is_intact(key: object, payload: object, kept: int | None) -> bool:
    """Whether an entry carries what was enqueued; of one without a checksum, whether that can be a payload at all."""
    if not (isinstance(key, str) and isinstance(payload, str)):
        return False  # one flipped bit makes bytes of a text
    if kept is None:
        return is_payload(payload)
    try:
        return checksum(key, payload) == kept
    except UnicodeEncodeError:
        return False


def is_payload(text: str) -> bool:
    """Whether a text is what entries carry: a JSON object, with nothing in it that could not be read as UTF-8."""
    try:
        return "\ufffd" not in text and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def is_deep(text: bytes) -> bool:
    """Whether JSON nests deeper than `DEEPEST`.

    A parser that recurses to the end of the stack does more than fail: whatever Python cleans up down there (a socket
    that was left behind) fails with it.
    """
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return False
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(found.group(), 0)
        if depth > DEEPEST:
            return True
    return False
