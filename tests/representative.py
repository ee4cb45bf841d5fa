"""The tests of a kit that run in `make test` for one class; the others run in `make test-slow`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest


def only_fast(*names: str) -> Callable[[type], type]:
    """A decorator for a class of tests: all inherited tests but these are slow. The inherited classes stay as they are."""

    def mark(tests: type) -> type:
        inherited = {name for name in dir(tests) if name.startswith("test_")}
        assert inherited.issuperset(names), f"no such tests: {set(names) - inherited}"
        for name in inherited.difference(names):
            setattr(tests, name, pytest.mark.slow(_copy(getattr(tests, name))))
        return tests

    return mark


def _copy(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def call(*given: Any, **named: Any) -> Any:
        return test(*given, **named)

    return call
