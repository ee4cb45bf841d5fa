"""Ultralytics Platform."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike

from hubqueue.config.declaration import Blocks, Destination, Secret, Transport
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.platform import identifier
from hubqueue.destinations.platform.end import completion_draft, console_draft
from hubqueue.destinations.platform.settings import PlatformSettings
from hubqueue.destinations.platform.start import registration
from hubqueue.destinations.ultralytics_settings import borrowed_key
from hubqueue.domain.entry import Draft, Kind, Snapshot
from hubqueue.domain.identifier import Identifier


def _identify(model: str | PathLike[str], _settings: DestinationSettings) -> Identifier:
    return identifier.parse(model)


def _describe(settings: DestinationSettings, args: Mapping[str, object]) -> Callable[[Draft], Draft]:
    from hubqueue.destinations.platform.machine.description import describe

    return describe(settings, args)


def _open(
    settings: DestinationSettings,
    keys: Callable[[], tuple[str, ...]],
    open_body: Callable[[Snapshot], Blocks],
) -> Transport:
    from hubqueue.destinations.platform.transport import PlatformTransport

    return PlatformTransport(settings, keys, open_body)


def _borrowed(environ: Mapping[str, str]) -> str:
    return borrowed_key(environ, of_platform=True)


DESTINATION = Destination(
    type="platform",
    settings=PlatformSettings,
    secrets=(Secret("key", "ULTRALYTICS_API_KEY", _borrowed),),
    address_variables={"url": "ULTRALYTICS_PLATFORM_URL", "web_url": "ULTRALYTICS_PLATFORM_URL"},
    lanes=(
        Kind.REGISTRATION,
        Kind.METRICS,
        Kind.CKPT,
        Kind.EVENT,
        Kind.COMPLETION,
        Kind.HEARTBEAT,
    ),
    most_epochs=1,
    # A heartbeat sends two events; a checkpoint requests an upload target, uploads its bytes there and announces them.
    costs={Kind.HEARTBEAT: {"requests": 2}, Kind.CKPT: {"requests": 2, "uploads": 1}},
    shows_newest=True,
    resumes_from_last=True,
    record="platform_model_id.txt",
    identify=_identify,
    registration=registration,
    completion=completion_draft,
    console=console_draft,
    shows_progress=True,
    describe=_describe,
    open=_open,
    service="hubqueue.destinations.platform.sandbox:FakePlatform",
)
