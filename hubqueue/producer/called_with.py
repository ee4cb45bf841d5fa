"""Checks the arguments of a script's calls. An error is one line; invalid arguments of `finish` still end the run."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from hubqueue.domain.errors import InvalidArgument, InvalidModel
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.plain import plain, text_of
from hubqueue.domain.redact import clean, harmless

# Seconds; the longest wait that threads support on every platform.
_FOREVER = 4_000_000.0
_ENDS = (RunState.FINISHED, RunState.FAILED)
# The most characters of a run's name: it can be a folder's name on every file system.
_LONGEST_NAME = 128
_NAME_HINT = r'for example name="baseline-3": 1 to 128 characters, no / or \, no control character, no dot at the start'


def check_start(model: object, args: object, worker: object) -> None:
    """Check the arguments of `start_run`. Raises `InvalidModel` and `InvalidArgument`."""
    if worker not in ("auto", "thread", "none"):
        raise InvalidArgument(
            f"worker must be 'auto', 'thread' or 'none', not {worker!r}", hint="leave it out for 'auto'"
        )
    if not isinstance(model, str):
        hint = "give the name of a model file (yolov8n.pt), a model URL or a model id"
        raise InvalidModel(f"the model must be a string, not {type(model).__name__}", hint=hint)
    if args is not None and not isinstance(args, Mapping):
        hint = 'for example args={"epochs": 100}, or args=vars(options)'
        raise InvalidArgument(f"args must be a mapping, not {type(args).__name__}", hint=hint)


def run_name(name: object) -> str:
    """The name of a run, trimmed; empty for None. Raises `InvalidArgument` for anything but a valid name."""
    if name is None:
        return ""
    if not isinstance(name, str):
        raise InvalidArgument(
            f"the name of a run must be a string, not {type(name).__name__}", hint=_NAME_HINT
        )
    text = str.__str__(name).strip()
    if not text:
        problem = "it is empty"
    elif len(text) > _LONGEST_NAME:
        problem = f"it has {len(text)} characters"
    elif text.startswith("."):
        problem = "it begins with a dot"
    elif "/" in text or "\\" in text:
        problem = "it has a slash"
    elif harmless(text) != text:
        problem = "it has a control character"
    else:
        return text
    raise InvalidArgument(f"invalid name of a run, {_shown(name)}: {problem}", hint=_NAME_HINT)


def destination_names(given: object) -> tuple[str, ...] | None:
    """The names of destinations, from one or several of them; None for the default. Raises `InvalidArgument`."""
    hint = 'give one name, or several different ones: destination=["tracking", "bucket"]'
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence):
        raise InvalidArgument(
            f"destination must be a name, or a list of names, not {type(given).__name__}", hint=hint
        )
    if not names:
        raise InvalidArgument("destination is an empty list", hint=f"{hint}; leave it out for the default")
    if wrong := [each for each in names if not isinstance(each, str)]:
        raise InvalidArgument(
            f"the name of a destination must be a string, not {type(wrong[0]).__name__}", hint=hint
        )
    if twice := [each for each in names if names.count(each) > 1]:
        raise InvalidArgument(f"destination {_shown(twice[0])} is named twice", hint=hint)
    return tuple(names)


def check_path(path: object) -> None:
    """Check the path of a checkpoint. Raises `InvalidArgument`."""
    if not isinstance(path, str | os.PathLike):
        hint = 'for example run.save_checkpoint("last.pt", epoch=0)'
        raise InvalidArgument(
            f"a checkpoint must be the path of a file or a folder, not {type(path).__name__}", hint=hint
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """The checked arguments of `finish`. If there is a `problem`, the run is ended first, then the problem is raised.

    An end that `yields` counts only if no other process of the run lives: nobody has called `finish`.
    """

    state: RunState
    timeout: float
    deadline: float  # of time.monotonic()
    results: Mapping[str, object] | None
    error: str | None
    problem: InvalidArgument | None
    yields: bool = False


def ending(
    timeout: object, status: object, results: object, error: object, *, yields: bool = False
) -> Ending:
    """Check the arguments of `finish`. Never raises."""
    problem: InvalidArgument | None = None
    state = next((each for each in _ENDS if isinstance(status, str) and each == status), None)
    if state is None:
        problem = InvalidArgument(
            f"status must be 'finished' or 'failed', not {_shown(status)}", hint="the run was ended anyway"
        )
        state = RunState.FAILED if error else RunState.FINISHED
    seconds = _FOREVER if timeout is None else _seconds(timeout)
    if seconds is None:
        problem = InvalidArgument(
            f"timeout must be a number of seconds, or None to wait without a limit, not {_shown(timeout)}",
            hint="the run was ended anyway",
        )
        seconds = 0.0
    mapping = _mapping(results)
    if results is not None and mapping is None and isinstance(results, Mapping):
        problem = InvalidArgument(
            f"results cannot be read: {type(results).__name__} fails", hint="the run was ended without them"
        )
    elif results is not None and mapping is None:
        problem = InvalidArgument(
            f"results must be a mapping, not {type(results).__name__}",
            hint='for example {"metrics": {"mAP50": 0.5}}; the run was ended without them',
        )
    seconds = 0.0 if problem else seconds
    reason = None if error is None else text_of(error)
    return Ending(state, seconds, time.monotonic() + seconds, mapping, reason, problem, yields)


def _seconds(timeout: object) -> float | None:
    """A number of any kind (numpy's too) as a possible wait; None for anything else."""
    if isinstance(timeout, bool) or not isinstance(timeout, Real | Decimal):
        return None
    number: Any = timeout
    try:
        seconds = float(number)
    except OverflowError:  # a whole number beyond a double
        return _FOREVER if number > 0 else 0.0
    except Exception:
        return None
    return None if math.isnan(seconds) else min(max(0.0, seconds), _FOREVER)


def _mapping(results: object) -> Mapping[str, object] | None:
    """Results that are a mapping whose names can be read; None for anything else."""
    return results if isinstance(results, Mapping) and isinstance(plain(results), dict) else None


def _shown(value: object) -> str:
    try:
        return clean(repr(value), limit=80)
    except Exception:
        return type(value).__name__
