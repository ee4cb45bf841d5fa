"""All settings of one home, and the destinations among them by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hubqueue.config import forms
from hubqueue.config.names import did_you_mean
from hubqueue.config.registry import IMPLIED, USUAL, declaration
from hubqueue.config.setting import setting, table
from hubqueue.config.settings import (
    DestinationSettings,
    OutboxSettings,
    RateLimits,
    RetrySettings,
    SpoolSettings,
    WorkerSettings,
)
from hubqueue.domain.errors import ConfigError
from hubqueue.domain.redact import clean


def _implied() -> Mapping[str, DestinationSettings]:
    return {type: declaration(type).settings(type, type) for type in IMPLIED}


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. `destinations` is never empty and has `default_destination`.

    `implied` are the destinations that exist by default: they can be used, but are listed only once they are used.
    `default_named`: the configuration names the default destination, or has only one.
    """

    default_destination: str | tuple[str, ...] = setting(
        forms.names(),
        default=USUAL,
        absent=f"the only one whose address a variable names or that has a key, else `{USUAL}`",
        example=USUAL,
        help="the destination of a run that names none; an array for several",
    )
    outbox: OutboxSettings = table(OutboxSettings, help="the database of entries")
    spool: SpoolSettings = table(SpoolSettings, help="the snapshots of checkpoints")
    rate_limits: RateLimits = table(
        RateLimits, help="minimum time between two request starts of one run; 0 is no limit"
    )
    retry: RetrySettings = table(
        RetrySettings, help="the wait after a failure is random, up to base * 2^failures, at most cap"
    )
    worker: WorkerSettings = table(WorkerSettings, help="the background worker")
    destinations: Mapping[str, DestinationSettings] = field(default_factory=_implied)
    implied: frozenset[str] = field(default=frozenset(IMPLIED), compare=False)
    default_named: bool = field(default=False, compare=False)

    @property
    def defaults(self) -> tuple[str, ...]:
        """The names of the default destinations: of one, unless the configuration has an array of them."""
        named = self.default_destination
        return (named,) if isinstance(named, str) else named

    def destination(self, name: str | None = None) -> DestinationSettings:
        """The destination of that name, None for the (first) default one. Raises `ConfigError` when there is none."""
        wanted = self.defaults[0] if name is None else name
        try:
            return self.destinations[wanted]
        except KeyError:
            guess = did_you_mean(wanted, self.destinations)
            problem = f"unknown destination {clean(wanted, limit=60)!r}{guess}"
            known = ", ".join(sorted(self.destinations))
            raise ConfigError((problem,), hint=f"the configuration has: {known}") from None
