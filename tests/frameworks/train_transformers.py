"""A training with a `Trainer` of transformers, as a user's script. Its `trainer_state.json` is the witness.

`save_total_limit` deletes most checkpoints soon, so their hashes are taken when they are written. `TRAIN_END` in the environment
says how the training ends in its second epoch (see `script.end`). With `search` two trials are trained, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from pathlib import Path
from typing import Any

import torch
import transformers
from script import PAUSE, arguments, digests, end, write_witness
from transformers import Trainer, TrainerCallback, TrainingArguments

from hubqueue.integrations.transformers import HubqueueCallback


class Small(torch.nn.Module):
    """Two layers and their loss, as a `Trainer` calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        predicted = self.layers(x)
        return {"loss": torch.nn.functional.mse_loss(predicted, labels), "logits": predicted}


class Hashes(TrainerCallback):
    """Hashes each checkpoint when it is whole, prints the number of the epoch, and waits. It is the last callback."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        if round(state.epoch or 0) == 1:
            end(args.process_index)

    def on_save(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            found = digests(folder) if folder.exists() else {}  # a trial has a folder of its own
            with self._path.open("a") as file:
                file.write(json.dumps([state.global_step, found]) + "\n")
            print(f"epoch {round(state.epoch) - 1}", flush=True)
        threading.Event().wait(PAUSE)


def examples(number: int, seed: int) -> list[dict[str, torch.Tensor]]:
    x = torch.randn(number, 8, generator=torch.Generator().manual_seed(seed))
    return [{"x": each, "labels": each.sum().reshape(1)} for each in x]


def trainer_of(given: argparse.Namespace, hashes: Path) -> Trainer:
    settings = TrainingArguments(
        output_dir=str(given.out),
        num_train_epochs=given.epochs,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        logging_steps=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(
        args=settings,
        model_init=Small,
        train_dataset=examples(64, seed=1),
        eval_dataset=examples(16, seed=2),
        callbacks=[HubqueueCallback(destination=given.destination), Hashes(hashes)],
    )


def search(trainer: Trainer) -> None:
    """Two trials, each with its own learning rate."""
    trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 0.001, 0.01)},
        backend="optuna",
        n_trials=2,
    )


def main() -> None:
    given = arguments()
    hashes = given.out / "checkpoints.jsonl"
    trainer = trainer_of(given, hashes)
    if os.environ.get("TRAIN_END") == "search":
        search(trainer)
        return
    first = 0
    if given.resume_from is not None:
        first = json.loads((given.resume_from / "trainer_state.json").read_text())["global_step"]
    try:
        trainer.train(resume_from_checkpoint=str(given.resume_from) if first else given.resume)
    except RuntimeError:
        if os.environ.get("TRAIN_END") != "caught":
            raise
        return
    trainer.evaluate()  # an evaluation after the training belongs to it
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    # It begins with what it had before: a further training is another run, which has only its own steps.
    log = json.loads((given.out / "trainer_state.json").read_text())["log_history"]
    write_witness(
        given.out,
        version=f"transformers {transformers.__version__}",
        counts="step",
        metrics=[(each.pop("step"), each) for each in log if each["step"] > first],
        checkpoints=dict(map(json.loads, hashes.read_text().splitlines())),
    )


if __name__ == "__main__":
    main()
