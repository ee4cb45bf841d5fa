"""Numbers as people read and write them: sizes, lengths of time, counted nouns. Pure: values in, text out, and back."""

from __future__ import annotations

import re

_LONGEST = r"[0-9]{1,15}(?:\.[0-9]{1,9})?"
_UNITS_OF_TIME = r"ms|s|sec|seconds?|min|minutes?|h|hours?|d|days?|w|weeks?"
_PART = rf"{_LONGEST}\s*(?:{_UNITS_OF_TIME})"
SPAN = rf"\s*{_PART}(?:\s*{_PART})*\s*"
"""A length of time as people write it, as a regular expression: 90 s, 1 h 30 min."""
SIZE = rf"\s*{_LONGEST}\s*(?:(?:[kKmMgGtT][iI]?)?[bB]|bytes?)\s*"
"""A number of bytes as people write it, as a regular expression: 20 GB, 512 MiB."""

_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600}
_SECONDS |= {"d": 86_400, "day": 86_400, "w": 604_800, "week": 604_800}


def size(count: float) -> str:
    """Bytes, with a decimal unit: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def span(seconds: float) -> str:
    """A length of time, with one or two units: 3 min 20 s."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    for length, unit, lower, lower_unit in (
        (60, "min", 1, "s"),
        (3600, "h", 60, "min"),
        (86400, "d", 3600, "h"),
    ):
        if seconds < length * (60 if unit != "h" else 24) or unit == "d":
            whole, rest = divmod(int(seconds), length)
            rest //= lower
            return f"{whole} {unit} {rest} {lower_unit}" if rest and whole < 10 else f"{whole} {unit}"
    raise AssertionError("unreachable")


def plural(count: int, one: str, many: str | None = None) -> str:
    """A counted noun: 1 entry, 2 entries."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def read_span(text: str) -> float | None:
    """The seconds that a text such as "1 h 30 min" means; None where it is no length of time."""
    if not re.fullmatch(SPAN, text):
        return None
    parts = re.findall(rf"({_LONGEST})\s*([a-z]+)", text)
    return sum(float(number) * _seconds(unit) for number, unit in parts)


def read_size(text: str) -> int | None:
    """The bytes that a text such as "20 GB" or "512 MiB" means, to the nearest one; None where it is no size."""
    if not re.fullmatch(SIZE, text):
        return None
    number, letters = re.findall(rf"({_LONGEST})\s*([a-zA-Z]+)", text)[0]
    letters = letters.lower()
    step = 1024 if letters[1:2] == "i" else 1000
    factor = 1 if letters.startswith("b") else step ** ("kmgt".index(letters[0]) + 1)
    return int(number) * factor if number.isdigit() else round(float(number) * factor)


def written_span(seconds: float) -> str:
    """Seconds as `read_span` reads them, without loss down to a microsecond, in the largest unit that divides them."""
    for length, one, many in ((86_400, "day", "days"), (3600, "h", "h"), (60, "min", "min")):
        if seconds and seconds % length == 0:
            return f"{seconds // length:.0f} {one if seconds == length else many}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + " s"


def written_size(count: int) -> str:
    """Bytes as `read_size` reads them, without loss, in the largest unit that divides them."""
    for power in (4, 3, 2, 1):
        for step, infix in ((1000, ""), (1024, "i")):
            letter = "_kMGT"[power] if step == 1000 else "_KMGT"[power]
            if count and count % step**power == 0:
                return f"{count // step**power} {letter}{infix}B"
    return f"{count} B"


def _seconds(unit: str) -> float:
    return _SECONDS.get(unit) or _SECONDS[unit.removesuffix("s")]
