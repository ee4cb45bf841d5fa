"""A trainer with the attributes and the order of events that the callbacks of the ultralytics package see.

It computes nothing. It writes checkpoint files as `torch.save` does: over the previous file, in place. `Habits` are the
differences between versions: the epoch of the final validation, and the time of the first event.
"""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Habits:
    """The differences between versions: the first event in the constructor, a new epoch for the final validation."""

    begins_in_constructor: bool
    final_counts_on: bool


V82 = Habits(begins_in_constructor=False, final_counts_on=False)
V83 = Habits(begins_in_constructor=True, final_counts_on=False)
V84 = Habits(begins_in_constructor=True, final_counts_on=True)


class Trainer:
    """A training of `epochs` epochs in `folder`. `events` are callables by event name, called before its callbacks."""

    def __init__(
        self,
        folder: Path,
        *,
        epochs: int = 3,
        habits: Habits = V82,
        callbacks: Mapping[str, list[Callable[[Any], None]]] | None = None,
        events: Mapping[str, Callable[[Trainer], None]] | None = None,
        metrics: Callable[[int], dict[str, Any]] | None = None,
        resume: bool = False,
        start_epoch: int = 0,
        **args: Any,
    ) -> None:
        given = {"model": "yolov8n.pt", "data": "coco8.yaml", "epochs": epochs, "batch": 16, "imgsz": 64}
        given |= {"patience": 100, "device": None, "cache": False, "project": None, "name": "train"}
        self.args = types.SimpleNamespace(**given, resume=resume)
        self.args.__dict__.update(args)
        self.habits, self.epochs, self.start_epoch = habits, epochs, start_epoch
        self.callbacks: dict[str, list[Callable[[Any], None]]] = defaultdict(list)
        for event, hooks in (callbacks or {}).items():
            self.callbacks[event] = list(hooks)
        self.events = dict(events or {})
        self.save_dir = folder
        self.last, self.best = folder / "weights" / "last.pt", folder / "weights" / "best.pt"
        self.last.parent.mkdir(parents=True, exist_ok=True)
        self.hub_session: Any = None
        self.stop, self.device, self.world_size = False, "cpu", 0
        self.epoch = start_epoch
        self.tloss = 0.0
        self.metrics: dict[str, Any] = {}
        self.fitness, self.best_fitness = 0.0, None
        self.optimizer = types.SimpleNamespace(param_groups=[{"lr": 0.01}])
        self.validated = metrics or (lambda epoch: {"metrics/mAP50-95(B)": round(0.1 * (epoch + 1), 3)})
        self.written: dict[str, bytes] = {}
        if habits.begins_in_constructor:
            self.call("on_pretrain_routine_start")

    def label_loss_items(self, _loss: object, prefix: str = "train") -> dict[str, float]:
        return {f"{prefix}/box_loss": round(1.0 / (self.epoch + 1), 5)}

    def call(self, event: str) -> None:
        if event in self.events:
            self.events[event](self)
        for callback in self.callbacks.get(event, []):
            callback(self)

    def train(self) -> None:
        """All epochs, the final validation, the end."""
        if not self.habits.begins_in_constructor:
            self.call("on_pretrain_routine_start")
        self.call("on_pretrain_routine_end")
        self.call("on_train_start")
        for epoch in range(self.start_epoch, self.epochs):
            self.epoch = epoch
            self.call("on_train_epoch_start")
            self.call("on_train_batch_end")
            self.call("on_train_epoch_end")
            self.metrics = self.validated(epoch)
            self.fitness = float(epoch)
            self.best_fitness = self.fitness
            self.stop = self.stop or epoch + 1 >= self.epochs
            self._write(self.last, f"weights of epoch {epoch}".encode())
            self._write(self.best, f"weights of epoch {epoch}".encode())
            self.call("on_model_save")
            self.call("on_fit_epoch_end")
            if self.stop:
                break
        self._validate_best()
        self.call("on_train_end")
        self.call("teardown")

    def _validate_best(self) -> None:
        if not self.best.exists():
            return
        self._write(self.best, self.best.read_bytes() + b", stripped")
        self.metrics = {"metrics/mAP50-95(B)": 0.99}
        self.epoch += self.habits.final_counts_on
        self.call("on_fit_epoch_end")
        self.epoch -= self.habits.final_counts_on

    def _write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.written[path.name] = content


class Yolo:
    """A replacement for `YOLO(...)` with what `attach` needs: callbacks that each training uses, and `train`."""

    def __init__(self, folder: Path, habits: Habits = V84, trainer: type[Trainer] = Trainer) -> None:
        self.callbacks: dict[str, list[Callable[[Any], None]]] = {}
        self.folder, self.habits, self.kind = folder, habits, trainer
        self.trainer: Trainer | None = None

    def train(self, **options: Any) -> Trainer:
        self.trainer = self.kind(self.folder, habits=self.habits, callbacks=self.callbacks, **options)
        self.trainer.train()
        return self.trainer
