"""HUB and Platform on this machine: the real protocols over real sockets, for trying callbacks and for tests.

The server knows no protocol. What is served here comes from the destinations, and is loaded when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = [
    "BeatRecord",
    "CheckpointRecord",
    "EventRecord",
    "RequestRecord",
    "RunRecord",
    "Sandbox",
    "UploadRecord",
    "parse_rule",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("hubqueue.destinations.sandbox"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
