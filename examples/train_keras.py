"""Keras 3: one callback sends what `fit` logs, and each model that `ModelCheckpoint` writes.

pip install 'hubqueue[keras]' torch
export HUBQUEUE_CONFIG=examples/config.toml
python examples/train_keras.py --epochs 2
python examples/train_keras.py --epochs 4 --resume  # the same run
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")  # any backend will do

import keras
import numpy as np

from hubqueue.integrations.keras import HubqueueCallback


def main(out: Path, epochs: int, resume: bool) -> None:
    x = np.random.default_rng(1).normal(size=(256, 8)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    model, first = (
        keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)]),
        0,
    )
    model.compile("adam", loss="mse")
    if resume:
        newest = max(out.glob("model-*.keras"))
        model, first = keras.models.load_model(newest), int(newest.stem.removeprefix("model-"))
    saving = keras.callbacks.ModelCheckpoint(out / "model-{epoch:03d}.keras")
    model.fit(
        x,
        y,
        epochs=epochs,
        initial_epoch=first,
        validation_split=0.25,
        callbacks=[saving, HubqueueCallback(saving)],  # this line
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("keras-out"), help="the folder of the checkpoints")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--resume", action="store_true", help="continue the training in --out")
    main(**vars(parser.parse_args()))
