"""The settings, declared once and frozen: what the rest of hubqueue reads.

Promises durations as timedelta, paths as Path and a default for every setting: `Config()` equals an empty configuration.
Each field declares its form, its default and its help. The reader refuses values by these declarations; the documents
and the JSON Schema come from them too (see `setting.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from hubqueue.config import forms
from hubqueue.config.setting import setting, table
from hubqueue.domain.budget import Budget
from hubqueue.domain.entry import Kind


@dataclass(frozen=True, slots=True)
class RateLimits:
    """The minimum time between two request starts of one lane."""

    metrics: timedelta = setting(
        forms.seconds(), default=timedelta(seconds=3), help="between two metrics requests"
    )
    ckpt: timedelta = setting(
        forms.seconds(),
        default=timedelta(minutes=15),
        help="between two checkpoint uploads. A final one does not wait for it",
    )
    heartbeat: timedelta = setting(
        forms.seconds(), default=timedelta(minutes=5), help="between two heartbeats"
    )

    def pace(self, kind: Kind) -> timedelta:
        """The limit of a lane of this kind; zero for a kind without a limit."""
        match kind:
            case Kind.METRICS | Kind.EVENT:
                return self.metrics
            case Kind.CKPT:
                return self.ckpt
            case Kind.HEARTBEAT:
                return self.heartbeat
            case _:
                return timedelta(0)


@dataclass(frozen=True, slots=True)
class OutboxSettings:
    """The database. `url` None is `outbox.db` in the home; it may carry a password, so no repr shows it."""

    url: str | None = setting(
        forms.database_address(),
        default=None,
        absent="`outbox.db` in the home",
        example="sqlite:////path/to/outbox.db",
        secret=True,
        help="the database: `sqlite:////path/to/outbox.db` or `postgresql+psycopg://HOST/NAME`",
    )
    driver: str = setting(
        forms.choice("auto", "pysqlite3", "sqlite3"),
        default="auto",
        help="the SQLite library: `auto` (pysqlite3 where it is installed), `pysqlite3` or `sqlite3`",
    )
    busy_timeout: timedelta = setting(
        forms.seconds(zero=False),
        default=timedelta(seconds=5),
        help="how long a write waits for another writer (a worker: at least 30 s)",
    )
    keep_delivered: timedelta = setting(
        forms.seconds(),
        default=timedelta(days=7),
        help="how long a delivered, superseded or cancelled entry is kept. The newest one is always kept",
    )
    keep_attempts: timedelta = setting(
        forms.seconds(), default=timedelta(days=30), help="how long the history of attempts is kept"
    )


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """The folder of snapshots. `path` None is `spool` in the home; sizes are in bytes."""

    path: Path | None = setting(
        forms.path(),
        default=None,
        absent="`spool` in the home",
        example="/path/to/spool",
        help="the folder of checkpoint snapshots",
    )
    max_bytes: int = setting(forms.size(), default=20_000_000_000, help="the total size of all snapshots")
    min_free_bytes: int = setting(
        forms.size(least=0),
        default=1_000_000_000,
        help="free space that snapshots leave on the disk; 0 is no reserve",
    )


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Backoff after a failed attempt: up to `base * 2 ** failures`, at most `cap`; and the probes of what is held."""

    base: timedelta = setting(forms.seconds(), default=timedelta(seconds=1), help="the longest first wait")
    cap: timedelta = setting(
        forms.seconds(), default=timedelta(minutes=5), help="the longest wait; not less than `base`"
    )
    probe: timedelta = setting(
        forms.seconds(zero=False),
        default=timedelta(minutes=1),
        help="the first wait before a hold is probed with one attempt. It doubles while the hold lasts",
    )
    probe_cap: timedelta = setting(
        forms.seconds(zero=False),
        default=timedelta(hours=1),
        help="the longest wait between two probes of a hold",
    )


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The background worker. `batch_bytes` limits one metrics request, `*_threads` the parallel requests."""

    idle_exit: timedelta = setting(
        forms.seconds(),
        default=timedelta(minutes=5),
        help="time without uploads after which a worker started by a run exits",
    )
    lease: timedelta = setting(
        forms.seconds(zero=False),
        default=timedelta(seconds=60),
        help="how long a claim is valid if its worker does not renew it",
    )
    grace: timedelta = setting(
        forms.seconds(),
        default=timedelta(seconds=10),
        help="how long running uploads may continue when the worker is stopped",
    )
    light_threads: int = setting(
        forms.count("threads"),
        default=8,
        help="parallel requests to a destination, except checkpoints and heartbeats",
    )
    ckpt_threads: int = setting(
        forms.count("threads"), default=2, help="parallel checkpoint uploads to a destination"
    )
    heartbeat_threads: int = setting(
        forms.count("threads"), default=4, help="parallel heartbeats to a destination"
    )
    batch_entries: int = setting(
        forms.count("entries"),
        default=1000,
        help="the most epochs or steps in one metrics request (50 if `rate_limits.metrics` is 0 and another process is writing)",
    )
    batch_bytes: int = setting(
        forms.size(), default=1_048_576, help="the largest size of one metrics request"
    )


@dataclass(frozen=True, slots=True)
class DestinationSettings:
    """A named target that entries are owed to. It never holds the key.

    `url` and `web_url` end without a slash. `proxy` may carry a password, so no repr shows it. An upload of which
    no byte moves in a `stall_window`, or fewer than `stall_rate` per second, is aborted. `requests_per_minute` and `uploads_per_minute` limit
    the requests of all runs together (0: no limit). Checkpoints go only to the host of `url` and to `upload_hosts`. Each
    type has its own class, with its defaults and its own settings. `url_named`: an environment variable names the
    address. `home` is the home that uses it, where a destination may note what it knows of this machine.
    """

    name: str
    type: str = setting(
        forms.text("word"),
        default="",
        absent="the type with the name of the destination",
        help="the protocol",
    )
    url: str = setting(
        forms.web_address(),
        default="",
        absent="none",
        example="https://HOST",
        help="the API root; no user, query or fragment",
    )
    web_url: str = setting(
        forms.web_address(),
        default="",
        absent="that of `url`",
        example="https://HOST",
        help="the web root, to read and print model URLs. If only `url` is set, that one",
    )
    insecure: bool = setting(
        forms.flag(),
        default=False,
        help="`true` allows plain http to another machine: others on the network can read the key",
    )
    ca_bundle: Path | None = setting(
        forms.path(),
        default=None,
        absent="the built-in ones",
        example="/path/to/ca.pem",
        help="certificates to trust instead of the built-in ones",
    )
    proxy: str | None = setting(
        forms.proxy_address(),
        default=None,
        absent="none",
        example="http://proxy:3128",
        secret=True,
        help="an http or https proxy; a user and password only in the variable. An http `url` goes through a proxy on "
        "this machine only, unless `insecure`. `HTTPS_PROXY` and similar variables are not read",
    )
    rate_limits: RateLimits = table(RateLimits, help="those of `[rate_limits]` if not set here")
    connect_timeout: timedelta = setting(
        forms.seconds(zero=False), default=timedelta(seconds=10), help="the time limit for connecting"
    )
    answer_timeout: timedelta = setting(
        forms.seconds(zero=False),
        default=timedelta(seconds=60),
        help="the time limit from the last byte sent to the complete response. It doubles after each whole request without "
        "a response, for checkpoints up to an hour",
    )
    stall_window: timedelta = setting(
        forms.seconds(zero=False),
        default=timedelta(seconds=60),
        help="an upload of which no byte moves for this time is aborted. While bytes move it may take any time",
    )
    stall_rate: int = setting(
        forms.size(unit="bytes per second"),
        default=1,
        help="the minimum average speed of an upload over a `stall_window`, in bytes per second; 1 is no minimum",
    )
    requests_per_minute: int = setting(
        forms.count("requests", least=0),
        default=0,
        help="the most requests of all runs and processes of this outbox in a minute; 0 is no limit",
    )
    uploads_per_minute: int = setting(
        forms.count("uploads", least=0), default=0, help="the most checkpoints among them; 0 is no limit"
    )
    upload_hosts: tuple[str, ...] = setting(
        forms.hosts(),
        default=(),
        help="hosts (`HOST`, or `HOST:PORT` if the port is not 443) to which the hub may direct checkpoint uploads, "
        "besides that of `url`. In the variable separated by commas",
    )
    url_named: bool = field(default=False, compare=False)
    home: Path | None = field(default=None, compare=False, repr=False)

    @property
    def budget(self) -> Budget:
        """The limits per minute."""
        return Budget(self.requests_per_minute, self.uploads_per_minute)
