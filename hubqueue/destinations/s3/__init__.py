"""A bucket: of AWS, or of another server that speaks S3."""

from __future__ import annotations

from collections.abc import Callable

from hubqueue.config.declaration import Destination, Key, Reader, SeekableBlocks, Transport
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.layout.drafts import completion, identify, registration
from hubqueue.destinations.s3.chain import SECRETS
from hubqueue.destinations.s3.settings import S3Settings
from hubqueue.domain.entry import Kind, Snapshot


def _open(
    settings: DestinationSettings,
    keys: Callable[[], tuple[Key, ...]],
    open_body: Callable[[Snapshot], SeekableBlocks],
) -> Transport:
    from hubqueue.destinations.layout.retention import Keeping
    from hubqueue.destinations.layout.transport import LayoutTransport
    from hubqueue.destinations.s3.store import Bucket

    assert isinstance(settings, S3Settings)
    keeping = Keeping(settings.keep_last, settings.keep_best)
    return LayoutTransport(Bucket(settings, keys), open_body, keeping=keeping)


def _read(settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> Reader:
    from hubqueue.destinations.layout.reader import LayoutReader
    from hubqueue.destinations.s3.store import Bucket

    assert isinstance(settings, S3Settings)
    return LayoutReader(Bucket(settings, keys))


def _removes_older(settings: DestinationSettings) -> bool:
    assert isinstance(settings, S3Settings)
    return bool(settings.keep_last or settings.keep_best)


DESTINATION = Destination(
    type="s3",
    settings=S3Settings,
    secrets=SECRETS,
    address_variables={"endpoint_url": "AWS_ENDPOINT_URL_S3"},
    lanes=(Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.COMPLETION),
    takes_folders=True,
    takes_steps=True,
    read=_read,
    removes_older=_removes_older,
    identify=identify,
    registration=registration,
    completion=completion,
    open=_open,
)
