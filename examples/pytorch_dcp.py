"""Plain PyTorch whose checkpoints are folders (torch.distributed.checkpoint), in one process or in several with torchrun.

    pip install hubqueue torch
    export HUBQUEUE_CONFIG=examples/config.toml
    python examples/pytorch_dcp.py --out dcp --epochs 5
    torchrun --standalone --nproc-per-node 2 examples/pytorch_dcp.py --out dcp --epochs 10  # continues it
    python examples/pytorch_dcp.py --out elsewhere --epochs 12 --resume-from box dcp        # on another machine

The folder of an epoch may be deleted as soon as `save_checkpoint` returns: what is sent is a private copy. Rank 0 alone has a run.
"""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import hubqueue


def train(out: Path, epochs: int, resume_from: list[str] | None) -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    first, found = 0, newest(out, resume_from)
    if found is not None:
        first = load(found, model, optimizer)
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(2 + rank()))
    y = x.sum(dim=1, keepdim=True)
    run = None
    if rank() == 0:
        run = hubqueue.start_run(
            "small", args={"epochs": epochs}, name=out.name, resume="last" if found else None
        )
    for epoch in range(first, epochs):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        average([each.grad for each in model.parameters()])
        optimizer.step()
        folder = out / f"epoch-{epoch:04}"
        # Returns when all ranks have written their files.
        dcp.save(state_of(model, optimizer, epoch), checkpoint_id=folder)
        if run is not None:
            run.log_metrics({"loss": loss.item()}, epoch=epoch)
            run.save_checkpoint(folder, epoch=epoch)
            shutil.rmtree(out / f"epoch-{epoch - 1:04}", ignore_errors=True)
            print(f"epoch {epoch}: loss {loss.item():.5f}", flush=True)
    if run is not None:
        left = run.finish(timeout=30)
        print("everything has arrived" if not left else f"left: {left}")


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "epoch": torch.tensor(epoch)}


def load(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint; return the number of the next epoch."""
    state = state_of(model, optimizer, 0)
    dcp.load(state, checkpoint_id=folder)  # in place
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return int(state["epoch"]) + 1


def newest(out: Path, resume_from: list[str] | None) -> Path | None:
    """The newest checkpoint here, else the one that a destination has of a run. All ranks may ask at once."""
    # DCP writes .metadata last: without it a folder was left by a training that died while it wrote.
    here = sorted(each.parent for each in out.glob("epoch-*/.metadata"))
    if here or resume_from is None:
        return here[-1] if here else None
    destination, run = resume_from
    return hubqueue.pull(destination, run=run, to=out / "pulled")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def average(gradients: list[torch.Tensor | None]) -> None:
    for each in gradients:
        if each is not None and dist.is_initialized():
            dist.all_reduce(each)
            each.div_(dist.get_world_size())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("dcp"), help="the folder of the checkpoints")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--resume-from", nargs=2, metavar=("DESTINATION", "RUN"))
    given = parser.parse_args()
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
    train(given.out, given.epochs, given.resume_from)
    if dist.is_initialized():
        dist.destroy_process_group()
