"""How a SQLite outbox is opened so that every committed write survives a power cut.

Which journal is safe depends on the library: from 3.51.3 on write-ahead logging with synchronous = FULL; before
that the WAL-reset bug can corrupt a database that two connections write, so a rollback journal with
synchronous = EXTRA is used (FULL alone loses the last commit when the folder entry of the journal comes back).
Network file systems have no shared memory for a WAL and get the rollback journal too. The settings are made on
every connection and read back: a connection that did not accept them is refused.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from hubqueue.config.filesystem.ownership import open_plain, read_small
from hubqueue.domain.errors import OutboxAlien, OutboxDamaged, OutboxUnavailable
from hubqueue.outbox.database.schema import APPLICATION_ID
from hubqueue.outbox.database.turns import Turns

_MAGIC = b"SQLite format 3\x00"
_WAL_IS_SAFE_FROM = (3, 51, 3)
# SQLite's busy handler sleeps longer after each try and loses every race against a worker that asks again
# immediately. Short equal pauses are fair.
_PAUSE = 0.0003
_BUSY = {
    "SQLITE_BUSY",
    "SQLITE_BUSY_SNAPSHOT",
    "SQLITE_BUSY_RECOVERY",
    "SQLITE_BUSY_TIMEOUT",
    "SQLITE_LOCKED",
}
_DAMAGED = {
    "SQLITE_CORRUPT",
    "SQLITE_NOTADB",
    "SQLITE_CORRUPT_INDEX",
    "SQLITE_CORRUPT_SEQUENCE",
    "SQLITE_CORRUPT_VTAB",
}
# Where the header of a SQLite file keeps the application id.
_APPLICATION_ID_AT = slice(68, 72)
SET_ASIDE = "set it aside and start with a new one: hubqueue check --set-aside"
_ASIDE = re.compile(r".+\.damaged-[0-9T]+")
SIDE_FILES = ("-wal", "-shm", "-journal")


def load_driver(name: str) -> ModuleType:
    """The DB-API module: `pysqlite3` (carries a recent SQLite), `sqlite3` (Python's own) or `auto`, the first that is installed.

    One process must use one of them only: the file locks of two SQLite libraries cancel each other.
    """
    if name in ("auto", "pysqlite3"):
        try:
            from pysqlite3 import dbapi2

            return dbapi2  # type: ignore[no-any-return]
        except ImportError:
            if name == "pysqlite3":
                raise
    import sqlite3

    return sqlite3


def journal_for(version: tuple[int, ...], *, network: bool) -> tuple[str, str]:
    """The (journal_mode, synchronous) that lose no commit with this library on this file system."""
    return ("wal", "FULL") if version >= _WAL_IS_SAFE_FROM and not network else ("delete", "EXTRA")


def prepare_file(path: Path, driver: ModuleType, *, create: bool) -> None:
    """Refuse a file that is not hubqueue's. Create a missing one readable by its owner only (SQLite would use the umask)."""
    if path.is_symlink():
        raise OutboxUnavailable(
            f"{path} is a symbolic link", hint="hubqueue does not follow links; use the real folder as home"
        )
    try:
        if create and not path.exists():
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
            try:
                descriptor = os.open(path, flags, 0o600)
            except FileExistsError:
                pass  # another process was faster, and created it the same way
            else:
                if hasattr(os, "fchmod"):
                    with suppress(OSError):  # some file systems cannot, and 0600 is what it was made with
                        os.fchmod(descriptor, 0o600)
                os.close(descriptor)
        with os.fdopen(open_plain(path, os.O_RDONLY), "rb") as file:
            head = file.read(100)
    except OSError as error:
        raise OutboxUnavailable(
            f"cannot open the outbox {path}: {error.strerror or error}", hint=_hint_for(path)
        ) from error
    for suffix in SIDE_FILES:
        side = path.with_name(path.name + suffix)
        # SQLite would wait forever for a pipe with the name of its journal.
        if side.is_symlink() or (side.exists() and not side.is_file()):
            hint = f"move it away: mv {side} {side}.not-a-file"
            raise OutboxUnavailable(f"{side} is not a plain file", hint=hint)
    if head and not head.startswith(_MAGIC):
        if path.with_name(path.name + "-journal").exists():
            return  # a power cut interrupted the first transaction: SQLite rolls it back, or refuses the file
        raise OutboxDamaged(f"{path} is not a SQLite database", hint=SET_ASIDE)
    if head and head[_APPLICATION_ID_AT] != APPLICATION_ID.to_bytes(4, "big"):
        _refuse_alien(path, driver)


def _refuse_alien(path: Path, driver: ModuleType) -> None:
    """Read the file without changing it, and refuse tables that hubqueue has not created.

    The application id of a new outbox may still be in its write-ahead log, so the header alone does not decide.
    """
    try:
        try:
            tables, found_id = _inspect(path, driver, "mode=ro")
        except driver.Error as error:
            if not error_name(error).startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
                raise
            # A transaction that a power cut interrupted has to be rolled back, and a log needs a file of its own in a
            # folder that is read-only. The first page is enough without that.
            tables, found_id = _inspect(path, driver, "immutable=1")
    except driver.Error as error:
        if is_damage(error):
            raise OutboxDamaged(f"{path} is damaged: {error}", hint=SET_ASIDE) from error
        raise OutboxUnavailable(f"cannot open the outbox {path}: {error}", hint=_hint_for(path)) from error
    if tables and found_id != APPLICATION_ID:
        hint = "choose another outbox.url or home; this file was not changed"
        raise OutboxAlien(f"{path} is the database of another program", hint=hint)


def _inspect(path: Path, driver: ModuleType, how: str) -> tuple[int, int]:
    """The number of tables, and the application id."""
    connection = driver.connect(uri_of(path.resolve(), how), uri=True)
    try:
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        found_id = connection.execute("PRAGMA application_id").fetchone()[0]
    finally:
        connection.close()
    return tables, found_id


def uri_of(path: Path, how: str) -> str:
    """The URI of a file for SQLite: every character of the path is itself, also a `?`, and bytes that are no UTF-8."""
    return f"{path.as_uri()}?{how}"


def set_aside(path: Path) -> Path:
    """Rename a damaged outbox (with its journal files), so that nothing overwrites what may be recovered from it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in SIDE_FILES:
        side = path.with_name(path.name + suffix)
        if side.exists():
            side.rename(aside.with_name(aside.name + suffix))
    path.rename(aside)
    return aside


def identity(path: Path | str) -> tuple[int, int] | None:
    """Device and inode, which tell a file apart from another one at the same path; None without a file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def asides(path: Path) -> tuple[Path, ...]:
    """The damaged outboxes that were set aside in this folder, oldest first."""
    found = path.parent.glob(f"{path.name}.damaged-*")
    return tuple(sorted(each for each in found if _ASIDE.fullmatch(each.name) and each.is_file()))


def report_beside(aside: Path) -> Path:
    """The file that reports what was saved from a damaged outbox."""
    return aside.with_name(aside.name + ".saved")


def report_of(aside: Path) -> str | None:
    """What was saved from a damaged outbox, in words; None while nothing has been tried."""
    try:
        return str(json.loads(read_small(report_beside(aside)))["said"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def configure(connection: Any, *, journal: str, synchronous: str, busy_timeout: float) -> None:
    """Make the settings on a new DB-API connection and read them back."""
    # A flipped bit in a text must not make the rows around it unreadable.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
        # SQLite does not call the busy handler for this while others make the first connections to a new file.
        found = str(_patiently(connection, f"PRAGMA journal_mode = {journal}", busy_timeout).fetchone()[0])
        if found != journal:
            raise OutboxUnavailable(
                f"the outbox stayed in journal mode {found!r} instead of {journal!r}",
                hint="another program holds it open with an older SQLite; close it and try again",
            )
        cursor.execute(f"PRAGMA synchronous = {synchronous}")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.execute("PRAGMA journal_size_limit = 16777216")
        cursor.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone does not reach the disk
    finally:
        cursor.close()


def configure_reading(connection: Any, *, busy_timeout: float) -> None:
    """Make the settings on a new DB-API connection that only reads."""
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    connection.execute(f"PRAGMA busy_timeout = {int(busy_timeout * 1000)}")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA query_only = ON")


def begin_immediate(connection: Any, *, patience: float, turns: Turns | None = None) -> None:
    """BEGIN IMMEDIATE. Waits in short equal pauses for at most `patience` seconds; with `turns`, the longest wait goes first."""
    _patiently(connection, "BEGIN IMMEDIATE", patience, turns)


def _patiently(connection: Any, statement: str, patience: float, turns: Turns | None = None) -> Any:
    """Execute a statement, and repeat it while others lock the database, for at most `patience` seconds; its cursor."""
    since = time.monotonic_ns()
    deadline = since + int(patience * 1e9)
    while True:
        if turns is None or turns.is_mine(since) or time.monotonic_ns() >= deadline:
            try:
                done = connection.execute(statement)
            except Exception as error:
                if time.monotonic_ns() >= deadline or error_name(error) not in _BUSY:
                    raise
            else:
                if turns is not None:
                    turns.take(since)
                return done
        if turns is not None:
            turns.ask(since)
        threading.Event().wait(_PAUSE)


def error_name(error: BaseException) -> str:
    """SQLite's name of a DB-API error, such as SQLITE_BUSY; empty for anything else."""
    return str(getattr(error, "sqlite_errorname", None) or "")


def is_busy(error: BaseException) -> bool:
    """Whether the error says that another connection held a lock for too long."""
    return error_name(error) in _BUSY


def is_damage(error: BaseException) -> bool:
    """Whether the error says that the file is not a readable database."""
    return error_name(error) in _DAMAGED


def is_foreign_schema(error: BaseException) -> bool:
    """Whether the error says that a table is not as the migrations created it."""
    message = str(error)
    return message.startswith(("no such column", "no such table")) or message.endswith("already exists")


def refuses_the_values(error: BaseException) -> bool:
    """Whether the error may be about the values of a statement: a constraint, a wrong type, or too long a text.

    The error of a trigger is not: the triggers of an outbox refuse no values.
    """
    name = error_name(error)
    if name.startswith("SQLITE_CONSTRAINT"):
        return name != "SQLITE_CONSTRAINT_TRIGGER"
    return name in ("SQLITE_MISMATCH", "SQLITE_TOOBIG")


def is_full(error: BaseException) -> bool:
    """Whether the error says that the disk is full."""
    return error_name(error) in {
        "SQLITE_FULL",
        "SQLITE_IOERR_WRITE",
        "SQLITE_IOERR_FSYNC",
        "SQLITE_IOERR_SHMSIZE",
    }


def _hint_for(path: Path) -> str:
    return f"check that {path.parent} exists, is writable and has room, or choose another home: HUBQUEUE_HOME"
