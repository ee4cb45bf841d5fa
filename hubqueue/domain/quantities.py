"""Numbers formatted for people: sizes, durations, counted nouns. Pure functions."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes, with a decimal unit: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def span(seconds: float) -> str:
    """A duration with one or two units: 3 min 20 s."""
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
