"""A training of PyTorch Lightning: `python train_lightning.py --out DIR --epochs N [--resume] [--resume-from CHECKPOINT]`.

Variables choose how it trains:

    TRAIN_PACKAGE   lightning (default) or pytorch_lightning
    TRAIN_DEVICES   the number of processes; those of torchrun count as well
    TRAIN_IO        async: another thread writes the checkpoints, and only the newest one is kept; sharded: they are folders
    TRAIN_END       how epoch 1 ends: rank (the process with rank 1 is killed), rank-error (it raises an exception)

The witness: the metrics of its `CSVLogger`, and the hash of each file when its `CheckpointIO` has written it.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from script import PAUSE, arguments, digests, write_witness

PACKAGE = os.environ.get("TRAIN_PACKAGE", "lightning")
DEVICES = int(os.environ.get("TRAIN_DEVICES", "1"))
IO, END = os.environ.get("TRAIN_IO", ""), os.environ.get("TRAIN_END", "")
L: Any = importlib.import_module("lightning.pytorch" if PACKAGE == "lightning" else PACKAGE)
plugins: Any = importlib.import_module(f"{L.__name__}.plugins.io")

from hubqueue.integrations.lightning import HubqueueLogger  # noqa: E402  # after the package that the user has chosen

_STEP = re.compile(r"step=(\d+)")
_EPOCH = 1  # the epoch that TRAIN_END ends


class Model(L.LightningModule):
    """Two layers, and numbers of each step, of each epoch and of a validation."""

    def __init__(self, width: int = 8, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.layers = lr, torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 1))

    def configure_model(self) -> None:
        if IO == "sharded":
            from torch.distributed.fsdp import fully_shard

            fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)

    def training_step(self, batch: Any, _number: int) -> torch.Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, _number: int) -> None:
        self.log("val/loss", self._loss(batch), sync_dist=True)

    def _loss(self, batch: Any) -> torch.Tensor:
        given, wanted = batch
        return torch.nn.functional.mse_loss(self.layers(given), wanted)


class Pause(L.Callback):
    """Prints `epoch N` when everything of the epoch is logged, and waits so that the training can be killed."""

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch > trainer.epoch_at_start:
            self._report(trainer, trainer.current_epoch - 1)
        if END and trainer.current_epoch == _EPOCH:
            _end(trainer)

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        trainer.epoch_at_start = trainer.current_epoch

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        self._report(trainer, trainer.current_epoch - 1)

    def _report(self, trainer: Any, epoch: int) -> None:
        if trainer.is_global_zero:
            print(f"epoch {epoch}", flush=True)
        threading.Event().wait(PAUSE)


class HashingIO(plugins.TorchCheckpointIO):
    """Writes checkpoints as the framework does, and records the hash of each."""

    def __init__(self, record: Path) -> None:
        self._record = record

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path, storage_options)
        with self._record.open("a") as file:
            file.write(json.dumps([checkpoint["global_step"], digests(Path(path))]) + "\n")


def main() -> None:
    given = arguments()
    L.seed_everything(7)
    checkpoints = given.out / "checkpoints"
    resumed = str(given.resume_from) if given.resume_from else None
    if given.resume:
        resumed = str(max(checkpoints.glob("*.ckpt"), key=_step))
    previous = len(list(given.out.glob("csv/version_*")))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=DEVICES,
        strategy=_strategy(),
        plugins=_plugins(given.out),
        max_epochs=given.epochs,
        log_every_n_steps=1,
        logger=[
            L.loggers.CSVLogger(given.out, name="csv", version=previous, flush_logs_every_n_steps=1),
            HubqueueLogger(model_name="two-layers", destination=given.destination, timeout=10),
        ],
        callbacks=[
            Pause(),
            L.callbacks.ModelCheckpoint(dirpath=checkpoints, save_top_k=1 if IO == "async" else -1),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), _data(64), _data(16), ckpt_path=resumed)
    if trainer.is_global_zero:
        _write_witness(given.out)


def _strategy() -> Any:
    if IO == "sharded":
        return L.strategies.ModelParallelStrategy(data_parallel_size=DEVICES, tensor_parallel_size=1)
    return "ddp" if DEVICES > 1 else "auto"


def _plugins(out: Path) -> list[Any]:
    if IO == "sharded":
        return []
    io = HashingIO(out / "written.jsonl")
    return [plugins.AsyncCheckpointIO(io) if IO == "async" else io]


def _data(count: int) -> Any:
    generator = torch.Generator().manual_seed(count)
    given = torch.randn(count, 4, generator=generator)
    data = torch.utils.data.TensorDataset(given, given.sum(dim=1, keepdim=True))
    return torch.utils.data.DataLoader(data, batch_size=8)


def _end(trainer: Any) -> None:
    if trainer.global_rank == 1 and END == "rank":
        os.kill(os.getpid(), signal.SIGKILL)
    if trainer.global_rank == 1 and END == "rank-error":
        raise RuntimeError("this process fails")


def _write_witness(out: Path) -> None:
    rows = [
        row
        for path in sorted(out.glob("csv/version_*/metrics.csv"))
        for row in csv.DictReader(path.read_text().splitlines())
    ]
    metrics = [
        (int(row.pop("step")), {name: float(text) for name, text in row.items() if text}) for row in rows
    ]
    if IO == "sharded":
        written = {_step(path): digests(path) for path in (out / "checkpoints").glob("*.ckpt")}
    else:
        written = dict(json.loads(line) for line in (out / "written.jsonl").read_text().splitlines())
    title = f"{PACKAGE} {L.__version__}"
    write_witness(out, version=title, counts="step", metrics=metrics, checkpoints=written)


def _step(path: Path) -> int:
    found = _STEP.search(path.name)
    return int(found[1]) if found else -1


if __name__ == "__main__":
    main()
