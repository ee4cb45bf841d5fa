"""The keys that a home and its environment hold, so that they are masked in what this process writes.

Reads without the network, and fails softly: what cannot be read here is told by whoever needs the key.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hubqueue.config.home import open_private
from hubqueue.config.registry import built_in
from hubqueue.domain.arguments import hide_secrets, is_secret_name
from hubqueue.domain.redact import remember

_OWN = "HUBQUEUE_KEY_"
_LARGEST = 1 << 20


def learn_keys(path: Path, environ: Mapping[str, str], *more: str | None) -> None:
    """Mask from now on the keys of the environment, of the credentials at `path`, of ultralytics, and these."""
    secrets = [secret for each in built_in() for secret in each.secrets]
    of_clients = {secret.variable for secret in secrets}
    of_environment = [
        value for name, value in environ.items() if name in of_clients or name.upper().startswith(_OWN)
    ]
    borrowed = [secret.borrowed(environ) for secret in secrets]
    remember(key.strip() for key in (*of_environment, *_stored(path), *borrowed, *more) if key)


def without_keys(
    args: Mapping[str, object], path: Path, environ: Mapping[str, str], key: str | None
) -> dict[str, object]:
    """The arguments of a training that is about to begin, without the keys that are known by then, `key` among them."""
    learn_keys(path, environ, key)
    return hide_secrets(args)


def _stored(path: Path) -> list[str]:
    try:
        # What is no file (a pipe) must not make anybody wait.
        with os.fdopen(open_private(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            return list(_keys_in(tomllib.loads(file.read(_LARGEST).decode())))
    except (OSError, ValueError, RecursionError):
        return []


def _keys_in(found: Any, name: str = "") -> Iterator[str]:
    if isinstance(found, dict):
        for inner, each in found.items():
            yield from _keys_in(each, inner)
    elif isinstance(found, list):
        for each in found:
            yield from _keys_in(each, name)
    elif isinstance(found, str) and is_secret_name(name):
        yield found
