"""Compiled statements, shared by all engines of a process.

Each engine compiles its own statements, and each test has its own engine: that took a third of the time of the tests.
A process of a user has one engine.
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.util import LRUCache

_SHARED = LRUCache(5000)


def share() -> None:
    """Share what the engines of this process compile from now on."""
    # A compiled statement is found by its dialect, too. Those of one driver compile alike.
    DefaultDialect.__eq__ = _is_alike  # type: ignore[assignment,method-assign]
    DefaultDialect.__hash__ = lambda dialect: hash((type(dialect), id(dialect.dbapi)))  # type: ignore[method-assign]
    event.listen(Engine, "engine_connect", _use)


def _is_alike(one: DefaultDialect, other: object) -> bool:
    return one is other or (type(one) is type(other) and one.dbapi is not None and one.dbapi is other.dbapi)  # type: ignore[attr-defined]


def _use(connection: Connection) -> None:
    connection.engine._compiled_cache = _SHARED
