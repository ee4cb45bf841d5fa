"""The connections to a database, and their transactions.

Promises: a writing transaction is durable when `write()` returns; writers never deadlock (every one begins
IMMEDIATE); readers never block a writer and never hold a snapshot; no handle is used across a fork.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from hubqueue.config.home import READ_ONLY
from hubqueue.domain.errors import ConfigError, OutboxError, OutboxLocked, OutboxUnavailable
from hubqueue.outbox.database import forks, sqlite
from hubqueue.outbox.database.address import Address
from hubqueue.outbox.database.errors import translate
from hubqueue.outbox.database.files import readonly, replacement
from hubqueue.outbox.database.patience import alone, seconds_for, waited
from hubqueue.outbox.database.schema import DamagedNumber
from hubqueue.outbox.database.turns import Turns

# A connection with this option begins and ends its transactions itself, without SQLAlchemy.
_HELD = "hubqueue_held"


class Transactions:
    """The connections to one database, for all threads of this process."""

    def __init__(
        self,
        where: str | Path,
        *,
        driver: str,
        patience: timedelta,
        courtesy: timedelta,
        network: bool,
        read_only: bool = False,
    ) -> None:
        self.read_only = read_only
        self._url, self.path = (None, where) if isinstance(where, Path) else _read_url(where)
        self.backend = "sqlite" if self._url is None else self._url.get_backend_name()
        self._address = Address(str(where) if self.path is None else self.path)
        self._patience, self._courtesy = patience.total_seconds(), courtesy.total_seconds()
        self._driver = sqlite.load_driver(driver) if self.path else None
        version = getattr(self._driver, "sqlite_version_info", ())
        self._journal, self._synchronous = sqlite.journal_for(tuple(version), network=network)
        self._network = network
        self._logs = replacement.logs(self.path) if self.path else ()
        self._turns: Turns | None = None
        self._engine: Engine
        self._free_at: float
        self._writing: bool
        self._arm()
        # The driver's own errors too: SQLAlchemy does not wrap those of prepared statements and of our BEGIN.
        self._errors = (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error)
        self._foreign = (*self._errors, UnicodeDecodeError, DamagedNumber)
        forks.watch(self)

    @contextmanager
    def write(self, within: Connection | None = None) -> Iterator[Connection]:
        """A writing transaction: durable at the end, rolled back by an exception.

        With `within`, the caller's open transaction is used, and the caller commits it.
        """
        if within is not None:
            yield within
            return
        if self.read_only:
            raise OutboxUnavailable(f"the outbox {self.path} is read-only", hint=READ_ONLY)
        if not self.path:
            with self._translated(), self._engine.connect() as connection:
                committing = False
                try:
                    with connection.begin():
                        if (seconds := self._patience_now()) < self._patience:
                            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_milliseconds(seconds)}")
                        yield connection
                        committing = True
                    waited(self._lock_of(False), in_vain=False)
                except self._errors as error:
                    connection.invalidate()  # its state is unknown; the next caller gets a new one
                    self._translate(error, unsure=committing)
            return
        with alone(self._lock):
            if self._courtesy:
                self._pause.wait(max(0.0, self._free_at - time.monotonic()))
            if self._writing:
                # A signal handler interrupted this thread in a write: the handler has to save later.
                raise OutboxUnavailable(
                    "a write of this thread is under way", hint="save it again a moment later"
                )
            self._writing, committing = True, False
            try:
                connection = self._held(reading=False)
                handle = driven(connection)
                try:
                    sqlite.begin_immediate(handle, patience=self._patience_now(), turns=self._turns)
                    waited(self._lock_of(False), in_vain=False)
                    yield connection
                    committing = True
                    handle.commit()
                except BaseException:
                    self._roll_back(handle)
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
        with alone(self._reading_lock), self._translated(reading=True):
            try:
                yield self._held(reading=True)
                waited(self._lock_of(True), in_vain=False)
            except self._errors:
                self._drop(reading=True)
                raise

    def close(self) -> None:
        """Close every handle. The next use opens the database again."""
        if sys.is_finalizing():
            return  # a thread that is frozen for good may hold a lock; the system closes the files
        with self._lock, self._reading_lock:
            apart = self.path is not None and self._lost_log() and not self._save_log()
            with replacement.log_kept(self.path) if apart and self.path else nullcontext():
                self._drop(reading=False)
                self._drop(reading=True)
                self._engine.dispose()

    # Connections.

    def _arm(self) -> None:
        """Create everything that a fork makes unusable."""
        self._lock, self._reading_lock = threading.RLock(), threading.RLock()
        self._pause = threading.Event()
        self._free_at = 0.0
        self._writing = False
        self._connections: dict[bool, Connection] = {}
        self._sides: replacement.Sides | None = None
        self._busy_timeouts: dict[bool, float] = {}
        self._engine = self._make_engine()

    def _make_engine(self) -> Engine:
        if self._url is not None:
            arguments: dict[str, Any] = {"connect_timeout": 10}
            engine = create_engine(
                self._url, hide_parameters=True, pool_pre_ping=True, connect_args=arguments
            )
            event.listen(engine, "connect", self._limit_waits)
            return engine
        # This class keeps the connections, not a pool.
        options: dict[str, Any] = {"creator": self._connect, "poolclass": NullPool, "module": self._driver}
        engine = create_engine("sqlite://", hide_parameters=True, **options)
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "begin", self._on_begin)
        return engine

    def _connect(self) -> Any:
        """A new connection to the file. SQLite must not make a missing one: it would be empty, and readable by others."""
        assert self.path is not None and self._driver is not None
        # With isolation_level None the driver sends no BEGIN.
        options: dict[str, Any] = {"isolation_level": None, "check_same_thread": False}
        if self.read_only:
            return readonly.connect(self.path, self._driver, **options)
        return self._driver.connect(sqlite.uri_of(self.path, "mode=rw"), uri=True, **options)

    def _on_connect(self, connection: Any, _record: object) -> None:
        timeout = min(self._patience_now(), self._patience_now(reading=True))
        if self.read_only:
            sqlite.configure_reading(connection, busy_timeout=timeout)
            return
        sqlite.configure(
            connection, journal=self._journal, synchronous=self._synchronous, busy_timeout=timeout
        )

    def _limit_waits(self, connection: Any, _record: object) -> None:
        """A server waits for a lock for ever, unless it has a limit."""
        connection.execute(f"SET lock_timeout = {_milliseconds(self._patience)}")
        connection.commit()

    def _on_begin(self, connection: Connection) -> None:
        if not connection.get_execution_options().get(_HELD):
            sqlite.begin_immediate(driven(connection), patience=self._patience_now(), turns=self._turns)

    def _patience_now(self, *, reading: bool = False) -> float:
        # No training waits for a worker: it can wait long each time.
        return self._patience if self._courtesy else seconds_for(self._lock_of(reading), self._patience)

    def _lock_of(self, reading: bool) -> tuple[object, bool]:
        return self.path or self._address.shown, reading

    def _held(self, *, reading: bool) -> Connection:
        assert self.path is not None
        if reading not in self._connections:
            connection = self._engine.connect().execution_options(**{_HELD: True})
            if not reading and not self._network:
                # On a network file system, requests would carry the clocks of several machines.
                self._turns = Turns(self.path.with_name(self.path.name + "-turn"))
            if self._journal == "wal" and not (self._connections or self.read_only):
                driven(connection).execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()  # opens the log
                self._sides = replacement.sides(self._logs)
            self._connections[reading] = connection
        held = self._connections[reading]
        # A write waits in `sqlite.begin_immediate` only: SQLite's busy handler is not fair.
        timeout = self._patience_now(reading=reading) if reading or self._journal != "wal" else 0.0
        if self._busy_timeouts.get(reading) != timeout:
            driven(held).execute(f"PRAGMA busy_timeout = {int(timeout * 1000)}")
            self._busy_timeouts[reading] = timeout
        if held.in_transaction():
            held.commit()  # for SQLAlchemy's bookkeeping only: SQLite is in autocommit mode here
        return held

    def _lost_log(self) -> bool:
        """Whether the files of the write-ahead log are not those that the connections have open."""
        is_open = self._sides is not None and bool(self._connections)
        return is_open and self._sides != replacement.sides(self._logs)

    def _save_log(self) -> bool:
        """Copy a write-ahead log that was deleted into the database; False when that is not possible."""
        assert self.path is not None
        with suppress(*self._errors, OSError):
            return replacement.write_log_back(driven(next(iter(self._connections.values()))), self.path)
        return False

    def _drop(self, *, reading: bool) -> None:
        """Close a held connection after an error, so that the next use opens a new one.

        Only the one that the caller holds the lock of: another thread may be using the other one.
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

    def _roll_back(self, handle: Any) -> None:
        try:
            handle.rollback()
        except self._errors:
            self._drop(reading=False)  # the first error is the one to raise

    def locks(self) -> tuple[threading.RLock, ...]:
        """The locks that a thread of this process holds while it uses the database."""
        return self._lock, self._reading_lock

    def after_fork(self) -> None:
        # Closing an inherited SQLite handle in the child would touch the parent's files: keep it open, unused.
        _INHERITED.append((self._engine, self._connections))
        self._leave_turns()
        self._arm()

    @contextmanager
    def _translated(self, *, reading: bool = False) -> Iterator[None]:
        """Raise database errors as hubqueue's own."""
        try:
            yield
        except self._foreign as error:
            self._translate(error, reading=reading)

    def _translate(self, error: BaseException, *, unsure: bool = False, reading: bool = False) -> NoReturn:
        self._address.scrub(error)
        try:
            translate(error, self.path or self._address.shown, in_file=self.path is not None)
        except OutboxError as translated:
            translated.unsure = unsure
            if isinstance(translated, OutboxLocked):
                waited(self._lock_of(reading), in_vain=True)
            raise


def _read_url(url: str) -> tuple[URL | None, Path | None]:
    """The URL of a server, or the path of a SQLite file, by `outbox.url`. Raises `ConfigError`."""
    hint = "sqlite:////ABSOLUTE/PATH or postgresql+psycopg://HOST/NAME"
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except SQLAlchemyError:
        raise ConfigError(("outbox.url is not a database URL",), hint=hint) from None
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError((f"outbox.url: {backend} is not supported",), hint=hint)
    if backend == "postgresql":
        return parsed, None
    path = Path(url.partition("://")[2].removeprefix("/"))
    return None, path


def driven(connection: Connection) -> Any:
    """The driver's own connection. A statement on it begins no transaction; through SQLAlchemy it would."""
    return connection.connection.driver_connection


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))  # 0 would be without a limit


_INHERITED: list[object] = []
