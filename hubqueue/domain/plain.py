"""Converts any value into JSON types, and checks JSON text. Pure functions."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, TypeVar

# The most characters of one text, and of a whole value, that are sent to a hub: no argument may be too large for a request.
LONGEST_TEXT, MOST_TEXT = 10_000, 1 << 20
# The largest whole number that every JSON reader keeps exactly (RFC 8259, section 6).
LARGEST_EXACT = 2**53 - 1
# A longer whole number is infinity for a reader that uses doubles.
MOST_BITS = 1023
# A value nested deeper is not an argument of a training, or contains itself.
DEEPEST_VALUE = 30
# Characters that a number, a list or a mapping counts as.
_LEAST_ROOM = 8
_T = TypeVar("_T")
# No response of a hub nests deeper, and a recursive parser handles this depth easily.
DEEPEST = 100
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def plain(value: object) -> Any:
    """`value` in JSON types, whatever it is: scalars of numpy and torch become numbers, non-finite ones null, other types
    their text. Never raises. What nests too deeply, contains itself becomes null; what does not fit into `MOST_TEXT` is left
    out.
    """
    return made_plain(value)[0]


def made_plain(value: object, *, most: int = MOST_TEXT) -> tuple[Any, list[str]]:
    """The same, and the names of what could not be kept, as `outer.inner`. `most` replaces `MOST_TEXT`."""
    made = _Plain(most)
    return made.of(value, "", 0), made.lost


class _Plain:
    """Converts one value. `lost` has the names of what could not be kept."""

    def __init__(self, most: int) -> None:
        self.lost: list[str] = []
        self._room = most

    def of(self, value: object, path: str, depth: int) -> Any:
        self._room -= _LEAST_ROOM
        if depth > DEEPEST_VALUE or self._room < 0:
            return self._lose(path, None)
        try:
            return self._of(value, path, depth)
        except Exception:  # third-party code
            return self._lose(path, type_of(value))

    def _of(self, value: object, path: str, depth: int) -> Any:
        if isinstance(value, Mapping):
            found = {}
            for name, each in value.items():
                if self._is_full(path):
                    break
                text = self._text(name, path)
                found[text] = self.of(each, f"{path}.{text}" if path else text, depth + 1)
            return found
        if isinstance(value, list | tuple | set | frozenset):
            items = []
            for each in value:
                if self._is_full(path):
                    break
                items.append(self.of(each, path, depth + 1))
            return items
        if not isinstance(value, str | bool | int | float | None):
            value = _scalar(value)
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int):
            return int(value) if value.bit_length() <= MOST_BITS else self._lose(path, None)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        return self._text(value, path)

    def _text(self, value: object, path: str) -> str:
        text = text_of(value)
        most = min(LONGEST_TEXT, max(self._room, 0))
        self._room -= min(len(text), most)
        return text if len(text) <= most else self._lose(path, text[:most] + "…")

    def _is_full(self, path: str) -> bool:
        """Whether the rest of a list or a mapping is left out."""
        return self._room < 0 and self._lose(path, True)

    def _lose(self, path: str, instead: _T) -> _T:
        self.lost.append(path)
        return instead


def text_of(value: object) -> str:
    """The text of any value; its type where third-party code fails. Never raises, and has no lone surrogates."""
    try:
        return str(value).encode("utf-8", "backslashreplace").decode()
    except Exception:  # third-party code, or a number with thousands of digits
        return type_of(value)


def type_of(value: object) -> str:
    """The name of a value's type, in brackets."""
    return f"<{type(value).__qualname__}>"


def whole(value: object) -> int | None:
    """A number of any type as a whole one that every JSON reader keeps exactly; None for anything else. Never raises."""
    try:
        number = int(value)  # type: ignore[call-overload]
    except Exception:  # third-party code, infinity
        return None
    return number if abs(number) <= LARGEST_EXACT else None


def _scalar(value: object) -> object:
    try:
        return value.item()  # type: ignore[attr-defined]
    except Exception:  # third-party code: a tensor with several elements, or not a scalar at all
        return text_of(value)


def union(older: str, newer: str) -> str:
    """Two payloads as one: the newer value wins name by name.

    It is the newer payload itself where the older one adds nothing, or one of them is not a JSON object. Never raises.
    """
    before, after = json_object(older), json_object(newer)
    if before is None or after is None or before.keys() <= after.keys():
        return newer
    try:
        return json.dumps({**before, **after}, allow_nan=False)
    except (ValueError, RecursionError):  # numbers that a double cannot have, in a payload of another program
        return newer


def has_all(payload: str, of: str) -> bool:
    """Whether a payload has every name of another one with the same value. Never raises."""
    found, wanted = json_object(payload), json_object(of)
    return payload == of or (found is not None and wanted is not None and wanted.items() <= found.items())


def lacks_names(payload: str, of: str) -> bool:
    """Whether a payload lacks a name of another one. Never raises."""
    return union(of, payload) is not payload


def json_object(text: str | bytes | None) -> dict[str, Any] | None:
    """The JSON object in a text; None for anything else. Never raises."""
    try:
        found = json.loads(text)  # type: ignore[arg-type]
    except (ValueError, RecursionError, TypeError):
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
    return "\ufffd" not in text and json_object(text) is not None


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
