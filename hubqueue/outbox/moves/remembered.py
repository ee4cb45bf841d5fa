"""What a destination must remember of a run: a JSON object in `runs.remembered`, under names that the destination chose.

Promises: the statement that settles an outcome merges its names, so lanes of one run that settle at the same moment keep
each other's; a name that an outcome does not mention stays; the object has at most `MOST_REMEMBERED` characters; reading a
damaged one gives None and never raises, and the next settle or `resume` replaces it.

An older hubqueue, from before revision 0006, may share the outbox (decision 0021). It reads and writes three columns, so
they are written here as well, and a value in one of them is the newest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Text, case, func, literal, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from hubqueue.domain.outcome import MOST_REMEMBERED
from hubqueue.outbox.database.schema import runs

# Since 2026-11-30. From 2027-06 on a revision may drop the columns: no such process is expected to be alive then.
_BEFORE_0006 = {"agent_id": runs.c.agent_id, "run": runs.c.remote_run, "file": runs.c.remote_file}
COLUMNS = (runs.c.remembered, *_BEFORE_0006.values())
"""What `read` needs of a run."""


class _merged(GenericFunction[str]):  # noqa: N801 - SQLAlchemy names a function after its class
    """A JSON object with the names of another one merged into it; only that other one where it is damaged."""

    type = Text()
    inherit_cache = True


@compiles(_merged, "sqlite")
def _patch(element: _merged, compiler: SQLCompiler, **options: Any) -> str:
    kept, news = (compiler.process(each, **options) for each in element.clauses)
    # json_valid accepts a BLOB too.
    return f"CASE WHEN typeof({kept}) = 'text' AND json_valid({kept}) THEN json_patch({kept}, {news}) ELSE {news} END"


@compiles(_merged, "postgresql")
def _concatenate(element: _merged, compiler: SQLCompiler, **options: Any) -> str:
    kept, news = (f"CAST({compiler.process(each, **options)} AS jsonb)" for each in element.clauses)
    return f"CAST(CASE jsonb_typeof({kept}) WHEN 'object' THEN {kept} || {news} ELSE {news} END AS text)"


def read(remembered: object, *before: object) -> Mapping[str, str | int] | None:
    """What is remembered, from the values of `COLUMNS`; None when it is damaged.

    A row that was written before revision 0006 has None for the first of them.
    """
    found = {} if remembered is None else _parsed(remembered)
    if not isinstance(found, dict):
        return None
    newest = {name: value for name, value in zip(_BEFORE_0006, before, strict=True) if isinstance(value, str)}
    return {name: value for name, value in (found | newest).items() if isinstance(value, str | int)}


def _parsed(text: object) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def written(remember: Mapping[str, str | int]) -> dict[ColumnElement[Any], Any]:
    """The values of an UPDATE of runs that adds these, where there is room for them."""
    merged = _merged(runs.c.remembered, literal(json.dumps(dict(remember)), Text()))
    fits = func.length(merged) <= literal_column(str(MOST_REMEMBERED))
    values: dict[ColumnElement[Any], Any] = {runs.c.remembered: case((fits, merged), else_=runs.c.remembered)}
    for name, column in _BEFORE_0006.items():
        if name in remember:
            value = remember[name]
            values[column] = value if isinstance(value, str) else None
    return values


def is_room(kept: Mapping[str, str | int], remember: Mapping[str, str | int]) -> bool:
    """Whether there is room for these in addition to what is kept already."""
    return len(json.dumps({**kept, **remember})) <= MOST_REMEMBERED


REPAIRED = _merged(runs.c.remembered, literal_column("'{}'"))
"""For an UPDATE of runs: what is remembered, or nothing where that is damaged."""
