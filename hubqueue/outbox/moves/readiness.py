"""When a lane may send: one expression, used by the claim and shown by the status."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from hubqueue.domain.budget import COSTS
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.database.schema import (
    PROBES_AT,
    RETURNED_BY,
    Moment,
    budgets,
    destinations,
    entries,
    lanes,
    runs,
)


class latest(GenericFunction[Any]):  # noqa: N801 - SQLAlchemy names a function after its class
    """The greatest of several moments in one row: `max` to SQLite, `greatest` to PostgreSQL."""

    type = Moment()
    inherit_cache = True


@compiles(latest)
def _greatest(element: latest, compiler: SQLCompiler, **options: Any) -> str:
    return f"greatest({compiler.process(element.clauses, **options)})"


@compiles(latest, "sqlite")
def _max(element: latest, compiler: SQLCompiler, **options: Any) -> str:
    return f"max({compiler.process(element.clauses, **options)})"


# All are literals, not parameters: SQLite uses a partial index only where the statement contains its condition, and it
# plans a statement with a parameter there again at each use.
OWING = lanes.c.owing == literal_column("true")
WAITING = entries.c.state == literal_column("'pending'")
# The entries of a lane that wait and have been sent before. `lane` is a parameter.
TRIED = and_(entries.c.lane_id == bindparam("lane"), WAITING, entries.c.batch.is_not(None))

_PHASES, _GOLDEN = 1024, 633

_others = lanes.alias("others")
_FINAL_WAITS = and_(
    lanes.c.kind == literal_column(f"'{Kind.CKPT}'"),
    exists().where(entries.c.lane_id == lanes.c.id, WAITING, entries.c.final.is_(True)),
)


def _among(kinds: Collection[Kind]) -> ColumnElement[bool]:
    return lanes.c.kind.in_([literal_column(f"'{kind}'") for kind in sorted(kinds)])


def _free_at(kinds: Collection[Kind], destination: ColumnElement[Any]) -> Iterator[ColumnElement[Any]]:
    """For each limit that a claim of one of these kinds uses: the moment from which it has room."""
    for name, counts in COSTS.items():
        which = and_(budgets.c.destination == destination, budgets.c.name == literal_column(f"'{name}'"))
        row = select(budgets.c.free_at).where(which).correlate(destinations).scalar_subquery()
        free_at = func.coalesce(row, literal_column("0"))
        if counts.keys() >= set(kinds):
            yield free_at
        elif counts.keys() & set(kinds):
            yield case((_among(counts.keys() & set(kinds)), free_at), else_=literal_column("0"))


def _number(value: int) -> ColumnElement[int]:
    return literal_column(str(value), BigInteger())


def _returns_at() -> ColumnElement[int]:
    """When a lane may send after a wait that all lanes share: from its end until `RETURNED_BY`, each at its own moment.

    Nothing is stored for a lane, so that a lane that owes nothing during the wait, or does not exist yet, has its moment
    too. The last digits of the end are random: each wait has another order.
    """
    ends, by = (type_coerce(each, BigInteger) for each in (destinations.c.resumes_at, RETURNED_BY))
    # Multiples of the golden ratio: the lanes of neighbouring ids are far from each other.
    phase = (lanes.c.id % _number(_PHASES) * _number(_GOLDEN) + ends) % _number(_PHASES)
    spread = (by - ends) // _number(_PHASES) * phase
    return case((by > ends, ends + spread), else_=ends)


def _due_at(kinds: Collection[Kind], destination: ColumnElement[Any]) -> ColumnElement[Any]:
    spaced: ColumnElement[Any] = lanes.c.paced_until
    if Kind.CKPT in kinds:
        # A final checkpoint ignores the spacing of its lane, never the backoff or a wait that the hub asks for.
        spaced = case((_FINAL_WAITS, literal_column("0")), else_=spaced)
    probed = case((destinations.c.held.is_not(None), PROBES_AT), else_=literal_column("0"))
    # Heartbeats are short, and a hub may take a run for dead without them.
    resumes = destinations.c.resumes_at if set(kinds) == {Kind.HEARTBEAT} else _returns_at()
    waits = (lanes.c.lease_until, lanes.c.retry_at, spaced, resumes, probed)
    return latest(*waits, *_free_at(kinds, destination))


DUE_AT = _due_at(set(Kind) - {Kind.HEARTBEAT}, destinations.c.name)
BEAT_DUE_AT = _due_at({Kind.HEARTBEAT}, destinations.c.name)

NOT_HELD = and_(runs.c.held.is_(None), destinations.c.held.is_(None))
# A lane that has met the reason of a hold probes it when it is due (see holds.py).
_SENDS = and_(
    or_(runs.c.held.is_(None), lanes.c.last_error == runs.c.held),
    or_(destinations.c.held.is_(None), lanes.c.last_error == destinations.c.held),
)
# Registration first, completion last. Some hubs need a new registration when a run continues, with its model known.
_REGISTERED = and_(
    runs.c.remote_id.is_not(None),
    ~exists().where(
        _others.c.run_id == lanes.c.run_id,
        _others.c.kind == literal_column(f"'{Kind.REGISTRATION}'"),
        _others.c.pending > literal_column("0"),
    ),
)
IN_TURN = and_(
    or_(lanes.c.kind == literal_column(f"'{Kind.REGISTRATION}'"), _REGISTERED),
    or_(
        lanes.c.kind != literal_column(f"'{Kind.COMPLETION}'"),
        ~exists().where(
            _others.c.run_id == lanes.c.run_id,
            _others.c.kind != literal_column(f"'{Kind.COMPLETION}'"),
            _others.c.pending > literal_column("0"),
        ),
    ),
)
READY = and_(OWING, _SENDS, IN_TURN)
BEATING = and_(
    lanes.c.kind == literal_column(f"'{Kind.HEARTBEAT}'"),
    runs.c.state == literal_column(f"'{RunState.RUNNING}'"),
    _REGISTERED,
    _SENDS,
)

# Written so that no index can be used: SQLite would scan all runs of a destination, thousands of idle ones among them,
# instead of only those of the few lanes that owe something.
_ITS_DESTINATION = runs.c.destination.concat(literal_column("''")) == destinations.c.name
LANES_OF_RUNS = lanes.join(runs, lanes.c.run_id == runs.c.id).join(destinations, _ITS_DESTINATION)


def due_among(kinds: tuple[Kind, ...]) -> tuple[ColumnElement[bool], ColumnElement[Any]]:
    """Whether a lane of these kinds may send once it is due, and when it is due. `destination` is a parameter.

    Heartbeats are queried separately.
    """
    ready = BEATING if kinds == (Kind.HEARTBEAT,) else READY
    # A parameter, not the column: the budgets are read once, and not once a lane.
    destination = bindparam("destination", type_=Text())
    return and_(ready, destinations.c.name == destination, _among(kinds)), _due_at(kinds, destination)
