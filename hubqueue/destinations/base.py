"""What the author of a destination needs: the value to declare, and what a transport is to the worker."""

from __future__ import annotations

from hubqueue.config.declaration import (
    Attempt,
    Blocks,
    Completion,
    Destination,
    Key,
    Open,
    Registration,
    Secret,
    Transport,
    quiet,
)

__all__ = [
    "Attempt",
    "Blocks",
    "Completion",
    "Destination",
    "Key",
    "Open",
    "Registration",
    "Secret",
    "Transport",
    "quiet",
]
