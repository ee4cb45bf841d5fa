"""A repository on the Hugging Face Hub, or on another server with its API."""

from __future__ import annotations

from collections.abc import Callable

from hubqueue.config.declaration import Destination, Key, Reader, Secret, SeekableBlocks, Transport
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.huggingface.client_token import kept_by_the_client
from hubqueue.destinations.huggingface.settings import HuggingfaceSettings
from hubqueue.destinations.layout.drafts import completion, identify, registration
from hubqueue.domain.entry import Kind, Snapshot


def _open(
    settings: DestinationSettings,
    keys: Callable[[], tuple[Key, ...]],
    open_body: Callable[[Snapshot], SeekableBlocks],
) -> Transport:
    from hubqueue.destinations.huggingface.transport import HuggingfaceTransport

    assert isinstance(settings, HuggingfaceSettings)
    return HuggingfaceTransport(settings, keys, open_body)


def _read(settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> Reader:
    from hubqueue.destinations.huggingface.calls import Calls
    from hubqueue.destinations.huggingface.repository import Repository
    from hubqueue.destinations.layout.reader import LayoutReader

    assert isinstance(settings, HuggingfaceSettings)
    return LayoutReader(Repository(settings, Calls(settings, keys)))


DESTINATION = Destination(
    type="huggingface",
    settings=HuggingfaceSettings,
    secrets=(Secret("token", "HF_TOKEN", kept_by_the_client),),
    address_variables={"url": "HF_ENDPOINT"},
    lanes=(Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.COMPLETION),
    takes_folders=True,
    takes_steps=True,
    read=_read,
    identify=identify,
    registration=registration,
    completion=completion,
    open=_open,
    service="hubqueue.destinations.huggingface.sandbox:FakeHuggingface",
)
