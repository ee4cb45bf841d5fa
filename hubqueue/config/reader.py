"""The configuration: TOML text and environment in, frozen settings out.

Promises to report every problem at once, each naming its key or variable and never repeating a value that
could be a key. Precedence: environment variable, then file, then default. Refuses what is not declared: a
misspelt key is an error, not a default. Reads no file, and only the environment that it is given.

The settings classes declare the settings and their forms. A destination's table is read with the class of its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hubqueue.config.assembly import assemble
from hubqueue.config.config import Config
from hubqueue.config.forms import Given
from hubqueue.config.names import variable
from hubqueue.config.settings import (
    DestinationSettings,
    OutboxSettings,
    RateLimits,
    RetrySettings,
    SpoolSettings,
    WorkerSettings,
)
from hubqueue.config.values import Keys, Values

__all__ = [
    "Config",
    "DestinationSettings",
    "OutboxSettings",
    "RateLimits",
    "Reading",
    "RetrySettings",
    "SpoolSettings",
    "WorkerSettings",
    "parse",
    "read",
    "variable",
]


@dataclass(frozen=True, slots=True)
class Reading:
    """A configuration, its file, and where each setting without its default value comes from."""

    config: Config
    given: Mapping[Keys, Given] = field(repr=False)  # may contain passwords
    file: Path | None = None


def parse(text: str, environ: Mapping[str, str], *, source: str) -> Config:
    """The settings that the TOML `text` and the `HUBQUEUE_<SECTION>__<KEY>` variables of `environ` give.

    `source` names where the text came from, for the hint. Raises `ConfigError` with every problem.
    """
    return read(text, environ, source=source).config


def read(text: str, environ: Mapping[str, str], *, source: str) -> Reading:
    """The same, with where each setting comes from."""
    values = Values(environ, source)
    values.read(text)
    return Reading(assemble(values), values.given)
