"""The runs of one training: it has one at each of its destinations, with the id of the first one in common (`together`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, case, true

from hubqueue.outbox.database.schema import runs

RunIds = str | Collection[str] | None
"""The id of a run, or of several; None for all."""

IN_TURN = (case((runs.c.id == runs.c.together, 0), else_=1), runs.c.created_at, runs.c.id)
"""The order of the runs of one training: the first one, then the others in the order of their start."""


def among(column: ColumnElement[str], run_ids: RunIds) -> ColumnElement[bool]:
    """Whether a column has the id of one of these runs."""
    if run_ids is None:
        return true()
    return column == run_ids if isinstance(run_ids, str) else column.in_(run_ids)


def side_by_side(found: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Runs in the order of the first of each training, its other runs behind it."""
    trainings: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        trainings.setdefault(row["together"] or row["id"], []).append(row)
    for rows in trainings.values():
        rows.sort(key=lambda row: (row["id"] != row["together"], row["created_at"], row["id"]))
    return [row for rows in trainings.values() for row in rows]
