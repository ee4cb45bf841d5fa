"""The epoch and the step of an entry."""

from __future__ import annotations

import json
from typing import Any

from hubqueue.destinations.base import Entry, Kind
from hubqueue.destinations.layout.names import Position

_STEP = "step:"


def position(kind: Kind, entry: Entry) -> Position:
    """By its key and payload: metrics have the key of their epoch (`12`) or step (`step:120`), a checkpoint has both inside."""
    found: dict[str, Any] = json.loads(entry.payload)
    epoch, step = _number(found.get("epoch")), _number(found.get("step"))
    if kind is not Kind.METRICS:
        return Position(epoch, step)
    if entry.key.startswith(_STEP):
        return Position(epoch, int(entry.key.removeprefix(_STEP)))
    return Position(int(entry.key), None)


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and value == value // 1 else None
