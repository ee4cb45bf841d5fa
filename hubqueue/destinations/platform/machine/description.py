"""Adds to a start the facts about its machine, and to each epoch the load of the machine when it was logged.

The load is measured in the training, not when the epoch is sent: that may be hours later. It is stored with the entry of
the epoch, but not in its payload, which has only metrics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.platform.machine.environment import environment
from hubqueue.destinations.platform.machine.sampler import Sampler
from hubqueue.destinations.platform.settings import PlatformSettings
from hubqueue.domain.entry import Draft, Kind


def describe(settings: DestinationSettings, args: Mapping[str, object]) -> Callable[[Draft], Draft]:
    """What completes the drafts of a training that starts now in this process. `args` are its arguments, not masked.

    The facts are read once, now: a start that is drafted again is the same.
    """
    if isinstance(settings, PlatformSettings) and not settings.environment:
        return lambda draft: draft
    sampler = Sampler(args.get("device"))
    facts, at_start = environment(args), sampler.sample()

    def completed(draft: Draft) -> Draft:
        if draft.kind is Kind.REGISTRATION:
            payload = json.loads(draft.payload)
            payload["data"] |= {"environment": facts, "system": at_start}
            return draft._replace(payload=json.dumps(payload, allow_nan=False))
        if draft.kind is Kind.METRICS:
            return draft._replace(progress=json.dumps({"system": sampler.sample()}, allow_nan=False))
        return draft

    return completed


def load_in(progress: str | None) -> dict[str, Any] | None:
    """The load that was stored with the entry of an epoch; None without one."""
    try:
        found = json.loads(progress or "{}").get("system")
    except (ValueError, AttributeError):  # damaged; the metrics are intact, since their checksum is verified
        return None
    return found if isinstance(found, dict) else None
