"""One task of an array job: it fits a line in plain Python, and only saves (`worker="none"`). See array.sbatch.

It runs without SLURM too:

    HUBQUEUE_CONFIG=examples/config.toml python examples/slurm/train.py --lr 0.1 && hubqueue drain
"""

import argparse
import json
import os
import random
from pathlib import Path

import hubqueue


def train(epochs: int, lr: float, out: str) -> None:
    name = "line-{}-{}".format(*(os.environ.get(f"SLURM_ARRAY_{each}_ID", "0") for each in ("JOB", "TASK")))
    checkpoint = Path(out, name, "last.json")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = {"epochs": 0, "slope": 0.0, "offset": 0.0}
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text())
    # The home is that of this task: "last" is its run, after a requeue too. The first time there is none.
    with hubqueue.start_run("line", args={"lr": lr}, name=name, worker="none", resume="last") as run:
        for epoch in range(state["epochs"], epochs):
            loss = learn(state, lr, random.Random(epoch))
            # Before the checkpoint: a task that dies between the two repeats the epoch, and none is missing.
            run.log_metrics({"loss": loss}, epoch=epoch)
            state["epochs"] = epoch + 1
            replace(checkpoint, json.dumps(state))
            run.save_checkpoint(checkpoint, epoch=epoch)
            print(f"epoch {epoch}: loss {loss:.5f}", flush=True)
        run.save_checkpoint(checkpoint, epoch=epochs - 1, final=True)


def learn(state: dict, lr: float, dice: random.Random) -> float:
    """One epoch of gradient descent on points of y = 3x + 1, with noise; the mean loss."""
    total = 0.0
    for _ in range(100):
        x = dice.uniform(-1, 1)
        error = state["slope"] * x + state["offset"] - (3 * x + 1 + dice.gauss(0, 0.1))
        state["slope"] -= lr * error * x
        state["offset"] -= lr * error
        total += error * error
    return total / 100


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--out", default="runs", help="the folder of the checkpoints")
    train(**vars(parser.parse_args()))
