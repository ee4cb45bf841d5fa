"""Upgrades the schema once, however many processes start at the same moment.

The usual case costs one SELECT. Alembic is imported only when the schema is behind. It runs under a lock: without one,
concurrent upgrades make each other fail.
"""

from __future__ import annotations

import atexit
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from hubqueue.domain.errors import OutboxDamaged, OutboxTooNew
from hubqueue.outbox.database.patience import seconds_for, waited
from hubqueue.outbox.database.schema import APPLICATION_ID, REVISION
from hubqueue.outbox.database.sqlite import SET_ASIDE, is_busy
from hubqueue.outbox.locks import PATIENCE, Lock, stayed_locked

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from alembic.config import Config

_CURRENT = text("SELECT version_num FROM alembic_version")
_LOCK = text(f"SELECT pg_advisory_lock({APPLICATION_ID})")
_UNLOCK = text(f"SELECT pg_advisory_unlock({APPLICATION_ID})")
_REVISION = re.compile(r"[0-9]{4}")


def current_revision(connection: Connection) -> str | None:
    """The revision in the database, None where there is no schema yet."""
    try:
        return connection.execute(_CURRENT).scalar()
    except DBAPIError as error:
        if is_busy(error.orig or error):
            raise
        connection.rollback()
        if not inspect(connection).has_table("alembic_version"):
            return None
        # Another process may have created it since the first SELECT. If it is damaged, this SELECT fails as well.
        return connection.execute(_CURRENT).scalar()


@contextmanager
def lock_of(path: Path) -> Iterator[None]:
    """Hold the lock of the migrations of one home. Raises `OutboxLocked`."""
    lock = Lock(path)
    is_taken = lock.acquire(seconds_for(path, PATIENCE))
    waited(path, in_vain=not is_taken)
    if not is_taken:
        raise stayed_locked(path)
    try:
        yield
    finally:
        lock.release()


def upgrade(connection: Connection) -> None:
    """Upgrade the schema to this program's revision. The caller holds the lock of the migrations.

    Raises `OutboxTooNew` for a revision that this program does not know.
    """
    with _alone(connection):
        _upgrade(connection)


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """Exclude the other homes of a PostgreSQL database: the caller's lock excludes only processes of its own home."""
    if connection.dialect.name != "postgresql":
        yield
        return
    connection.execute(_LOCK)
    try:
        yield
    finally:
        connection.rollback()  # a failed transaction accepts no more statements
        connection.execute(_UNLOCK)
        connection.commit()


def _upgrade(connection: Connection) -> None:
    found = current_revision(connection)
    if found == REVISION:
        return  # another process did it while this one waited for the lock
    logging.getLogger("alembic").setLevel(logging.WARNING)  # before the import, which already logs
    from alembic import command
    from alembic.script import ScriptDirectory

    config = _config(connection)
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and not _REVISION.fullmatch(found):
        raise OutboxDamaged("the revision of the outbox cannot be read", hint=SET_ASIDE)
    if found is not None and found not in known:
        raise OutboxTooNew(
            f"the outbox has revision {found}, this hubqueue knows up to {REVISION}",
            hint="a newer hubqueue wrote it; upgrade this one as you installed it",
        )
    # Each revision in a transaction of its own: one that waits for a table must not hold the lock of another one, for which
    # a process of an older revision may be waiting. Nobody waits for a new outbox.
    newer = [script.revision for script in scripts.iterate_revisions("head", found)]
    for revision in ["head"] if found is None else reversed(newer):
        command.upgrade(config, revision)
        connection.commit()


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _scripts() -> Path:
    """The migrations: inside the package when installed from a wheel, beside it in a checkout, unpacked from a zipapp."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "_migrations"
    if installed.is_dir():
        return installed
    return _unpacked() if _packed().is_dir() else package.parent / "migrations"


def _packed() -> Traversable:
    return files("hubqueue") / "_migrations"


@cache
def _unpacked() -> Path:
    """A copy as files, for as long as the process lives: Alembic reads a folder."""
    made = mkdtemp(prefix="hubqueue-migrations-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    _unpack(_packed(), Path(made))
    return Path(made)


def _unpack(packed: Traversable, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for each in packed.iterdir():
        if each.is_dir():
            _unpack(each, to / each.name)
        else:
            (to / each.name).write_bytes(each.read_bytes())
