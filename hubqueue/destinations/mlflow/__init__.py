"""An MLflow tracking server, 2.x or 3.x, over its REST API."""

from __future__ import annotations

from collections.abc import Callable

from hubqueue.config.declaration import Destination, Key, Reader, Secret, SeekableBlocks, Transport
from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.layout.drafts import completion, identify
from hubqueue.destinations.mlflow.drafts import registration
from hubqueue.destinations.mlflow.keys import borrowed
from hubqueue.destinations.mlflow.settings import MlflowSettings
from hubqueue.domain.entry import Kind, Snapshot


def _open(
    settings: DestinationSettings,
    keys: Callable[[], tuple[Key, ...]],
    open_body: Callable[[Snapshot], SeekableBlocks],
) -> Transport:
    from hubqueue.destinations.mlflow.transport import MlflowTransport

    return MlflowTransport(settings, keys, open_body)


def _read(settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> Reader:
    from hubqueue.destinations.mlflow.reader import MlflowReader

    return MlflowReader(settings, keys)


DESTINATION = Destination(
    type="mlflow",
    settings=MlflowSettings,
    secrets=(Secret("key", "MLFLOW_TRACKING_TOKEN", borrowed),),
    key_optional=True,
    address_variables={"url": "MLFLOW_TRACKING_URI", "experiment": "MLFLOW_EXPERIMENT_NAME"},
    lanes=(Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.COMPLETION),
    # A start is looked for before it is made; a checkpoint is a file, its records and their lists.
    costs={Kind.REGISTRATION: {"requests": 4}, Kind.CKPT: {"requests": 12, "uploads": 1}},
    takes_folders=True,
    takes_steps=True,
    identify=identify,
    registration=registration,
    completion=completion,
    open=_open,
    read=_read,
    service="hubqueue.destinations.mlflow.sandbox:FakeMlflow",
)
