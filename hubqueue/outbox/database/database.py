"""The engine room's door to the database: transactions, and the time that lives in it.

Promises: a writing transaction is durable when `write()` returns; writers never deadlock (every one begins
IMMEDIATE); readers never block a writer and never hold a snapshot; no handle is used across a fork. Refuses a
file that is not hubqueue's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    event,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from hubqueue.domain.clock import Clock, SystemClock
from hubqueue.domain.errors import ConfigError, OutboxError, OutboxUnavailable
from hubqueue.outbox.database import forks, migration, origin, sqlite
from hubqueue.outbox.database.address import Address
from hubqueue.outbox.database.errors import translate
from hubqueue.outbox.database.patience import alone, limit
from hubqueue.outbox.database.schema import (
    REVISION,
    DamagedNumber,
    about,
    metadata,
    strangers,
)
from hubqueue.outbox.database.turns import Turns

# A connection that is held here begins and ends its transactions itself, past SQLAlchemy.
_HELD = "hubqueue_held"


class Database:
    """One outbox database, for all threads of this process.

    `url` is `sqlite:///path` or `postgresql+psycopg://…`. `patience` is how long a write waits for other
    writers. `courtesy` is a gap left after each own write, so that a worker which never pauses does not starve
    the training processes that share the file.
    """

    def __init__(
        self,
        url: str,
        *,
        driver: str = "auto",
        patience: timedelta = timedelta(seconds=5),
        courtesy: timedelta = timedelta(0),
        network: bool = False,
        clock: Clock | None = None,
    ) -> None:
        try:
            self._url = make_url(url)
            self.backend = self._url.get_backend_name()
        except SQLAlchemyError:
            raise ConfigError(
                ("outbox.url is not a database URL",), hint="sqlite:///PATH or postgresql+psycopg://HOST/NAME"
            ) from None
        if self.backend not in ("sqlite", "postgresql"):
            raise ConfigError(
                (f"outbox.url: {self.backend} is not supported",),
                hint="sqlite:///PATH or postgresql+psycopg://HOST/NAME",
            )
        self._address = Address(url)
        self.clock = clock or SystemClock()
        self.path = Path(self._url.database or "") if self.backend == "sqlite" else None
        self._patience, self._courtesy = patience.total_seconds(), courtesy.total_seconds()
        self._driver = sqlite.load_driver(driver) if self.path else None
        version = getattr(self._driver, "sqlite_version_info", ())
        self._journal, self._synchronous = sqlite.journal_for(tuple(version), network=network)
        self._file: tuple[int, int] | None = None
        self._network = network
        self._turns: Turns | None = None
        self._outbox_id: str | None = None
        self._boot_starts_at: datetime | None = None
        self._engine: Engine
        self._free_at: float
        self._writing: bool
        self._arm()
        # The driver's own too: prepared statements, and an event of SQLAlchemy such as our BEGIN, run past its wrapping.
        self._errors = (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error)
        self._foreign = (*self._errors, UnicodeDecodeError, DamagedNumber)
        forks.watch(self)

    def open(self, *, create: bool = True, lock: AbstractContextManager[object] | None = None) -> None:
        """Check the file, bring the schema up to date (under `lock`) and set the clock. Idempotent.

        Raises `OutboxUnavailable`, `OutboxDamaged`, `OutboxAlien` or `OutboxTooNew`.
        """
        if self.path and self._driver:
            sqlite.prepare_file(self.path, self._driver, create=create)
            self._file = sqlite.identity(self.path)
        with self.read() as connection:
            behind = migration.current_revision(connection) != REVISION
        if behind:
            # The lock comes first: waiting for it inside a transaction would stop the process that holds it.
            with lock or nullcontext(), self._translated(), self._engine.connect() as connection:
                migration.upgrade(connection)
        with self.read() as connection:
            self._outbox_id = connection.scalar(select(about.c.outbox_id))
            self._boot_starts_at = connection.scalar(origin.known_anchor(self.clock))
        if self._outbox_id is None or self._boot_starts_at is None:
            with self.write() as tx:
                self._outbox_id = origin.identify(tx)
                self._boot_starts_at = origin.anchor(tx, self.clock)

    @property
    def outbox_id(self) -> str:
        """Names this outbox among all: a random UUID, the namespace of its idempotency keys."""
        assert self._outbox_id is not None, "the database is not open"
        return self._outbox_id

    def now(self) -> datetime:
        """Steady UTC: the wall clock at the first sight of this boot, moved on by seconds that never jump.

        Every process of the boot agrees on it, and it never goes back from one boot to the next. All moments in
        the database are steady ones; `to_wall` turns them into what people's clocks say.
        """
        assert self._boot_starts_at is not None, "the database is not open"
        return self._boot_starts_at + timedelta(seconds=self.clock.elapsed())

    def to_wall(self, moment: datetime) -> datetime:
        """A steady moment in the terms of today's wall clock, so that "3 minutes ago" is right after a jump."""
        return moment + (self.clock.wall() - self.now())

    @contextmanager
    def write(self, within: Connection | None = None) -> Iterator[Connection]:
        """A writing transaction: durable at the end, rolled back by an exception; or a part of the one `within`."""
        if within is not None:
            yield within
            return
        if not self.path:
            with self._translated(), self._engine.connect() as connection:
                committing = False
                try:
                    with connection.begin():
                        yield connection
                        committing = True
                except self._errors as error:
                    connection.invalidate()  # whatever state it is in, the next one starts with a sound one
                    self._translate(error, unsure=committing)
            return
        with alone(self._lock):
            if self._courtesy:
                self._pause.wait(max(0.0, self._free_at - time.monotonic()))
            if self._writing:
                # A handler of a signal interrupts this very thread: what it saves has to wait for the next call.
                raise OutboxUnavailable(
                    "a write of this thread is under way", hint="save it again a moment later"
                )
            self._writing, committing = True, False
            try:
                connection = self._held(reading=False)
                driven = _driven(connection)
                try:
                    sqlite.begin_immediate(driven, patience=self._patience_now(), turns=self._turns)
                    yield connection
                    committing = True
                    driven.commit()
                except BaseException:
                    self._roll_back(driven)
                    raise
            except self._foreign as error:
                if isinstance(error, self._errors):
                    self._drop(reading=False)
                self._translate(error, unsure=committing)
            finally:
                self._writing = False
                self._free_at = time.monotonic() + self._courtesy

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading: each statement sees what was committed when it began."""
        if not self.path:
            with self._translated(), self._engine.connect() as connection:
                try:
                    yield connection.execution_options(isolation_level="AUTOCOMMIT")
                except self._errors:
                    connection.invalidate()
                    raise
            return
        with alone(self._reading_lock), self._translated():
            try:
                yield self._held(reading=True)
            except self._errors:
                self._drop(reading=True)
                raise

    def describe(self) -> dict[str, Any]:
        """What `status` shows of the database: url without secrets, version, journal, size in bytes."""
        with self.read() as connection:
            shown: dict[str, Any] = {"url": self._address.shown, "backend": self.backend}
            if self.path:
                levels = ("OFF", "NORMAL", "FULL", "EXTRA")
                shown["version"] = connection.scalar(text("SELECT sqlite_version()"))
                shown["journal_mode"] = connection.scalar(text("PRAGMA journal_mode"))
                shown["synchronous"] = levels[connection.scalar(text("PRAGMA synchronous")) or 0]
                sizes = (self.path.with_name(self.path.name + suffix) for suffix in ("", *sqlite.SIDE_FILES))
                shown["bytes"] = sum(each.stat().st_size for each in sizes if each.exists())
            else:
                shown["version"] = connection.scalar(text("SHOW server_version"))
                shown["journal_mode"] = "wal"
                shown["synchronous"] = connection.scalar(text("SHOW synchronous_commit"))
                shown["bytes"] = connection.scalar(text("SELECT pg_database_size(current_database())"))
            shown["revision"] = migration.current_revision(connection)
        return shown

    def version(self, within: Connection | None = None) -> int | None:
        """A number that changes whenever anybody commits, or anybody else, `within` a write; None where there is none."""
        if not self.path:
            return None
        with self.read() if within is None else nullcontext(within) as connection:
            found: int = _driven(connection).execute("PRAGMA data_version").fetchone()[0]
            return found

    def was_replaced(self) -> bool:
        """Whether another file stands where this one was opened (a damaged outbox was set aside)."""
        return self.path is not None and self._file != sqlite.identity(self.path)

    def integrity(self) -> str:
        """What SQLite's own check of tables, indexes and CHECKs says: "ok", or its first complaint."""
        with self.read() as connection:
            verdict = str(connection.scalar(text("PRAGMA integrity_check(1)")))
            if verdict == "ok":
                # The text that declares the tables may be damaged, too: then they are not those of this program.
                for table in metadata.sorted_tables:
                    connection.execute(table.select().limit(0))
                    for name, found in connection.execute(strangers(table)).mappings().one().items():
                        if found:
                            return f"a number in {table.name}.{name} is none"
            return verdict

    def close(self) -> None:
        """Close every handle. The database opens again by itself when it is used again."""
        with self._lock, self._reading_lock:
            self._drop(reading=False)
            self._drop(reading=True)
            self._engine.dispose()

    # Connections.

    def _arm(self) -> None:
        """Everything that a fork makes unusable, made new."""
        self._lock, self._reading_lock = threading.RLock(), threading.RLock()
        self._pause = threading.Event()
        self._free_at = 0.0
        self._writing = False
        self._connections: dict[bool, Connection] = {}
        self._busy_timeouts: dict[bool, float] = {}
        self._engine = self._make_engine()

    def _make_engine(self) -> Engine:
        create = partial(create_engine, self._url, hide_parameters=True)
        if not self.path:
            engine = create(pool_pre_ping=True, connect_args={"connect_timeout": 10})
        else:
            # The long-lived connections are held here, not in a pool; isolation_level None leaves BEGIN to us.
            arguments = {"isolation_level": None, "check_same_thread": False}
            engine = create(module=self._driver, poolclass=NullPool, connect_args=arguments)
            event.listen(engine, "connect", self._on_connect)
            event.listen(engine, "begin", self._on_begin)
        return engine

    def _on_connect(self, connection: Any, _record: object) -> None:
        patience = self._patience_now()
        sqlite.configure(
            connection, journal=self._journal, synchronous=self._synchronous, busy_timeout=patience
        )

    def _on_begin(self, connection: Connection) -> None:
        if not connection.get_execution_options().get(_HELD):
            sqlite.begin_immediate(_driven(connection), patience=self._patience_now(), turns=self._turns)

    def _patience_now(self) -> float:
        least = limit()
        return self._patience if least is None else min(self._patience, least)

    def _held(self, *, reading: bool) -> Connection:
        assert self.path is not None
        if reading not in self._connections:
            connection = self._engine.connect().execution_options(**{_HELD: True})
            if not reading and not self._network:
                # Over a network the clocks of several machines would meet in it.
                self._turns = Turns(self.path.with_name(self.path.name + "-turn"))
            self._connections[reading] = connection
        held = self._connections[reading]
        # Ours is the only waiting for a write (see `sqlite.begin_immediate`): SQLite's own is not fair.
        timeout = self._patience_now() if reading or self._journal != "wal" else 0.0
        if self._busy_timeouts.get(reading) != timeout:
            _driven(held).execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
            self._busy_timeouts[reading] = timeout
        if held.in_transaction():
            held.commit()  # SQLAlchemy's own bookkeeping; SQLite itself is in autocommit here
        return held

    def _drop(self, *, reading: bool) -> None:
        """Forget a held connection after an error, so that the next use starts with a sound one.

        Only the caller's own: another thread may be in the middle of the other one.
        """
        if not reading:
            self._leave_turns()
        connection = self._connections.pop(reading, None)
        self._busy_timeouts.pop(reading, None)
        if connection is not None:
            try:
                connection.close()
            except SQLAlchemyError:
                connection.invalidate()

    def _leave_turns(self) -> None:
        if self._turns is not None:
            self._turns.close()
            self._turns = None

    def _roll_back(self, driven: Any) -> None:
        try:
            driven.rollback()
        except self._errors:
            self._drop(reading=False)  # what went wrong first is told

    def locks(self) -> tuple[threading.RLock, ...]:
        """What is held while a thread of this process is inside the database."""
        return self._lock, self._reading_lock

    def after_fork(self) -> None:
        # Closing an inherited SQLite handle in the child would touch the parent's files: keep it, unused.
        _INHERITED.append((self._engine, self._connections))
        self._leave_turns()
        self._arm()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Database errors leave this file as hubqueue's own."""
        try:
            yield
        except self._foreign as error:
            self._translate(error)

    def _translate(self, error: BaseException, *, unsure: bool = False) -> NoReturn:
        self._address.scrub(error)
        try:
            translate(error, self.path or self._address.shown, in_file=self.path is not None)
        except OutboxError as translated:
            translated.unsure = unsure
            raise


def _driven(connection: Connection) -> Any:
    """The driver's own connection, for what must not begin a transaction, as SQLAlchemy would."""
    return connection.connection.driver_connection


_INHERITED: list[object] = []
