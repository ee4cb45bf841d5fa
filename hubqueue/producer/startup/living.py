"""The runs of this process: a pickled handle finds its run among them, and a forked child must not use the parent's locks."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol


class Living(Protocol):
    """A run, as long as the script has a reference to it."""

    def after_fork(self) -> None:
        """Called in a forked child."""
        ...


_LIVING: weakref.WeakSet[Living] = weakref.WeakSet()


def note(run: Living) -> None:
    """A run was made."""
    _LIVING.add(run)


def living() -> Iterator[Living]:
    """The runs that the script still has."""
    yield from list(_LIVING)


def weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Calls a method of a run as long as the run exists: it must be noticed when a script drops the run."""
    reference = weakref.WeakMethod(method)

    def call(*given: object) -> None:
        found = reference()
        if found is not None:
            found(*given)

    return call


def _after_fork_in_child() -> None:
    for run in living():
        run.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
