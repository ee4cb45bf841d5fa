"""One outbox database: its transactions, its schema, its identity and its steady time.

Refuses a file that is not hubqueue's.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, text

from hubqueue.domain.clock import Clock, SystemClock
from hubqueue.domain.errors import OutboxUnavailable
from hubqueue.outbox.database import migration, origin, sqlite
from hubqueue.outbox.database.files import replacement
from hubqueue.outbox.database.files.replacement import Fate
from hubqueue.outbox.database.schema import REVISION, about, invalid_numbers, metadata
from hubqueue.outbox.database.transactions import Transactions, driven


class Database(Transactions):
    """One outbox database, for all threads of this process.

    `where` is the path of a SQLite file, or `sqlite:////path` or `postgresql+psycopg://…`. `patience` is how long a write waits for other
    writers. `courtesy` is a gap after each own write, so that a busy worker does not starve the training
    processes that share the file. `network` says that the file is on a network file system. A `read_only` file is neither
    changed nor upgraded, and nothing is written beside it.
    """

    def __init__(
        self,
        where: str | Path,
        *,
        driver: str = "auto",
        patience: timedelta = timedelta(seconds=5),
        courtesy: timedelta = timedelta(0),
        network: bool = False,
        read_only: bool = False,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(
            where, driver=driver, patience=patience, courtesy=courtesy, network=network, read_only=read_only
        )
        self.clock = clock or SystemClock()
        self._file: tuple[int, int] | None = None
        self._outbox_id: str | None = None
        self._boot_starts_at: datetime | None = None

    def open(self, *, create: bool = True, lock: AbstractContextManager[object] | None = None) -> None:
        """Check the file, bring the schema up to date (under `lock`) and set the clock. Idempotent.

        Raises `OutboxUnavailable`, `OutboxDamaged`, `OutboxAlien` or `OutboxTooNew`.
        """
        if self.path and self._driver:
            sqlite.prepare_file(self.path, self._driver, create=create and not self.read_only)
            self._file = sqlite.identity(self.path)
        with self.read() as connection:
            revision = migration.current_revision(connection)
        if self.read_only and revision != REVISION:
            raise OutboxUnavailable(
                f"the outbox {self.path} is read-only and has revision {revision}, not {REVISION}",
                hint="make the home writable and upgrade it (hubqueue migrate), or read it with the hubqueue that wrote it",
            )
        if revision != REVISION:
            # The lock comes first: waiting for it inside a transaction would block the process that holds it.
            with lock or nullcontext(), self._translated(), self._engine.connect() as connection:
                migration.upgrade(connection)
        with self.read() as connection:
            self._outbox_id = connection.scalar(select(about.c.outbox_id))
            self._boot_starts_at = connection.scalar(origin.known_anchor(self.clock))
            if self.read_only:
                self._outbox_id = self._outbox_id or ""
                self._boot_starts_at = self._boot_starts_at or origin.new_anchor(connection, self.clock)
        if self._outbox_id is None or self._boot_starts_at is None:
            with self.write() as tx:
                self._outbox_id = origin.identify(tx)
                self._boot_starts_at = origin.anchor(tx, self.clock)

    @property
    def outbox_id(self) -> str:
        """A random UUID that identifies this outbox. It is the namespace of its idempotency keys."""
        assert self._outbox_id is not None, "the database is not open"
        return self._outbox_id

    def now(self) -> datetime:
        """Steady UTC: the wall clock when this boot was first seen, plus the monotonic seconds since.

        All processes of a boot have the same steady time, and a later boot never starts earlier. All moments in
        the database are steady; `to_wall` converts them to the wall clock.
        """
        assert self._boot_starts_at is not None, "the database is not open"
        return self._boot_starts_at + timedelta(seconds=self.clock.elapsed())

    def to_wall(self, moment: datetime) -> datetime:
        """A steady moment on today's wall clock, so that "3 minutes ago" stays right after a clock jump."""
        return moment + (self.clock.wall() - self.now())

    def describe(self) -> dict[str, Any]:
        """The database for `status`: URL without secrets, version, journal, size in bytes."""
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
            shown["read_only"] = self.read_only
            shown["revision"] = migration.current_revision(connection)
        return shown

    def version(self, within: Connection | None = None) -> int | None:
        """A number that changes with every commit of another connection; None for PostgreSQL.

        On the reading connection own writes count too; on that of a write, given as `within`, only those of others.
        """
        if not self.path:
            return None
        with self.read() if within is None else nullcontext(within) as connection:
            found: int = driven(connection).execute("PRAGMA data_version").fetchone()[0]
            return found

    def was_replaced(self) -> bool:
        """Whether the path now leads to another file than the opened one, or to none, or its log was deleted."""
        return self.path is not None and (self._file != sqlite.identity(self.path) or self._lost_log())

    def was_set_aside(self) -> bool:
        """Whether the opened file was renamed because it is damaged."""
        return self.path is not None and self._file in map(sqlite.identity, sqlite.asides(self.path))

    def let_go(self, lock: AbstractContextManager[object]) -> Fate:
        """Close a file that was replaced, after saving what only the open handles reach, under `lock`.

        A deleted or moved file is written again, a deleted log is copied into the database. Raises `OutboxUnavailable`.
        """
        assert self.path is not None and self._driver is not None
        fate, same = Fate.REPLACED, self._file == sqlite.identity(self.path)
        with self._lock, self._reading_lock:
            handles = [] if self._writing else [driven(each) for each in self._connections.values()]
            if handles and same and self._lost_log():
                fate = Fate.LOG_SAVED if self._save_log() else Fate.LOG_LOST
            elif handles and not self.path.exists():
                with suppress(*self._errors, OSError), lock:
                    if replacement.write_again(handles[0], self.path, self._driver):
                        fate = Fate.WRITTEN_AGAIN
            self.close()
        return fate

    def integrity(self) -> str:
        """The result of SQLite's check of tables, indexes and CHECKs: "ok", or the first problem."""
        with self.read() as connection:
            verdict = str(connection.scalar(text("PRAGMA integrity_check(1)")))
            if verdict == "ok":
                # The stored CREATE TABLE text may be damaged too: then the columns differ from the declared ones.
                for table in metadata.sorted_tables:
                    connection.execute(table.select().limit(0))
                    for name, found in connection.execute(invalid_numbers(table)).mappings().one().items():
                        if found:
                            return f"invalid number in {table.name}.{name}"
            return verdict
