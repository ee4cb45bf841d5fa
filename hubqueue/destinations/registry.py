"""The wire: one transport for each type of destination. Importing this loads no HTTP client."""

from __future__ import annotations

from collections.abc import Callable

from hubqueue.config.reader import DestinationSettings
from hubqueue.destinations.base import Transport
from hubqueue.destinations.wire.body import Blocks
from hubqueue.domain.entry import Kind, Snapshot

# What a run owes to a destination of each type: its lanes.
DESTINATION_KINDS: dict[str, tuple[Kind, ...]] = {
    "hub": (Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.HEARTBEAT),
    "platform": (Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.EVENT, Kind.COMPLETION, Kind.HEARTBEAT),
}
# How many epochs one request may carry; None is as many as the configuration says.
MOST_EPOCHS: dict[str, int | None] = {"hub": None, "platform": 1}


def connect(
    settings: DestinationSettings,
    *,
    keys: Callable[[], tuple[str, ...]],
    open_body: Callable[[Snapshot], Blocks],
) -> Transport:
    """The transport of a destination. It connects when it sends, not now.

    `keys` gives the keys to try, asked anew for each attempt; `open_body` opens a snapshot:
    what it raises, and what its blocks raise, ends the request and is raised by `send`.
    """
    assert settings.type in DESTINATION_KINDS, f"the configuration let type {settings.type!r} through"
    if settings.type == "platform":
        from hubqueue.destinations.platform.transport import PlatformTransport

        return PlatformTransport(settings, keys, open_body)
    from hubqueue.destinations.hub.transport import HubTransport

    return HubTransport(settings, keys, open_body)
