"""Names and values as MLflow accepts them.

MLflow's rule for the names of metrics, params and tags: letters, digits, `_`, `-`, `.`, blanks and slashes, at most 250
characters, and a path that is already normal. Some versions also accept a colon, servers on Windows do not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

LONGEST_NAME = 250
LONGEST_PARAM = 6000
"""In characters: the value of a param."""
LONGEST_TAG = 5000
"""In characters: the value of a tag, for all servers since 2.0."""
_T = TypeVar("_T")
# The callback of ultralytics removes these, so the same training has the same names with and without hubqueue.
_DROPPED = re.compile(r"[()]")
_REFUSED = re.compile(r"[^/\w.\- ]")


def valid(name: str) -> str:
    """A name that MLflow accepts; unchanged if it does already."""
    text = _REFUSED.sub("_", _DROPPED.sub("", name))
    parts = ("_" if each == ".." else each for each in text.split("/") if each not in ("", "."))
    text = "/".join(parts) or "_"
    if len(text) > LONGEST_NAME:
        unique = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        text = f"{text[: LONGEST_NAME - 9]}-{unique}"
    return text


def named(values: Mapping[str, _T]) -> dict[str, _T]:
    """The values under valid names. Two of them never get the same name; the same mapping always gets the same names."""
    taken = {each for each in values if valid(each) == each}
    found: dict[str, _T] = {}
    for name, value in values.items():
        base = free = valid(name)
        number = 1
        while name != base and free in taken:
            number += 1
            suffix = f"_{number}"
            free = base[: LONGEST_NAME - len(suffix)] + suffix
        taken.add(free)
        found[free] = value
    return found


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with the names joined by dots: `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    return dict(_flat(values, ""))


def _flat(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def number(value: object) -> float | None:
    """The value of a metric; None for what is no finite number. NaN and infinity are null in an outbox."""
    if not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if found - found == 0 else None
