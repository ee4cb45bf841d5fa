"""Reads a trainer of the ultralytics package (8.2 to 8.4): its arguments, metrics, files, and the run it belongs to.

Everything comes from the trainer's public attributes in those versions. The only import from the package is its
function that describes a model, in the first epoch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hubqueue.config.declaration import Destination
from hubqueue.config.filesystem.ownership import read_small
from hubqueue.integrations.record import read_record
from hubqueue.producer.survival import logger

_LOG = logger()
_MEAN_PRECISION = re.compile(r"metrics/mAP50-95\([BMP]\)")


def arguments(trainer: Any) -> dict[str, object]:
    """The training's arguments by name."""
    args = trainer.args
    return dict(args) if isinstance(args, Mapping) else dict(vars(args))


def model_name(trainer: Any) -> str:
    """The model file that the training started with, such as `yolov8n.pt`."""
    return str(getattr(trainer.args, "model", None) or "model.pt")


def spawns_processes(trainer: Any) -> bool:
    """Whether the training itself runs in other processes, one per GPU."""
    several = int(getattr(trainer, "world_size", 0) or 0) > 1
    return several and "LOCAL_RANK" not in os.environ


def metrics(trainer: Any, declared: Destination, *, first: bool) -> dict[str, object]:
    """Losses and validation metrics of the epoch, with the model's size in the first one.

    A HUB gets the same values as from its own callback; other hubs also get `lr`, `fitness` and `best_fitness`.
    """
    values = dict(trainer.label_loss_items(trainer.tloss, prefix="train"))
    values.update(trainer.metrics or {})
    values.pop("fitness", None)
    if declared.wants_fitness:
        values["fitness"] = getattr(trainer, "fitness", None)
        values["best_fitness"] = getattr(trainer, "best_fitness", None)
        groups = getattr(getattr(trainer, "optimizer", None), "param_groups", None)
        if groups:
            values["lr"] = groups[0]["lr"]
    if first:
        values.update(_model_info(trainer))
    return values


def mean_precision(trainer: Any) -> float:
    """The mAP50-95 of the best model: of boxes, else of masks or poses; 0.0 when the task has none."""
    found: Mapping[str, Any] = trainer.metrics or {}
    names = ["metrics/mAP50-95(B)", *(name for name in found if _MEAN_PRECISION.fullmatch(name))]
    with contextlib.suppress(TypeError, ValueError):
        return float(next((found[name] for name in names if name in found), 0.0))
    return 0.0


def final_checkpoint(trainer: Any) -> Path | None:
    """`best.pt`, else `last.pt` (a resumed training may have no `best.pt`); None without either."""
    candidates = [Path(each) for each in (trainer.best, trainer.last) if each]
    return next((path for path in candidates if path.is_file()), None)


def retire(trainer: Any, declared: Destination, events: Iterable[str]) -> None:
    """Remove the package's own callbacks for this type of hub from a training."""
    module = f"ultralytics.utils.callbacks.{declared.type}"
    for event in events:
        found = trainer.callbacks.get(event, [])
        found[:] = [callback for callback in found if getattr(callback, "__module__", "") != module]


def progress(trainer: Any, batches: int) -> dict[str, str]:
    """The progress of a training after some batches of its epoch, as the text of a bar by its name."""
    epoch, epochs = int(trainer.epoch) + 1, int(trainer.epochs)
    try:
        total = len(trainer.train_loader)
    except (AttributeError, TypeError):  # a loader without a length
        return {"training": f"epoch {epoch}/{epochs}: {batches} batches"}
    percent = round(100 * batches / total) if total else 100
    return {"training": f"epoch {epoch}/{epochs}: {percent}% {batches}/{total} batches"}


def recorded(trainer: Any, others: Iterable[str]) -> dict[str, str]:
    """The recorded run of a resumed training: `run`, `model` and, once known, `remote_id`; empty for a new training.

    If the training started with the package's own callback for Platform, that callback's record has the model's id: `others`
    are the names of such records.
    """
    if not getattr(trainer.args, "resume", False):
        return {}
    folder = Path(trainer.save_dir)
    if record := read_record(folder):
        return record
    for each in others:
        with contextlib.suppress(OSError, ValueError):
            return {"remote_id": read_small(folder / each).decode("utf-8").strip()}
    return {}


def _model_info(trainer: Any) -> dict[str, object]:
    try:
        package = importlib.import_module("ultralytics.utils.torch_utils")
        return dict(package.model_info_for_loggers(trainer))
    except Exception as error:  # third-party code, and the result is optional
        _LOG.debug("the model's size could not be read: %s", error)
        return {}
