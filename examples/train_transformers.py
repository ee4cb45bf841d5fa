"""transformers: one callback sends what a `Trainer` logs, and each checkpoint folder that it writes. TRL's trainers work too.

pip install 'hubqueue[transformers]' torch accelerate
export HUBQUEUE_CONFIG=examples/config.toml
python examples/train_transformers.py --epochs 2
python examples/train_transformers.py --epochs 4 --resume  # the same run
"""

import argparse
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from hubqueue.integrations.transformers import HubqueueCallback


class Model(torch.nn.Module):
    """Two layers in place of a language model, so that nothing has to be downloaded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        predicted = self.layers(x)
        return {"loss": torch.nn.functional.mse_loss(predicted, labels), "logits": predicted}


def main(out: Path, epochs: int, resume: bool) -> None:
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    settings = TrainingArguments(
        output_dir=str(out),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=0.01,
        logging_steps=4,
        save_strategy="epoch",
        save_total_limit=1,  # each checkpoint is copied before it is deleted
        report_to="none",
    )
    trainer = Trainer(
        Model(),
        settings,
        train_dataset=[{"x": each, "labels": each.sum().reshape(1)} for each in x],
        callbacks=[HubqueueCallback()],  # this line
    )
    trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("transformers-out"), help="the folder of the checkpoints"
    )
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--resume", action="store_true", help="continue the training in --out")
    main(**vars(parser.parse_args()))
