"""A folder: on a NAS, on a USB disk, or one that another program keeps in sync."""

from __future__ import annotations

from collections.abc import Callable

from hubqueue.config.declaration import Destination, Key, Reader, SeekableBlocks, Transport
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.folder.settings import FolderSettings
from hubqueue.destinations.layout.drafts import completion, identify, registration
from hubqueue.domain.entry import Kind, Snapshot


def _open(
    settings: DestinationSettings,
    keys: Callable[[], tuple[Key, ...]],
    open_body: Callable[[Snapshot], SeekableBlocks],
) -> Transport:
    from hubqueue.destinations.folder.store import Folder
    from hubqueue.destinations.layout.transport import LayoutTransport

    return LayoutTransport(Folder(settings), open_body)


def _read(settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> Reader:
    from hubqueue.destinations.folder.store import Folder
    from hubqueue.destinations.layout.reader import LayoutReader

    return LayoutReader(Folder(settings))


DESTINATION = Destination(
    type="folder",
    settings=FolderSettings,
    secrets=(),
    lanes=(Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.COMPLETION),
    takes_folders=True,
    takes_steps=True,
    read=_read,
    identify=identify,
    registration=registration,
    completion=completion,
    open=_open,
)
