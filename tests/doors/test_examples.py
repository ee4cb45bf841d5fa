"""The examples that need no framework, as a person runs them: with a folder as the destination, and with bash for SLURM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from stage import PATIENCE, ROOT

EPOCHS = 60
JOB = "4711"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who has activated an environment and chosen the configuration of the examples."""
    (tmp_path / "person").mkdir()
    return {
        "HOME": str(tmp_path / "person"),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HUBQUEUE_CONFIG": str(ROOT / "examples" / "config.toml"),
        "PYTHONPATH": str(ROOT),
    }


def task(environ: Mapping[str, str], number: int) -> subprocess.Popen[str]:
    """One task of the array, as SLURM starts it."""
    own = {"SLURM_JOB_ID": f"{int(JOB) + 1 + number}", "SLURM_ARRAY_JOB_ID": JOB}
    own["SLURM_ARRAY_TASK_ID"] = str(number)
    command = [
        "bash",
        "examples/slurm/array.sbatch",
        "--epochs",
        str(EPOCHS),
        "--out",
        f"{environ['HOME']}/out",
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env={**environ, **own}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def drain(environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "examples/slurm/drain.sbatch", JOB],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def received(home: str) -> Iterator[tuple[str, dict[str, Any], list[int], dict[str, Any]]]:
    """The runs in the folder of the destination: name, record, epochs with metrics, and the final checkpoint."""
    for each in sorted(Path(home, "hubqueue-examples").glob("*/run.json")):
        lines = [
            json.loads(line)
            for path in each.parent.glob("metrics/*.jsonl")
            for line in path.read_text().splitlines()
        ]
        final = json.loads((each.parent / "final.json").read_text())["checkpoint"]
        (weights,) = (each.parent / "checkpoints" / final).glob("last.json")
        epochs = sorted({line["epoch"] for line in lines})
        yield each.parent.name, json.loads(each.read_text()), epochs, json.loads(weights.read_text())


def test_each_example_is_in_the_list_and_begins_with_what_it_shows() -> None:
    listed = (ROOT / "examples" / "README.md").read_text()
    examples = [
        each
        for each in (ROOT / "examples").rglob("*")
        if each.suffix in {".py", ".sbatch", ".ipynb", ".toml"}
    ]

    assert len(examples) >= 7
    for each in examples:
        text = each.read_text()
        assert each.name in listed or f"{each.parent.name}/" in listed, each
        begins = text.startswith(('"""', "#")) or each.suffix == ".ipynb"
        assert begins and len(text.splitlines()) < 200, each


def test_a_slurm_array_arrives_after_a_task_was_killed_and_requeued(environ: Mapping[str, str]) -> None:
    tasks = [task(environ, number) for number in range(4)]
    assert tasks[2].stdout is not None
    for line in tasks[2].stdout:
        if line.startswith("epoch 5:"):
            tasks[2].send_signal(signal.SIGKILL)
    tasks[2].wait(PATIENCE)
    assert tasks[2].returncode == -signal.SIGKILL
    early = drain(environ)  # what a killed task has saved is worth sending
    assert early.returncode in (0, 3), early.stderr

    requeued = task(environ, 2)
    out, err = requeued.communicate(timeout=PATIENCE)

    assert requeued.returncode == 0, err
    assert "(continued)" in err and not out.startswith("epoch 0:")
    for each in (*tasks[:2], tasks[3]):
        _, errors = each.communicate(timeout=PATIENCE)
        assert each.returncode == 0, errors
    late = drain(environ)
    assert late.returncode == 0, late.stdout + late.stderr
    found = list(received(environ["HOME"]))
    assert [name for name, *_ in found] == [f"line-{JOB}-{number}" for number in range(4)]
    for _, record, epochs, state in found:
        assert record["state"] == "finished" and epochs == list(range(EPOCHS))
        assert state["epochs"] == EPOCHS and abs(state["slope"] - 3) < 0.3
    assert [record["args"]["lr"] for _, record, *_ in found] == [0.05, 0.1, 0.2, 0.4]
    assert len(os.listdir(Path(environ["HOME"], "hubqueue", JOB))) == 4
