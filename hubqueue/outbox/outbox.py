"""One opened outbox: the home, its settings, its database and its spool, ready for use.

All reads and writes go through the parts of this object; it adds no statement of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hubqueue.config.credentials import Credentials
from hubqueue.config.home import Home
from hubqueue.config.known_keys import learn_keys
from hubqueue.config.reader import Config, DestinationSettings
from hubqueue.config.registry import absent
from hubqueue.domain.account import UNKNOWN
from hubqueue.domain.clock import Clock
from hubqueue.domain.errors import ConfigError, CredentialsError, OutboxDamaged, OutboxUnavailable
from hubqueue.outbox.database import sqlite
from hubqueue.outbox.database.database import Database
from hubqueue.outbox.database.files.replacement import Fate
from hubqueue.outbox.database.migration import lock_of
from hubqueue.outbox.locks import serving, waiting
from hubqueue.outbox.spool.ballast import Ballast
from hubqueue.outbox.spool.presence import Presence, set_aside
from hubqueue.outbox.spool.spool import Spool

if TYPE_CHECKING:
    from hubqueue.outbox.addresses import Addresses
    from hubqueue.outbox.moves.claim import Claims
    from hubqueue.outbox.moves.counting import Moved
    from hubqueue.outbox.moves.enqueue import Entries
    from hubqueue.outbox.moves.registry import Registry
    from hubqueue.outbox.moves.settle import Settlement
    from hubqueue.outbox.stats import Stats

# A worker pauses this long after each of its write transactions. Another process tries again within that time (see
# `sqlite.begin_immediate`); one that waits longer asks for its turn.
COURTESY = timedelta(milliseconds=0.5)
# No training waits for a worker, so the worker can wait long: its start must not fail while many trainings write.
_WORKER_PATIENCE = timedelta(seconds=30)


class Outbox:
    """What is owed to the destinations of one home. Use it as a context manager, or `close` it."""

    def __init__(self, home: Home, config: Config, database: Database, environ: Mapping[str, str]) -> None:
        self.home = home
        self.config = config
        self.database = database
        self.credentials = Credentials(home.credentials, environ)
        folder = config.spool.path or home.spool
        presence = Presence(
            folder,
            outbox_id=lambda: self.database.outbox_id,
            owed=self._snapshots_owed,
            note=home.spool_note,
            inside=config.spool.path is None,
        )
        self.spool = Spool(folder, config.spool, presence)
        # The path of the damaged outbox that this one replaced when it was opened.
        self.set_aside: Path | None = None

    # Each part is imported when it is first used: the status uses few of them.

    @cached_property
    def entries(self) -> Entries:
        """The producer's and the operator's moves."""
        from hubqueue.outbox.moves.enqueue import Entries

        return Entries(self.database)

    @cached_property
    def addresses(self) -> Addresses:
        """The upload targets of runs."""
        from hubqueue.outbox.addresses import Addresses

        return Addresses(self.database)

    @cached_property
    def registry(self) -> Registry:
        """Destinations, runs and workers."""
        from hubqueue.outbox.moves.registry import Registry

        return Registry(self.database)

    @cached_property
    def claims(self) -> Claims:
        """The moves that open a lease."""
        from hubqueue.outbox.moves.claim import Claims

        return Claims(self.database)

    @cached_property
    def settlement(self) -> Settlement:
        """The moves of a lease holder."""
        from hubqueue.outbox.moves.settle import Settlement

        return Settlement(self.database)

    @cached_property
    def stats(self) -> Stats:
        """Every read."""
        from hubqueue.outbox.stats import Stats

        return Stats(self.database)

    def status(self) -> dict[str, Any]:
        """What is owed, since when, why, and when next: what `hubqueue status --json` prints."""
        from hubqueue.outbox.status import status

        return status(self)

    def run_lock(self, run_id: str) -> Path:
        """The lock that the training process of a run holds as long as it lives."""
        return self.home.locks / f"run-{run_id}.lock"

    def serving_lock(self, destination: str) -> Path:
        """The lock of a worker that sends for a row of `destinations`."""
        return serving(self.home.locks, destination)

    def waiting_lock(self, destination: str) -> Path:
        """The lock of a worker that waits for the key of a row of `destinations`."""
        return waiting(self.home.locks, destination)

    def worker_lock(self, worker: str) -> Path:
        """The lock that a worker holds as long as it lives."""
        return self.home.locks / f"worker-{worker}.lock"

    def note_destinations(self) -> None:
        """Record the destinations of the configuration, with the account that this environment has at each."""
        for each in self.config.destinations.values():
            if absent(each.type) is None:  # else the names of its secrets are unknown
                self.addresses.note(each, self.key(each))

    def key(self, target: DestinationSettings) -> str | None:
        """The key of this environment for a destination: the account of the runs that are started in it.

        `UNKNOWN` where there may be one that cannot be read now; `status` and `check` show why.
        """
        try:
            return next(iter(self.credentials.keys(target)), None)
        except CredentialsError:
            return UNKNOWN

    def readable_key(self, target: DestinationSettings) -> str | None:
        """The key of this environment for a destination, for a command of a person.

        Raises `ConfigError` when it cannot be read: a person's decision needs the actual key.
        """
        try:
            return next(iter(self.credentials.keys(target)), None)
        except CredentialsError as error:
            raise ConfigError((str(error),), hint=error.hint) from error

    def discard(self, moved: Moved) -> None:
        """Delete the snapshots that entries no longer need. A sweep deletes those that remain."""
        for name in moved.snapshots:
            self.spool.remove(name)

    def let_go(self) -> Fate:
        """Close an outbox whose file was deleted, moved or replaced, and save what only this process still reaches.

        Raises `OutboxUnavailable` where the home cannot be made again, and `OutboxLocked` where another process keeps the
        lock of the migrations; then nothing was closed.
        """
        self.home.create()
        return self.database.let_go(lock_of(self.home.locks / "migrate.lock"))

    def _snapshots_owed(self) -> list[str]:
        """The names of the snapshots that must be in the spool. On a shared database, those of this home's runs."""
        owed = self.stats.snapshots_owed()
        if self.config.outbox.url is None:
            return owed
        return [name for name in owed if self.run_lock(name.partition("-")[0]).exists()]

    def reopen(self) -> None:
        """Check the file again, as at the first opening, and open it. Raises the `OutboxError`s."""
        self.home.create()
        self.set_aside = None
        self.database.open(lock=lock_of(self.home.locks / "migrate.lock"))

    def close(self) -> None:
        """Close the database. The next use opens it again."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_outbox(
    home: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    courtesy: timedelta = timedelta(0),
    set_aside_damaged: bool = False,
) -> Outbox:
    """Open the outbox of a home, create a missing one, and upgrade its schema.

    Precedence for `home` and `config`: the argument, then HUBQUEUE_HOME and HUBQUEUE_CONFIG, then the default.
    `courtesy` is for a worker (see `Database`), which may delete the ballast to open on a full disk.
    `set_aside_damaged` renames a database that cannot be read and starts a new one beside it.
    Raises `ConfigError` and the `OutboxError`s.
    """
    environ = os.environ if environ is None else environ
    located = Home.locate(home, environ)
    settings = located.load_config(Path(config) if config is not None else None, environ)
    return open_with(
        located, settings, environ, clock=clock, courtesy=courtesy, set_aside_damaged=set_aside_damaged
    )


def open_to_read(
    home: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Outbox:
    """Open the outbox of a home for a command that only reads: also in a read-only home, where it changes nothing.

    Otherwise as `open_outbox`.
    """
    environ = os.environ if environ is None else environ
    located = Home.locate(home, environ)
    settings = located.load_config(Path(config) if config is not None else None, environ)
    if not located.read_only:
        return open_with(located, settings, environ)
    learn_keys(located.credentials, environ, settings.destinations.values())
    return Outbox(
        located, settings, _open(located, settings, None, timedelta(0), lock=False, read_only=True), environ
    )


def open_with(
    home: Home,
    settings: Config,
    environ: Mapping[str, str],
    *,
    clock: Clock | None = None,
    courtesy: timedelta = timedelta(0),
    set_aside_damaged: bool = False,
) -> Outbox:
    """`open_outbox` where home and settings are known."""
    learn_keys(home.credentials, environ, settings.destinations.values())
    home.create()
    aside: Path | None = None
    try:
        try:
            database = _open(home, settings, clock, courtesy)
        except OutboxUnavailable:
            # On a full disk SQLite cannot create even its side files; a worker can free the ballast.
            if not (courtesy and Ballast(home.ballast).release()):
                raise
            database = _open(home, settings, clock, courtesy)
    except OutboxDamaged:
        if not set_aside_damaged:
            raise
        aside = replace_damaged(home, settings)
        database = _open(home, settings, clock, courtesy)
    outbox = Outbox(home, settings, database, environ)
    outbox.set_aside = aside
    return outbox


def replace_damaged(home: Home, config: Config) -> Path | None:
    """Set a damaged outbox aside, with its spool, so that a new one can be created. Returns its new path.

    None when the outbox is sound, or not a file of ours. Nothing is overwritten, so that its entries can be recovered.
    """
    if config.outbox.url or not home.outbox.exists():
        return None
    home.create()
    with lock_of(home.locks / "migrate.lock"):
        # Checked again under the lock: another process may have replaced it first.
        if _is_sound(home, config):
            return None
        aside = sqlite.set_aside(home.outbox)
        spool = config.spool.path or home.spool
        # Its snapshots belong to entries of the old outbox; the new one would sweep them as orphans.
        kept = spool.with_name(f"{spool.name}{aside.name.removeprefix(home.outbox.name)}")
        set_aside(spool, home.spool_note, kept)
    home.create()
    return aside


def _is_sound(home: Home, config: Config) -> bool:
    database = None
    try:
        database = _open(home, config, None, timedelta(0), lock=False)
        return database.integrity() == "ok"
    except OutboxDamaged:
        return False
    finally:
        if database is not None:
            database.close()


def _open(
    home: Home,
    config: Config,
    clock: Clock | None,
    courtesy: timedelta,
    *,
    lock: bool = True,
    read_only: bool = False,
) -> Database:
    database = Database(
        config.outbox.url or home.outbox,
        driver=config.outbox.driver,
        patience=max(config.outbox.busy_timeout, _WORKER_PATIENCE)
        if courtesy
        else config.outbox.busy_timeout,
        courtesy=courtesy,
        network=home.is_network_file_system(),
        read_only=read_only and config.outbox.url is None,
        clock=clock,
    )
    database.open(lock=lock_of(home.locks / "migrate.lock") if lock else None)
    return database
