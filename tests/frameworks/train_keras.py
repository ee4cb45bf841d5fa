"""A training with Keras 3, as a user's script: `ModelCheckpoint` keeps every model, `CSVLogger` is the witness.

With `--backup` the checkpoint is the folder of `BackupAndRestore`, which each epoch overwrites.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import threading
from pathlib import Path

import keras
import numpy as np
from script import PAUSE, arguments, digests, write_witness

from hubqueue.integrations.keras import HubqueueCallback

_EPOCH = re.compile(r"model-(\d+)\.keras")


def compiled() -> keras.Model:
    """A model of two layers."""
    keras.utils.set_random_seed(20261201)
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)], name="small"
    )
    model.compile(keras.optimizers.Adam(0.01), loss="mse", metrics=["mae"])
    return model


class Pause(keras.callbacks.Callback):
    """Prints the number of each epoch, and waits. It is the last callback."""

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        print(f"epoch {epoch}", flush=True)
        threading.Event().wait(PAUSE)


class Hashes(keras.callbacks.Callback):
    """The hashes of a folder that each epoch overwrites, one line an epoch."""

    def __init__(self, folder: Path, lines: Path) -> None:
        super().__init__()
        self._folder, self.lines = folder, lines

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        with self.lines.open("a") as file:
            file.write(json.dumps([epoch, digests(self._folder)]) + "\n")

    @property
    def by_epoch(self) -> dict[int, dict[str, str]]:
        return dict(json.loads(line) for line in self.lines.read_text().splitlines())


def main() -> None:
    given = arguments("--backup")
    x = np.random.default_rng(1).normal(size=(64, 8)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    model, first = compiled(), 0
    if given.resume_from is not None and given.backup:
        shutil.copytree(given.resume_from, given.out / "backup")
    elif given.resume_from is not None:
        model, first = keras.models.load_model(given.resume_from), _number(given.resume_from)
    # Restores the state and the number of the epoch if an earlier training of this folder was interrupted.
    backup = keras.callbacks.BackupAndRestore(given.out / "backup", delete_checkpoint=not given.backup)
    hashes = Hashes(given.out / "backup", given.out / "hashes.jsonl")
    saving = keras.callbacks.ModelCheckpoint(given.out / "model-{epoch:03d}.keras")
    model.fit(
        x,
        y,
        epochs=given.epochs,
        initial_epoch=first,
        validation_split=0.25,
        verbose=0,
        callbacks=[
            backup,
            hashes,
            keras.callbacks.CSVLogger(given.out / "log.csv", append=given.resume),
            saving,
            HubqueueCallback(backup if given.backup else saving, destination=given.destination),
            Pause(),
        ],
    )
    with (given.out / "log.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    models = {_number(each) - 1: digests(each) for each in given.out.glob("model-*.keras")}
    write_witness(
        given.out,
        version=f"keras {keras.__version__}",
        counts="epoch",
        metrics=[(int(row.pop("epoch")), row) for row in rows],
        checkpoints=hashes.by_epoch if given.backup else models,
    )


def _number(path: Path) -> int:
    """The number in the name of a model: Keras counts the epochs from 1 there."""
    found = _EPOCH.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])


if __name__ == "__main__":
    main()
