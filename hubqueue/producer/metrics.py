"""Metrics of one epoch as the JSON text that a hub stores.

Promises strict JSON (no NaN, no Infinity) of numbers and nulls only, so that the hub cannot refuse a whole batch
for one invalid value. Raises at once for a value that is not a number, with its name. Imports neither numpy nor torch:
it recognizes their scalars by their behaviour.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache
from numbers import Integral, Real
from operator import index
from typing import Any

from hubqueue.domain.errors import InvalidMetrics
from hubqueue.domain.redact import clean, hide_key

# The largest whole number that every JSON reader keeps exactly (RFC 8259, section 6).
_LARGEST_EXACT = 2**53 - 1
_ENCODER = json.JSONEncoder(allow_nan=False)
_HINT = "log numbers: int, float, or a numpy or torch scalar"


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
    for name in metrics:
        if not isinstance(name, str):
            raise InvalidMetrics(f"the name of a metric must be a string, not {_type(name)}", hint=_HINT)
    # Not str(name): that of a (str, Enum) member is "Class.MEMBER".
    plain = {hide_key(str.__str__(name)): _number(name, value) for name, value in metrics.items()}
    return _ENCODER.encode(plain)


def numbers_only(metrics: Mapping[Any, object]) -> tuple[dict[str, object], list[str]]:
    """The part of `metrics` that `metrics_text` accepts, and the names of the rest. For callbacks, which must not raise."""
    kept: dict[str, object] = {}
    left_out = []
    for name, value in metrics.items():
        try:
            kept[str.__str__(name)] = _number(name, value)
        except (InvalidMetrics, TypeError):
            left_out.append(_named(str(name)))
    return kept, left_out


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


def finite_number(name: str, value: object) -> float:
    """One metric as a float; None and non-finite values become 0.0, the HUB's value for "not measured".

    For fields that cannot be null. Raises `InvalidMetrics` for anything but a single number.
    """
    number = _number(name, value)
    return 0.0 if number is None else float(number)


def epoch_number(epoch: object) -> int:
    """The epoch as an int. Raises `InvalidMetrics` for anything but a whole number from 0 to 2**53 - 1."""
    try:
        # A scalar of numpy or torch can be a boolean, and some of those have `__index__`.
        unwrapped = epoch if isinstance(epoch, int) else _unwrapped(epoch)
        number = index(unwrapped)  # type: ignore[arg-type]
    except Exception:
        number = None
    if number is None or isinstance(unwrapped, bool):
        raise InvalidMetrics(
            f"an epoch must be a whole number, not {_type(epoch)}", hint="count epochs from 0"
        )
    if not 0 <= number <= _LARGEST_EXACT:
        raise InvalidMetrics("an epoch must be at least 0 and less than 2**53", hint="count epochs from 0")
    return number


@lru_cache(maxsize=4096)
def _is_harmless(name: str) -> bool:
    """Whether a name contains no key. Cached, because every epoch has the same names."""
    return hide_key(name) == name


def _number(name: str, value: object) -> int | float | None:
    if value is None:
        return None
    try:
        plain = _unwrapped(value)
        if isinstance(plain, Integral):
            return _whole(name, int(plain))
        if isinstance(plain, Real | Decimal):
            return _finite(plain)
    except InvalidMetrics:
        raise
    except Exception as error:
        # Third-party code: a tensor without data, or on a device that is no longer available, may raise anything.
        raise InvalidMetrics(f"metric {_named(name)} cannot be read: {_type(value)}", hint=_HINT) from error
    raise InvalidMetrics(f"metric {_named(name)} is not a number but {_type(value)}", hint=_HINT)


def _unwrapped(value: object) -> object:
    """The Python number inside a scalar of numpy or torch; any other value unchanged."""
    item = getattr(value, "item", None)
    if not callable(item) or isinstance(value, type) or getattr(value, "ndim", 0) != 0:
        return value
    return item()


def _whole(name: str, number: int) -> int:
    if number.bit_length() > 1023:
        # A reader that uses doubles would read it as infinity.
        raise InvalidMetrics(f"metric {_named(name)} is a whole number too large for a double", hint=_HINT)
    return number


def _finite(value: Real | Decimal) -> float | None:
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None  # a fraction outside the range of a double, a signalling NaN
    return number if math.isfinite(number) else None


def _named(name: str) -> str:
    return repr(clean(name, limit=80))


def _type(value: object) -> str:
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    shape = getattr(value, "shape", None)
    return clean(f"{name} of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else name, limit=120)
