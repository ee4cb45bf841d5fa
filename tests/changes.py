"""Kills this process before or after its n-th change of the file system."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from typing import Any

# What changes a folder, and what makes it durable.
CHANGES = ("write", "ftruncate", "fsync", "rename", "link", "unlink", "mkdir", "rmdir")


def kill_at_change(number: int, *, after: bool) -> None:
    """Kill this process at the change with this number, counted from 1."""
    numbers = count(1)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            is_it = next(numbers) == number
            if is_it and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*given, **named)
            finally:
                if is_it:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
