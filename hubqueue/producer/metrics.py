"""Metrics of one epoch or step as the JSON text that a hub stores.

Promises strict JSON (no NaN, no Infinity) of numbers and nulls only, so that the hub cannot refuse a whole batch
for one invalid value. A value that is not a number is left out and logged once a run (`Lenient`), or raised at once
with its name. Imports neither numpy nor torch: it recognizes their scalars by their behaviour.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from numbers import Integral, Real
from operator import index
from typing import Any

from hubqueue.domain.drafts import Position
from hubqueue.domain.errors import InvalidArgument, InvalidMetrics
from hubqueue.domain.plain import LARGEST_EXACT, MOST_BITS, text_of
from hubqueue.domain.redact import clean, hide_key
from hubqueue.producer.survival import logger

_ENCODER = json.JSONEncoder(allow_nan=False)
_HINT = "log numbers: int, float, or a numpy or torch array of one element"
_COUNT_HINT = "count epochs and steps from 0"
_SCORE_HINT = "give the mAP50-95 as a fraction: 0.51, not 51"
_LOG = logger()
# How many names are remembered, so that each is logged once, and how many one line shows.
_MOST_NAMES, _MOST_SHOWN = 1000, 10


def metrics_text(metrics: Mapping[str, object]) -> str:
    """`{"train/box_loss": 1.2, …}` as JSON text.

    None and non-finite values become null, true and false become 1 and 0. Raises `InvalidMetrics` for a key that is
    not a string and for a value that is not a single number.
    """
    if (
        type(metrics) is dict
        and set(map(type, metrics)) == {str}
        and all(map(_is_harmless, metrics))
        and set(map(type, metrics.values())) == {float}
    ):
        # The usual case. The encoder makes the one remaining check: that all values are finite.
        with suppress(ValueError):
            return _ENCODER.encode(metrics)
    if not isinstance(metrics, Mapping):
        raise InvalidMetrics(f"metrics must map names to numbers, not be {_type(metrics)}", hint=_HINT)
    names = [_name(name) for name in metrics]
    numbers = [_number(name, value) for name, value in metrics.items()]
    return _ENCODER.encode(dict(zip(map(hide_key, names), numbers, strict=True)))


class Lenient:
    """Leaves out of a run's metrics what is not a number. Each name is logged once."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def text(self, metrics: Mapping[Any, object]) -> str | None:
        """As `metrics_text`, without the values that it refuses; None when nothing is left.

        Raises `InvalidMetrics` for anything but a mapping.
        """
        try:
            return metrics_text(metrics)
        except InvalidMetrics:
            if not isinstance(metrics, Mapping):
                raise
        kept = self.kept(metrics)
        return _ENCODER.encode(kept) if kept else None

    def kept(self, metrics: Mapping[Any, object]) -> dict[str, int | float | None]:
        """The numbers of `metrics` by name."""
        kept: dict[str, int | float | None] = {}
        left_out: dict[str, str] = {}
        for name, value in metrics.items():
            try:
                kept[hide_key(_name(name))] = _number(name, value)
            except InvalidMetrics as error:
                shown = _named(name)
                if shown not in self._logged and len(self._logged) < _MOST_NAMES:
                    self._logged.add(shown)
                    left_out[shown] = str(error)
        if left_out:
            reasons = list(left_out.values())
            more = f"; and {len(reasons) - _MOST_SHOWN} more" if len(reasons) > _MOST_SHOWN else ""
            rest = "the others of this call are saved" if kept else "nothing of this call is saved"
            _LOG.warning("left out: %s%s (%s; %s)", "; ".join(reasons[:_MOST_SHOWN]), more, rest, _HINT)
        return kept


def metrics_mapping(text: object) -> Mapping[Any, object]:
    """Metrics as a mapping, from a mapping or from the JSON text that the HUB's callbacks write (may contain NaN).

    Raises `InvalidMetrics` for anything but a JSON object.
    """
    if isinstance(text, Mapping):
        return text
    try:
        found = json.loads(str(text))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidMetrics(f"metrics must be a JSON object, not {clean(repr(text), limit=60)}", hint=_HINT)
    return found


def score(name: str, value: object, *, strict: bool) -> float:
    """A score from 0 to 1, for a field that cannot be null. None and non-finite values become 0.0, "not measured".

    So does anything else, with a log line, because a wrong score must not cost a checkpoint; `strict` raises
    `InvalidMetrics` for it.
    """
    try:
        number = float(_number(name, value) or 0.0)
        if not 0.0 <= number <= 1.0:
            raise InvalidMetrics(f"{_named(name)} must be from 0 to 1, not {number:g}", hint=_SCORE_HINT)
    except InvalidMetrics as error:
        if strict:
            raise
        _LOG.warning("%s; 0 is sent instead (%s)", error, error.hint)
        return 0.0
    return number


def position(epoch: object, step: object) -> Position:
    """An epoch, a step, or both (None: not given), from whole numbers of any type (3, 3.0, "3", an array of one element).

    Raises `InvalidMetrics` for anything else, and for a number outside 0 to 2**53 - 1; `InvalidArgument` without both.
    """
    if epoch is None and step is None:
        raise InvalidArgument(
            "neither an epoch nor a step is given", hint="add epoch=N, step=N, or both; they count from 0"
        )
    return Position(
        None if epoch is None else _counted("an epoch", epoch),
        None if step is None else _counted("a step", step),
    )


def _counted(name: str, value: object) -> int:
    try:
        # A scalar of numpy or torch can be a boolean, and some of those have `__index__`.
        unwrapped = value if isinstance(value, int) else _unwrapped(value)
        number = None if isinstance(unwrapped, bool) else _whole_number(unwrapped)
    except Exception:
        number = None
    if number is None:
        raise InvalidMetrics(f"{name} must be a whole number, not {_type(value)}", hint=_COUNT_HINT)
    if not 0 <= number <= LARGEST_EXACT:
        raise InvalidMetrics(f"{name} must be at least 0 and less than 2**53", hint=_COUNT_HINT)
    return number


def _whole_number(value: object) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", value) else None
    if hasattr(type(value), "__index__"):
        return index(value)  # type: ignore[arg-type]
    number = float(value) if isinstance(value, Real | Decimal) else math.nan
    return int(number) if number.is_integer() else None


@lru_cache(maxsize=4096)
def _is_harmless(name: str) -> bool:
    """Whether a name contains no key. Cached, because every epoch has the same names."""
    return hide_key(name) == name


def _name(name: object) -> str:
    if issubclass(type(name), str):
        return str.__str__(name)  # not str(name): that of a (str, Enum) member is "Class.MEMBER"
    raise InvalidMetrics(f"the name of a metric must be a string, not {_type(name)}", hint=_HINT)


def _number(name: object, value: object) -> int | float | None:
    if value is None:
        return None
    try:
        plain = _unwrapped(value)
        if isinstance(plain, Integral):
            return _whole(name, int(plain))
        if isinstance(plain, Real | Decimal) or _is_number(plain):
            return _finite(plain)
    except InvalidMetrics:
        raise
    except Exception as error:
        # Third-party code: a tensor without data, or on a device that is no longer available, may raise anything.
        raise InvalidMetrics(f"metric {_named(name)} cannot be read: {_type(value)}", hint=_HINT) from error
    raise InvalidMetrics(f"metric {_named(name)} is not a number but {_type(value)}", hint=_HINT)


def _unwrapped(value: object) -> object:
    """The Python number inside a numpy or torch array of one element; any other value unchanged."""
    item = getattr(value, "item", None)
    if not callable(item) or isinstance(value, type):
        return value
    shape = getattr(value, "shape", ())
    if not isinstance(shape, tuple) or any(each != 1 for each in shape):
        return value
    return item()


def _is_number(value: object) -> bool:
    """Whether a type of another package is a number. An array of several elements is not, though it has the method."""
    return hasattr(type(value), "__float__") and not getattr(value, "shape", ())


def _whole(name: object, number: int) -> int:
    if number.bit_length() > MOST_BITS:
        # A reader that uses doubles would read it as infinity.
        raise InvalidMetrics(f"metric {_named(name)} is a whole number too large for a double", hint=_HINT)
    return number


def _finite(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (OverflowError, ValueError):
        return None  # a fraction outside the range of a double, a signalling NaN
    return number if math.isfinite(number) else None


def _named(name: object) -> str:
    return repr(clean(text_of(name), limit=80))


def _type(value: object) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        shape = getattr(value, "shape", None)
    except Exception:  # third-party code
        shape = None
    return clean(f"{name} of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else name, limit=120)
