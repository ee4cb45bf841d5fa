"""The keys of a home and its environment, so that they are masked in what this process writes.

Uses no network. What cannot be read here is skipped: the code that needs the key reports it.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hubqueue.config.credentials import secret_variables
from hubqueue.config.home import open_private
from hubqueue.config.registry import BUILT_IN, declaration
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.arguments import hide_secrets
from hubqueue.domain.redact import remember

_OWN = "HUBQUEUE_KEY_"
_LARGEST = 1 << 20


def learn_keys(
    path: Path, environ: Mapping[str, str], destinations: Iterable[DestinationSettings], *more: str | None
) -> None:
    """Mask from now on the keys of the environment, of the credentials at `path`, of the vendors' clients, and `more`.

    The environment's keys are the variables that name a destination, and those for the secrets of `destinations` and
    of their types.
    """
    targets = list(destinations)
    types = dict.fromkeys((*BUILT_IN, *(each.type for each in targets)))
    secrets = [secret for each in types for secret in declaration(each).secrets]
    names = {secret.variable for secret in secrets} | secret_variables(targets)
    of_environment = [
        value for name, value in environ.items() if name in names or name.upper().startswith(_OWN)
    ]
    borrowed = [secret.lent(environ) for secret in secrets]
    remember(key.strip() for key in (*of_environment, *_stored(path), *borrowed, *more) if key)


def without_keys(
    args: Mapping[str, object],
    path: Path,
    environ: Mapping[str, str],
    destinations: Iterable[DestinationSettings],
    key: str | None,
) -> dict[str, object]:
    """The arguments of a training that is about to begin, without the known keys, `key` among them."""
    learn_keys(path, environ, destinations, key)
    return hide_secrets(args)


def _stored(path: Path) -> list[str]:
    try:
        # Opening something other than a file (a pipe) must not block.
        with os.fdopen(open_private(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return list(_texts_in(tomllib.loads(file.read(_LARGEST).decode())))
    except (OSError, ValueError, RecursionError):
        return []


def _texts_in(found: Any) -> Iterator[str]:
    """All texts: the file holds only secrets, and a secret of another package may have any name."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict | list):
        for each in found.values() if isinstance(found, dict) else found:
            yield from _texts_in(each)
