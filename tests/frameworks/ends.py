"""Trainings that do not reach their end, and several in one process: which runs there are, and how each has ended."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from frameworks.received import Failed
from frameworks.stage import HERE, PYTHON, ROOT
from stage import environ_of

_LONGEST = 240.0  # seconds of one process
_DIES = r"SIGTERM|\w*Error"  # the launcher ends rank 0, unless that has noticed the death before


@dataclass(frozen=True)
class End:
    """A script with `how` it ends (see `script.end`). `runs` has the expected state and error of each; `launcher` as in `Case`."""

    script: str
    how: str
    runs: tuple[tuple[str, str], ...]
    launcher: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.script.removeprefix('train_').removesuffix('.py')}, {self.how}"


def check(end: End, folder: Path) -> str:
    """Train, deliver, compare. Returns the states; raises Failed with the output of the training."""
    lab = {
        "HUBQUEUE_DESTINATIONS__LAB__TYPE": "folder",
        "HUBQUEUE_DESTINATIONS__LAB__PATH": str(folder / "lab"),
    }
    own = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRAIN_END": end.how}
    environ = environ_of(folder / "home", **lab, **own)
    arguments = ("--out", str(folder / "out"), "--epochs", "3", "--destination", "lab")
    trained = _python(environ, *end.launcher, str(HERE / end.script), *arguments)
    _python(environ, "-m", "hubqueue", "drain", "--timeout", "60")
    found = [json.loads(each.read_text()) for each in (folder / "lab").glob("*/run.json")]
    ends = [
        (each["state"], each.get("error", ""))
        for each in sorted(found, key=lambda run: str(run["started_at"]))
    ]
    if len(ends) != len(end.runs) or not all(
        state == wanted and re.fullmatch(pattern, error)
        for (state, error), (wanted, pattern) in zip(ends, end.runs, strict=True)
    ):
        raise Failed(f"the runs are {ends}, not {end.runs}\n{trained.stdout[-3000:]}")
    for run in found:
        _check_newest(folder / "lab" / run["name"], run["args"], end)
    return ", ".join(f"{state} ({error})" if error else state for state, error in ends)


def _check_newest(run: Path, args: dict[str, object], end: End) -> None:
    """Each run has a checkpoint. That of a trial has the parameters of this trial."""
    newest = next(iter(run.glob("latest.json")), None)
    if newest is None:
        raise Failed(f"{run.name} has no checkpoint")
    if end.how == "search":
        checkpoint = run / "checkpoints" / json.loads(newest.read_text())["checkpoint"]
        params = json.loads((checkpoint / "trainer_state.json").read_text())["trial_params"]
        if params != {"learning_rate": args["learning_rate"]}:
            raise Failed(f"{run.name} has the checkpoint of a trial with {params}")


def _python(environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    out, same = subprocess.PIPE, subprocess.STDOUT
    return subprocess.run(
        [str(PYTHON), *arguments],
        env=environ,
        stdout=out,
        stderr=same,
        text=True,
        timeout=_LONGEST,
        check=False,
    )


_FINISHED = ("finished", "")
_UNREACHED = "the training did not reach its end"


def ends_of(launcher: tuple[str, ...]) -> tuple[End, ...]:
    """Those of transformers and accelerate; `launcher` starts two processes."""
    return (
        End("train_transformers.py", "error", (("failed", "RuntimeError"),)),
        End("train_transformers.py", "caught", (("failed", _UNREACHED),)),
        End("train_transformers.py", "interrupt", (("failed", "KeyboardInterrupt"),)),
        End("train_transformers.py", "rank", (("failed", _DIES),), launcher),
        End("train_transformers.py", "search", (_FINISHED, _FINISHED)),
        End("train_accelerate.py", "error", (("failed", "RuntimeError"),)),
        End("train_accelerate.py", "interrupt", (("failed", "KeyboardInterrupt"),)),
        End("train_accelerate.py", "rank", (("failed", _DIES),), launcher),
    )
