"""A training loop with accelerate, as a user's script. A second tracker, which writes a file, is the witness.

`TRAIN_END` in the environment says how the training ends in its second epoch (see `script.end`).
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import accelerate
import torch
from accelerate.tracking import GeneralTracker, on_main_process
from script import PAUSE, arguments, digests, end, write_witness

from hubqueue.integrations.accelerate import HubqueueTracker

EVERY = 3  # steps


class Lines(GeneralTracker):
    """Writes what is logged to a file, a line each."""

    name = "lines"
    requires_logging_directory = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    @property
    def tracker(self) -> Path:
        return self._path

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_others: Any) -> None:
        append(self._path, [step, values])


def append(path: Path, line: object) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def lines_of(path: Path) -> list[Any]:
    return [json.loads(each) for each in path.read_text().splitlines()]


def main() -> None:
    given = arguments()
    lines, saved = given.out / "values.jsonl", given.out / "checkpoints.jsonl"
    tracker = HubqueueTracker("small", destination=given.destination)
    accelerator = accelerate.Accelerator(cpu=True, log_with=[tracker, Lines(lines)])
    accelerator.register_for_checkpointing(tracker)
    accelerator.init_trackers("project", config={"lr": 0.01, "epochs": given.epochs})
    torch.manual_seed(20261201)
    x = torch.randn(64, 8)
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=4
    )
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    model, optimizer, data = accelerator.prepare(model, torch.optim.Adam(model.parameters(), 0.01), data)
    begun = 0
    if given.resume_from is not None or given.resume:
        # The newest one that is whole: the training may have been killed while it wrote a checkpoint.
        folder = given.resume_from or given.out / f"checkpoint-{lines_of(saved)[-1][0]}"
        accelerator.load_state(str(folder))
        begun = int(tracker.state_dict()["step"]) // len(data)
    for epoch in range(begun, given.epochs):
        if epoch == 1:
            end(accelerator.process_index)
        for at, (inputs, targets) in enumerate(data, epoch * len(data) + 1):
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            if at % EVERY == 0 or at % len(data) == 0:
                mean = accelerator.gather(loss.detach()).mean().item()
                accelerator.log({"train/loss": mean}, step=at, log_kwargs={"hubqueue": {"epoch": epoch}})
        step = (epoch + 1) * len(data)
        accelerator.save_state(str(given.out / f"checkpoint-{step}"))
        accelerator.wait_for_everyone()
        tracker.save_checkpoint(given.out / f"checkpoint-{step}", step=step, epoch=epoch)
        if accelerator.is_main_process:
            append(saved, [step, digests(given.out / f"checkpoint-{step}")])
            print(f"epoch {epoch}", flush=True)
        threading.Event().wait(PAUSE)
    is_main = accelerator.is_main_process
    accelerator.end_training()
    if is_main:
        write_witness(
            given.out,
            version=f"accelerate {accelerate.__version__}",
            counts="step",
            metrics=lines_of(lines),
            checkpoints=dict(lines_of(saved)),
        )


if __name__ == "__main__":
    main()
