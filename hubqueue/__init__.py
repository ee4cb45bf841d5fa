"""hubqueue: the upload queue that a training run can trust.

    import hubqueue

    run = hubqueue.start_run(model="yolov8n.pt", args={"epochs": 100, "data": "coco8.yaml"})
    run.log_metrics({"train/box_loss": 1.2}, epoch=0)
    run.save_checkpoint("last.pt", epoch=0)
    left = run.finish(timeout=30)

Importing it costs next to nothing: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hubqueue.__about__ import __version__

if TYPE_CHECKING:
    from hubqueue.domain.errors import HubqueueError
    from hubqueue.integrations.hub_session.session import HUBTrainingSession
    from hubqueue.outbox.outbox import Outbox, open_outbox
    from hubqueue.producer.leftover import Leftover
    from hubqueue.producer.run import Run, start_run
    from hubqueue.producer.several.savings import RunDestination
    from hubqueue.retrieval.pull import pull
    from hubqueue.retrieval.verify import Verification, verify

_HOMES = {
    "HUBTrainingSession": "hubqueue.integrations.hub_session.session",
    "HubqueueError": "hubqueue.domain.errors",
    "Leftover": "hubqueue.producer.leftover",
    "Outbox": "hubqueue.outbox.outbox",
    "Run": "hubqueue.producer.run",
    "RunDestination": "hubqueue.producer.several.savings",
    "Verification": "hubqueue.retrieval.verify",
    "open_outbox": "hubqueue.outbox.outbox",
    "pull": "hubqueue.retrieval.pull",
    "start_run": "hubqueue.producer.run",
    "verify": "hubqueue.retrieval.verify",
}

__all__ = [
    "HUBTrainingSession",
    "HubqueueError",
    "Leftover",
    "Outbox",
    "Run",
    "RunDestination",
    "Verification",
    "__version__",
    "open_outbox",
    "pull",
    "start_run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "ultralytics":
        return importlib.import_module("hubqueue.ultralytics")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
