"""What the training scripts share: their arguments, and the witness that each writes at its end.

A script trains a two-layer model on generated data. It prints `epoch N` after each epoch, and waits `PAUSE` seconds there, so
that it can be killed on its way. At its end it writes `witness.json` from the record of the framework: never from hubqueue.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

PAUSE = 0.2  # seconds


def arguments(*flags: str) -> argparse.Namespace:
    """`out`, `epochs`, `resume`, `resume_from` (None, or what `hubqueue pull` has printed), `destination` (a list of names).

    `flags` are further ones, which a case gives to its script.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="the folder of the training")
    parser.add_argument(
        "--epochs", type=int, required=True, help="all epochs, those before a resume included"
    )
    parser.add_argument("--resume", action="store_true", help="continue the training in --out")
    parser.add_argument(
        "--resume-from", type=Path, help="a checkpoint, out of a destination, to continue from"
    )
    parser.add_argument("--destination", action="append", help="the name of a destination, repeatable")
    for each in flags:
        parser.add_argument(each, action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    return given


def end(rank: int) -> None:
    """End the training here if `TRAIN_END` says so.

    `error` and `caught`: an exception, which the script catches or not; `interrupt`: Ctrl-C; `rank`: the process of rank 1 dies.
    """
    how = os.environ.get("TRAIN_END", "")
    if how in ("error", "caught"):
        raise RuntimeError("this training fails on purpose")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "rank" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def digests(path: Path) -> dict[str, str]:
    """The SHA-256 of a file by its name, or of each file of a folder by its path in it."""
    files = {path.name: path}
    if path.is_dir():
        files = {each.relative_to(path).as_posix(): each for each in path.rglob("*") if each.is_file()}
    return {name: hashlib.sha256(each.read_bytes()).hexdigest() for name, each in sorted(files.items())}


def write_witness(
    folder: Path,
    *,
    version: str,
    counts: Literal["epoch", "step"],
    metrics: Iterable[tuple[int, Mapping[str, float]]],
    checkpoints: Mapping[int, Mapping[str, str]],
) -> None:
    """Write `witness.json`. `version` is the framework with its version. Of two values with one number and name, the later counts."""
    found: dict[str, Any] = {"version": version, "counts": counts, "metrics": [], "checkpoints": {}}
    found["metrics"] = [[number, dict(values)] for number, values in metrics]
    found["checkpoints"] = {str(number): dict(files) for number, files in checkpoints.items()}
    (folder / "witness.json").write_text(json.dumps(found, indent=1))
