"""Statements that run often: written in Core, compiled once, run on the driver's own cursor.

Core needs several times as long for a cached statement as SQLite itself, and longer still to build one. Enqueue, claim,
settle and the polling of an idle worker avoid that. Parameters reach the driver unchanged, so moments are given as
`microseconds`.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, literal_column
from sqlalchemy.sql.expression import Executable

from hubqueue.outbox.database.schema import EPOCH

_MICROSECOND = timedelta(microseconds=1)


class Prepared:
    """One statement. Its result columns are plain values of the driver, in the order of the statement."""

    def __init__(self, statement: Executable, columns: Collection[str] = ()) -> None:
        self._statement = statement
        self._columns = list(columns) or None
        self._compiled: dict[str, tuple[str, tuple[str, ...] | None, dict[str, Any]]] = {}

    def run(
        self, tx: Connection, parameters: dict[str, Any], *, returns: bool = True
    ) -> list[tuple[Any, ...]]:
        """Execute it in a transaction. Returns its rows, where it `returns` any."""
        name = tx.dialect.name
        if name not in self._compiled:
            compiled = self._statement.compile(dialect=tx.dialect, column_keys=self._columns)  # type: ignore[attr-defined]
            positions = compiled.positiontup
            # Values that SQLAlchemy adds, such as the OFFSET to every LIMIT for SQLite.
            own = {
                each: str(value)
                if isinstance(value, str)
                else value  # drivers differ in how they take an enumeration
                for each, value in compiled.params.items()
                if each not in (self._columns or ()) and value is not None
            }
            self._compiled[name] = (str(compiled), None if positions is None else tuple(positions), own)
        text, positions, own = self._compiled[name]
        if own:
            parameters = {**own, **parameters}
        given = parameters if positions is None else tuple(map(parameters.__getitem__, positions))
        cursor = tx.connection.driver_connection.execute(text, given)  # type: ignore[union-attr]
        return cursor.fetchall() if returns else []


def first(count: int, query: Select[Any]) -> Select[Any]:
    """The first rows of a query. SQLite would plan a statement with a parameter as limit again at each use."""
    return query.limit(literal_column(str(count))).offset(literal_column("0"))


def microseconds(moment: datetime) -> int:
    """A moment as the tables store it."""
    return (moment - EPOCH) // _MICROSECOND


def plain_of(value: object) -> object:
    """A value for a driver: a moment as the tables store it, anything else unchanged."""
    return microseconds(value) if isinstance(value, datetime) else value
