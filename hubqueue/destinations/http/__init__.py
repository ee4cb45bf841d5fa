"""A server of one's own, with the open protocol of docs/http.md."""

from __future__ import annotations

from collections.abc import Callable

from hubqueue.config.declaration import Blocks, Destination, Key, Reader, Secret, Transport
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.http.settings import HttpSettings
from hubqueue.destinations.layout.drafts import completion, identify, registration
from hubqueue.domain.entry import Kind, Snapshot


def _open(
    settings: DestinationSettings,
    keys: Callable[[], tuple[Key, ...]],
    open_body: Callable[[Snapshot], Blocks],
) -> Transport:
    from hubqueue.destinations.http.transport import HttpTransport

    return HttpTransport(settings, keys, open_body)


def _read(settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> Reader:
    from hubqueue.destinations.http.reader import HttpReader

    return HttpReader(settings, keys)


def _signs(settings: DestinationSettings) -> bool:
    return bool(getattr(settings, "sign", True))


DESTINATION = Destination(
    type="http",
    settings=HttpSettings,
    secrets=(Secret("token"), Secret("signing_key", needed=_signs)),
    lanes=(Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.COMPLETION, Kind.HEARTBEAT),
    # A checkpoint is a file and a manifest.
    costs={Kind.CKPT: {"requests": 2, "uploads": 1}},
    takes_folders=True,
    takes_steps=True,
    identify=identify,
    registration=registration,
    completion=completion,
    open=_open,
    read=_read,
)
