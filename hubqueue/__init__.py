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
    from hubqueue.errors import HubqueueError
    from hubqueue.leftover import Leftover
    from hubqueue.outbox import Outbox, open_outbox
    from hubqueue.run import Run, start_run
    from hubqueue.session import HUBTrainingSession

_HOMES = {
    "HUBTrainingSession": "hubqueue.session",
    "HubqueueError": "hubqueue.errors",
    "Leftover": "hubqueue.leftover",
    "Outbox": "hubqueue.outbox",
    "Run": "hubqueue.run",
    "open_outbox": "hubqueue.outbox",
    "start_run": "hubqueue.run",
}

__all__ = [
    "HUBTrainingSession",
    "HubqueueError",
    "Leftover",
    "Outbox",
    "Run",
    "__version__",
    "open_outbox",
    "start_run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
