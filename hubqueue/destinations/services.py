"""The fake services that the destinations bring for the sandbox, each loaded when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from hubqueue.sandbox.service import Service

# The name of a service, and the class that makes it with its defaults.
_SERVICES = {
    "hub": "hubqueue.destinations.hub.sandbox:FakeHub",
    "platform": "hubqueue.destinations.platform.sandbox:FakePlatform",
}


def services(*names: str, ready: Iterable[Service] = ()) -> list[Service]:
    """New services of these names, without names one of each. Those in `ready` are used as they are.

    Raises KeyError for a name that no destination has.
    """
    made = {each.name: each for each in ready}
    return [made.get(name) or _made(_SERVICES[name]) for name in names or _SERVICES]


def _made(dotted: str) -> Service:
    module, _, name = dotted.partition(":")
    service: Service = getattr(importlib.import_module(module), name)()
    return service
