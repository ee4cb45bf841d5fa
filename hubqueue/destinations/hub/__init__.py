"""Ultralytics HUB, the vendor's or one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike

from hubqueue.config.declaration import Blocks, Destination, Secret, Transport
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.hub import identifier
from hubqueue.destinations.hub.registration import registration
from hubqueue.destinations.hub.settings import HubSettings
from hubqueue.destinations.ultralytics_settings import borrowed_key
from hubqueue.domain.entry import Kind, Snapshot
from hubqueue.domain.identifier import Identifier


def _identify(model: str | PathLike[str], settings: DestinationSettings) -> Identifier:
    return identifier.parse(model, web_url=settings.web_url)


def _open(
    settings: DestinationSettings,
    keys: Callable[[], tuple[str, ...]],
    open_body: Callable[[Snapshot], Blocks],
) -> Transport:
    from hubqueue.destinations.hub.transport import HubTransport

    return HubTransport(settings, keys, open_body)


def _borrowed(environ: Mapping[str, str]) -> str:
    return borrowed_key(environ, of_platform=False)


DESTINATION = Destination(
    type="hub",
    settings=HubSettings,
    secrets=(Secret("key", "HUB_API_KEY", _borrowed),),
    address_variables={"url": "ULTRALYTICS_HUB_API", "web_url": "ULTRALYTICS_HUB_WEB"},
    lanes=(Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.HEARTBEAT),
    resumes_from_last=True,
    wants_fitness=False,
    identify=_identify,
    recognizes=identifier.names_hub,
    registration=registration,
    open=_open,
    service="hubqueue.destinations.hub.sandbox:FakeHub",
)
