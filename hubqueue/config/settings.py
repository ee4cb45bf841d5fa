"""The settings, parsed and frozen: what the rest of hubqueue reads.

Promises durations as timedelta, paths as Path and a default for everything, so that `Config()` is what an
empty configuration means. Where the values come from and which are refused is the business of `config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from hubqueue.domain.budget import Budget
from hubqueue.domain.entry import Kind


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Least time between two request starts of one lane."""

    metrics: timedelta = timedelta(seconds=3)
    ckpt: timedelta = timedelta(seconds=900)
    heartbeat: timedelta = timedelta(seconds=300)

    def pace(self, kind: Kind) -> timedelta:
        """The limit of a lane of this kind; zero for the kinds that have none."""
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

    url: str | None = field(default=None, repr=False)
    driver: str = "auto"
    busy_timeout: timedelta = timedelta(seconds=5)
    keep_delivered: timedelta = timedelta(days=7)
    keep_attempts: timedelta = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """The folder of snapshots. `path` None is `spool` in the home; sizes are in bytes."""

    path: Path | None = None
    max_bytes: int = 20_000_000_000
    min_free_bytes: int = 1_000_000_000


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Backoff after a failed attempt: up to `base * 2 ** failures`, at most `cap`."""

    base: timedelta = timedelta(seconds=1)
    cap: timedelta = timedelta(seconds=300)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The background worker. `batch_bytes` bounds one metrics request, `*_threads` the requests at a time."""

    idle_exit: timedelta = timedelta(seconds=300)
    lease: timedelta = timedelta(seconds=60)
    grace: timedelta = timedelta(seconds=10)
    light_threads: int = 8
    ckpt_threads: int = 2
    heartbeat_threads: int = 4
    batch_entries: int = 1000
    batch_bytes: int = 1_048_576


@dataclass(frozen=True, slots=True)
class DestinationSettings:
    """A named place that entries are owed to. It never holds the key.

    `url` and `web_url` end without a slash. `proxy` may carry a password, so no repr shows it. An upload
    slower than `stall_rate` (bytes per second) over a `stall_window` is given up. `requests_per_minute` and
    `uploads_per_minute` bound what all runs together ask (0: no bound). Checkpoints that the hub wants put elsewhere
    go to `upload_hosts` only, and to the host of `url`. Each type has a class of its own, with
    its defaults and what only it needs. `url_named` tells that a variable of the environment has named the address.
    """

    name: str
    type: str
    url: str = ""
    web_url: str = ""
    insecure: bool = False
    ca_bundle: Path | None = None
    proxy: str | None = field(default=None, repr=False)
    rate_limits: RateLimits = RateLimits()
    connect_timeout: timedelta = timedelta(seconds=10)
    answer_timeout: timedelta = timedelta(seconds=60)
    stall_window: timedelta = timedelta(seconds=60)
    stall_rate: int = 32_768
    requests_per_minute: int = 0
    uploads_per_minute: int = 0
    upload_hosts: tuple[str, ...] = ()
    url_named: bool = field(default=False, compare=False)

    @property
    def budget(self) -> Budget:
        """What the hub allows in a minute."""
        return Budget(self.requests_per_minute, self.uploads_per_minute)
