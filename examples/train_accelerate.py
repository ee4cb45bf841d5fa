"""accelerate: one tracker sends what is logged, and the folder of each `save_state`. Of several processes the main one sends.

pip install 'hubqueue[accelerate]' torch
export HUBQUEUE_CONFIG=examples/config.toml
python examples/train_accelerate.py --epochs 2
torchrun --standalone --nproc-per-node 2 examples/train_accelerate.py --epochs 4 --resume  # the same run
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator

from hubqueue.integrations.accelerate import HubqueueTracker


def main(out: Path, epochs: int, resume: bool) -> None:
    tracker = HubqueueTracker("small")
    accelerator = Accelerator(log_with=tracker)
    accelerator.register_for_checkpointing(tracker)  # the checkpoints know their run
    accelerator.init_trackers("project", config={"lr": 0.01})
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True))
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    first = 0
    if resume:
        newest = max(out.glob("epoch-*"))
        accelerator.load_state(str(newest))
        first = int(newest.name.removeprefix("epoch-")) + 1
    for epoch in range(first, epochs):
        for inputs, targets in loader:
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        mean = accelerator.gather(loss.detach()).mean().item()
        accelerator.log({"train/loss": mean}, step=epoch, log_kwargs={"hubqueue": {"epoch": epoch}})
        folder = out / f"epoch-{epoch:04}"
        accelerator.save_state(str(folder))
        accelerator.wait_for_everyone()  # each process has written its part
        tracker.save_checkpoint(folder, step=epoch, epoch=epoch)
    accelerator.end_training()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("accelerate-out"), help="the folder of the checkpoints"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--resume", action="store_true", help="continue the training in --out")
    main(**vars(parser.parse_args()))
