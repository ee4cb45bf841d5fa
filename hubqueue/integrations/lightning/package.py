"""The framework's two names: what the logger needs of `lightning`, or of `pytorch_lightning`, whichever a training uses."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

from hubqueue.integrations.framework import not_installed

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _packages() -> list[Any]:
    """The package that the training has imported, or both; if it has imported none, the first one that is installed."""
    loaded = [each for each in _PACKAGES if each in sys.modules]
    found = []
    for name in loaded or _PACKAGES:
        try:
            found.append(importlib.import_module(name))
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise  # something that the package itself needs
        if found and not loaded:
            break
    if not found:
        raise not_installed("lightning or pytorch_lightning", "lightning")
    return found


_found = _packages()
Logger: Any = types.new_class("Logger", tuple(each.loggers.Logger for each in _found))
"""The base class of a logger; with both packages a subclass of both."""


def is_main_process() -> bool:
    """Whether this process has rank 0. Before a trainer knows the ranks, the variables of the launcher decide."""
    return int(getattr(_found[0].utilities.rank_zero_only, "rank", 0)) == 0
