"""One real training of the ultralytics package, as a user's script: `train.py DOOR MODEL FOLDER [LAST]`.

Run `train.py settle FOLDER` once before. LAST is a checkpoint to resume from.

DOOR is `attach` (hubqueue's own callbacks), `attach-console` (with the package's log), `drop-in` (the package's
callbacks/hub.py over HUBTrainingSession) or `package` (the package alone).
What the trainer really produced is written to FOLDER/witness.jsonl. Each line is synced before the training continues.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import vision_ops

EPOCHS = 3


class Witness:
    """Callbacks that record what the trainer produced."""

    EVENTS = ("on_train_start", "on_train_epoch_start", "on_fit_epoch_end", "on_model_save", "on_train_end")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._in_epoch, self._epoch = False, -1

    def on_train_start(self, trainer: Any) -> None:
        if getattr(trainer, "hub_session", None) is not None:
            # The original callbacks skip checkpoints within 15 minutes of the last one; this training is shorter.
            trainer.hub_session.rate_limits.update(ckpt=0)

    def on_train_epoch_start(self, trainer: Any) -> None:
        self._in_epoch, self._epoch = True, int(trainer.epoch)
        self._write("begun", epoch=self._epoch)

    def on_fit_epoch_end(self, trainer: Any) -> None:
        found = {**trainer.label_loss_items(trainer.tloss, prefix="train"), **trainer.metrics}
        metrics = {name: float(value) for name, value in found.items()}
        event = "validated" if self._in_epoch else "validated best"
        self._write(event, epoch=self._epoch, metrics=metrics)
        self._in_epoch = False

    def on_model_save(self, trainer: Any) -> None:
        files = {path.name: _digest(path) for path in (trainer.last, trainer.best) if path.is_file()}
        self._write("saved", epoch=int(trainer.epoch), files=files, last=str(trainer.last))

    def on_train_end(self, trainer: Any) -> None:
        self._write("ended", epoch=int(trainer.epoch), final=_digest(trainer.best))

    def _write(self, event: str, **facts: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def main(door: str, model: str, folder: Path, last: str | None) -> None:
    """Train, from the start or from the last checkpoint."""
    ultralytics = importlib.import_module("ultralytics")
    hubqueue = importlib.import_module("hubqueue")
    if door == "drop-in":
        # As documented in docs/ultralytics.md.
        for name in ("ultralytics.hub", "ultralytics.engine.model"):
            importlib.import_module(name).__dict__["HUBTrainingSession"] = hubqueue.HUBTrainingSession
    from_hub = "://" in model
    yolo = ultralytics.YOLO(last if last and not from_hub else model)
    witness = Witness(folder / "witness.jsonl")
    for event in Witness.EVENTS:
        yolo.add_callback(event, getattr(witness, event))
    if door.startswith("attach"):
        importlib.import_module("hubqueue.integrations.ultralytics.attachment").attach(
            yolo, console=door == "attach-console"
        )
    if from_hub:
        yolo.train()  # with the hub's arguments, from the hub's last weights when it has some
    else:
        # With plots, where what is sent is compared with what the package sends.
        with_plots = door in {"package", "attach-console"}
        yolo.train(**({"resume": True} if last else _arguments(folder, plots=with_plots)))


def _arguments(folder: Path, *, plots: bool) -> dict[str, Any]:
    small = {"imgsz": 64, "batch": 4, "workers": 0, "device": "cpu", "amp": False, "plots": plots}
    where = {"data": str(folder / "data.yaml"), "project": "Coco 8", "name": "Exp 1"}
    return {**small, **where, "epochs": EPOCHS, "exist_ok": True}


def settle(folder: Path) -> None:
    """Write the package's settings, which it reads when it is imported, and a font that it would download otherwise."""
    matplotlib = importlib.import_module("matplotlib")
    settings = Path(os.environ["YOLO_CONFIG_DIR"]) / "Ultralytics"
    for target in (settings, settings.parent):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(
            Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", target / "Arial.ttf"
        )
    given: dict[str, Any] = {"hub": True, "api_key": os.environ["HUB_API_KEY"], "sync": False}
    given |= {f"{name}_dir": str(folder / name) for name in ("runs", "weights", "datasets")}
    known = importlib.import_module("ultralytics.utils").SETTINGS
    known.update({name: value for name, value in given.items() if name in known})


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    vision_ops.define()
    if sys.argv[1] == "settle":
        settle(Path(sys.argv[2]))
    else:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
