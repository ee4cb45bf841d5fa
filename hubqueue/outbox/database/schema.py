"""The tables of the outbox, declared once. A test compares them with what the migrations create.

Moments are integers, microseconds of steady UTC (see `Database.now`); 0 means "long ago", so that deadlines
compare without NULLs. The statement that moves an entry also updates the counters of its lane. A CHECK refuses
a transaction after which they do not add up.

The partial indexes are declared for SQLite only, because naming PostgreSQL here would load its dialect with
every `hubqueue status`; the migrations create them on both.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Dialect,
    Executable,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    and_,
    func,
    or_,
    select,
    text,
    type_coerce,
)

from hubqueue.domain.lifecycle import RunState, State

# The newest revision in migrations/versions; a test keeps the two together.
REVISION = "0008"
# Says whose database this is ("hubq" in ASCII), so that another program's file is never touched.
APPLICATION_ID = 0x68756271

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Moment(TypeDecorator[datetime]):
    """An aware UTC datetime, stored as integer microseconds."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - EPOCH) // _MICROSECOND

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else moment_of(value)


def moment_of(microseconds: int) -> datetime:
    """The moment of a stored number of microseconds. Raises `DamagedNumber`."""
    try:
        return EPOCH + timedelta(microseconds=microseconds)
    except (OverflowError, TypeError) as error:
        raise DamagedNumber("invalid timestamp") from error


class DamagedNumber(ValueError):
    """A stored value is not a valid number or moment."""


def invalid_numbers(table: Table) -> Executable:
    """Which columns have invalid numbers or moments (in SQLite, whose columns accept any type)."""
    columns = [column for column in table.columns if isinstance(column.type, Integer | Moment)]
    return select(*[func.max(_is_invalid(column)).label(column.name) for column in columns])


def _is_invalid(column: Column[Any]) -> ColumnElement[bool]:
    wrong = func.typeof(column) != "integer"
    if isinstance(column.type, Moment):
        latest = (datetime.max.replace(tzinfo=UTC) - EPOCH) // _MICROSECOND
        value = type_coerce(column, BigInteger)
        wrong = or_(wrong, value < 0, value > latest)
    return and_(column.is_not(None), wrong)


_Id = BigInteger().with_variant(Integer, "sqlite")
_ZERO = text("0")


def _counter(name: str) -> Column[Any]:
    return Column(name, BigInteger, nullable=False, server_default=_ZERO)


def _deadline(name: str) -> Column[Any]:
    return Column(name, Moment, nullable=False, server_default=_ZERO)


def _one_of(column: str, values: type[State | RunState]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

about = Table(
    "about",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("outbox_id", Text, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

# For every boot of a machine: the moment to add its elapsed seconds to, for steady UTC.
boots = Table(
    "boots",
    metadata,
    Column("boot_id", Text, primary_key=True),
    Column("starts_at", Moment, nullable=False),
)

# A row for each destination, address and account that a run was started for (see addresses.py).
destinations = Table(
    "destinations",
    metadata,
    Column("name", Text, primary_key=True),
    # Its name in the configuration.
    Column("label", Text, nullable=False, server_default=text("''")),
    # A salted hash of the key; NULL where a run was started without one.
    Column("account", Text),
    Column("type", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("held", Text),
    Column("held_at", Moment),
    _deadline("resumes_at"),
    # Budgets before revision 0006 (see `budgets`). An older worker may still run, and stops forever without them.
    _deadline("requests_free_at"),
    _deadline("uploads_free_at"),
)
# The next probe of a hold (see moves/holds.py). An older worker does not read this column while there is a hold.
PROBES_AT = destinations.c.requests_free_at
# The moment by which all lanes are back after the wait that ends at `resumes_at` (see moves/readiness.py). For an older
# worker no checkpoint is due until then.
RETURNED_BY = destinations.c.uploads_free_at

# The moment from which a limit of a destination has room again (see budget.py); a limit without a row has room. There is
# no foreign key: to add one, an upgrade would wait for workers that update `destinations`, and they for the upgrade.
budgets = Table(
    "budgets",
    metadata,
    Column("destination", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("free_at", Moment, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("destination", Text, ForeignKey("destinations.name"), nullable=False),
    Column("model", Text, nullable=False),
    Column("remote_id", Text),
    Column("url", Text),
    # For workers from before revision 0006 only: see moves/remembered.py.
    Column("agent_id", Text),
    Column("remote_run", Text),
    Column("remote_file", Text),
    Column("state", Text, nullable=False),
    Column("cancelled", Boolean, nullable=False, server_default=text("false")),
    Column("held", Text),
    Column("created_at", Moment, nullable=False),
    Column("finished_at", Moment),
    Column("last_beat_at", Moment),
    # How many metrics and checkpoints could not be saved, and the reason for the last of them.
    _counter("unsaved"),
    Column("unsaved_why", Text),
    # A JSON object that belongs to the destination (see moves/remembered.py).
    Column("remembered", Text, nullable=False, server_default=text("'{}'")),
    # The name that the training gave it.
    Column("name", Text),
    # A training at several destinations has a run at each of them: the id of the first one, NULL for a run alone.
    Column("together", Text),
    CheckConstraint(_one_of("state", RunState), name="state"),
    Index("runs_remote", "destination", "remote_id"),
    Index("runs_together", "together", sqlite_where=text("together IS NOT NULL")),
    Index(
        "runs_running",
        "id",
        sqlite_where=text("state = 'running'"),
    ),
)

lanes = Table(
    "lanes",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("run_id", Text, ForeignKey("runs.id"), nullable=False),
    # No CHECK on the kind: a newer hubqueue may know more kinds, and this one ignores those lanes.
    Column("kind", Text, nullable=False),
    # Accounting.
    _counter("enqueued"),
    _counter("pending"),
    _counter("delivered"),
    _counter("dead"),
    _counter("superseded"),
    _counter("cancelled"),
    _counter("bytes"),
    # Pacing: `paced_until` keeps the spacing of request starts, `retry_at` the backoff and the wait that the hub asks for.
    _deadline("paced_until"),
    _deadline("retry_at"),
    _counter("failures"),
    _counter("attempts"),
    Column("last_error", Text),
    # The lease. Free when `lease_until` has passed.
    _counter("lease_token"),
    _deadline("lease_until"),
    Column("lease_worker", Text),
    # Whether `pending` is more than 0. The database writes it, and only when that changes, so that an enqueue does not
    # rewrite its index.
    Column("owing", Boolean, nullable=False, server_default=text("false")),
    Index("lanes_run_kind", "run_id", "kind", unique=True),
    Index("lanes_owing", "id", sqlite_where=text("owing = true")),
    CheckConstraint(
        "enqueued = pending + delivered + dead + superseded + cancelled "
        "AND pending >= 0 AND delivered >= 0 AND dead >= 0 AND superseded >= 0 AND cancelled >= 0 AND bytes >= 0",
        name="accounted",
    ),
)

_WAITING = text("state = 'pending'")
_TRIED = text("state = 'pending' AND batch IS NOT NULL")
_SETTLED = text("state IN ('delivered', 'superseded', 'cancelled')")
_DEAD = text("state = 'dead'")
_DELIVERED = text("state = 'delivered'")

entries = Table(
    "entries",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("lane_id", _Id, ForeignKey("lanes.id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("rank", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("final", Boolean, nullable=False),
    Column("snapshot", Text),
    Column("snapshot_size", BigInteger),
    Column("snapshot_mtime_ns", BigInteger),
    Column("snapshot_sha256", Text),
    # The batch in which this entry was first sent: a retry sends the same batch, so that its bytes stay the same.
    Column("batch", BigInteger),
    # How far the upload came, in a format of the transport: the next attempt continues there.
    Column("progress", Text),
    # CRC-32 of key and payload (see plain.py); NULL where an older hubqueue wrote the entry.
    Column("checksum", BigInteger),
    Column("claim_token", BigInteger, nullable=False, server_default=_ZERO),
    Column("attempts", Integer, nullable=False, server_default=_ZERO),
    Column("reason", Text),
    Column("enqueued_at", Moment, nullable=False),
    Column("settled_at", Moment),
    CheckConstraint(_one_of("state", State), name="state"),
    # The indexes of enqueue and claim leave out the finished entries.
    Index(
        "entries_waiting",
        "lane_id",
        "rank",
        "id",
        "enqueued_at",
        sqlite_where=_WAITING,
    ),
    Index("entries_tried", "lane_id", "batch", sqlite_where=_TRIED),
    Index("entries_settled", "settled_at", sqlite_where=_SETTLED),
    # Finds what the hub has under a key. A settle pays for it, not an enqueue.
    Index("entries_delivered", "lane_id", "rank", "id", sqlite_where=_DELIVERED),
    Index("entries_dead", "lane_id", "key", sqlite_where=_DEAD),
    Index(
        "entries_snapshot",
        "snapshot",
        sqlite_where=text("snapshot IS NOT NULL"),
    ),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("lane_id", _Id, ForeignKey("lanes.id"), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("worker", Text, nullable=False),
    Column("entries", Integer, nullable=False),
    Column("first_key", Text),
    Column("last_key", Text),
    Column("size", BigInteger, nullable=False),
    Column("claimed_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("ended_at", Moment),
    Column("outcome", Text),
    Column("reason", Text),
    Index("attempts_lane_token", "lane_id", "token"),
    Index("attempts_ended", "ended_at"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pid", Integer, nullable=False),
    Column("host", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("seen_at", Moment, nullable=False),
)
