"""Real trainings of each framework with hubqueue's integration: destinations that are down half the time, a kill -9, a resume.

    make test-frameworks
    make test-frameworks FRAMEWORKS=keras

Each training is a separate process, in an environment with the CPU build of torch. After its end, when everything is
delivered, each destination must have what the framework itself has recorded: every number of every epoch or step, and the files
of every checkpoint byte for byte. It prints a table.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from frameworks.ends import check, ends_of
from frameworks.received import Failed
from frameworks.stage import OUTAGE, Case, Row, Training

# Two processes on the CPU. `--cpu` would start one, unless there is mpirun.
LAUNCH = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)
CASES = (
    Case("keras", "train_keras.py"),
    Case("keras, with the folder of its backup", "train_keras.py", arguments=("--backup",)),
    Case("transformers", "train_transformers.py"),
    Case("transformers, 2 processes", "train_transformers.py", LAUNCH),
    Case("accelerate", "train_accelerate.py"),
    Case("accelerate, 2 processes", "train_accelerate.py", LAUNCH),
    Case("lightning", "train_lightning.py"),
    Case("pytorch_lightning", "train_lightning.py", settings={"TRAIN_PACKAGE": "pytorch_lightning"}),
    Case("lightning, AsyncCheckpointIO", "train_lightning.py", settings={"TRAIN_IO": "async"}),
    Case("lightning, 2 processes", "train_lightning.py", settings={"TRAIN_DEVICES": "2"}),
    Case(
        "lightning, torchrun, sharded checkpoints",
        "train_lightning.py",
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        settings={"TRAIN_DEVICES": "2", "TRAIN_IO": "sharded"},
    ),
)
_HEAD = "| framework | equal to its own record | checkpoints equal by hash (folder/bucket) | kills | owed at the kill | requests lost | pulls | seconds |"


def main(chosen: list[str]) -> int:
    """Run the cases whose title contains one of the given words (default: all). Returns the number of failures."""
    rows, failed = [_HEAD, "|---" * (_HEAD.count("|") - 1) + "|"], 0
    print(f"the bucket and MLflow are {OUTAGE:g} s down and {OUTAGE:g} s up; each training is killed once")
    for case in CASES:
        if chosen and not any(word in case.title for word in chosen):
            continue
        with tempfile.TemporaryDirectory(prefix="hubqueue-framework-") as folder:
            started, training = time.monotonic(), Training(case, Path(folder))
            try:
                rows.append(_line(case, training.run(), time.monotonic() - started))
                print(f"ok      {case.title}", flush=True)
            except (Failed, AssertionError) as error:
                failed += 1
                print(f"FAILED  {case.title}: {error}\n{training.output()}", flush=True)
            finally:
                training.close()
    for end in ends_of(LAUNCH):
        if chosen and not any(word in end.title for word in chosen):
            continue
        with tempfile.TemporaryDirectory(prefix="hubqueue-framework-") as folder:
            try:
                print(f"ok      {end.title}: {check(end, Path(folder))}", flush=True)
            except (Failed, AssertionError) as error:
                failed += 1
                print(f"FAILED  {end.title}: {error}", flush=True)
    print("\n".join(rows))
    print(f"{failed} failed")
    return failed


def _line(case: Case, row: Row, seconds: float) -> str:
    shown = (
        row.version + case.title.removeprefix(row.version.split()[0]),
        row.counted,
        row.checkpoints,
        row.kills,
        row.owed,
        row.refused,
        row.pulls,
        f"{seconds:.0f}",
    )
    return f"| {' | '.join(map(str, shown))} |"


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
