"""PyTorch Lightning: one logger sends what the trainer logs, and each checkpoint that `ModelCheckpoint` writes.

pip install 'hubqueue[lightning]'
export HUBQUEUE_CONFIG=examples/config.toml
python examples/train_lightning.py --epochs 2
python examples/train_lightning.py --epochs 4 --resume  # the same run
"""

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hubqueue.integrations.lightning import HubqueueLogger


class Model(LightningModule):
    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()  # the arguments of the run
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

    def training_step(self, batch: list[torch.Tensor], _number: int) -> torch.Tensor:
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layers(x), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main(out: Path, epochs: int, resume: bool) -> None:
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True))
    trainer = Trainer(
        max_epochs=epochs,
        log_every_n_steps=4,
        logger=HubqueueLogger(),  # this line
        callbacks=[ModelCheckpoint(dirpath=out, save_last=True)],
    )
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    trainer.fit(Model(), loader, ckpt_path="last" if resume else None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("lightning-out"), help="the folder of the checkpoints"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--resume", action="store_true", help="continue the training in --out")
    main(**vars(parser.parse_args()))
