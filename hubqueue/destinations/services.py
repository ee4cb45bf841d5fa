"""The fake services of the destinations for the sandbox, each loaded when it is requested."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from hubqueue.config.registry import declaration, types
from hubqueue.domain.errors import ConfigError
from hubqueue.sandbox.service import Service


def services(*names: str, ready: Iterable[Service] = ()) -> list[Service]:
    """New services of these types of destinations; without `names`, one of each type that has one.

    Those in `ready` are used as they are. Raises `ConfigError` for a type that is unknown or has no service.
    """
    made = {each.name: each for each in ready}
    return [made.get(name) or _made(name) for name in names or types() if names or declaration(name).service]


def _made(name: str) -> Service:
    dotted = declaration(name).service
    if dotted is None:
        raise ConfigError(
            (f"destinations of type {name} have no fake service for the sandbox",),
            hint=f"types with a fake service: {', '.join(each for each in types() if declaration(each).service)}",
        )
    module, _, attribute = dotted.partition(":")
    service: Service = getattr(importlib.import_module(module), attribute)()
    return service
