"""The examples that need a framework, as a person runs them. In the environment of `make test-frameworks`; skipped elsewhere."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from stage import ROOT, files_in

if any(find_spec(each) is None for each in ("torch", "optuna", "nbclient", "ipykernel")):
    pytest.skip("torch, optuna or nbclient is not installed: make test-frameworks", allow_module_level=True)
BIN = Path(sys.executable).parent
EXAMPLES = ROOT / "examples"
TRIALS = 200
EPOCHS = 40
_SECONDS = 500

pytestmark = pytest.mark.timeout(900)


class Machine:
    """The environment of a person with the configuration of the examples, and a home and a destination of their own."""

    def __init__(self, folder: Path, *, home: str = "home") -> None:
        self.folder, self.box = folder, folder / "person" / "hubqueue-examples"
        (folder / "person").mkdir(exist_ok=True)
        self.environ = {
            "HOME": str(folder / "person"),
            "PATH": f"{BIN}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HUBQUEUE_HOME": str(folder / home),
            "HUBQUEUE_CONFIG": str(EXAMPLES / "config.toml"),
            "HUBQUEUE_RATE_LIMITS__METRICS": "0.05",
            "HUBQUEUE_RETRY__CAP": "1",
            "HUBQUEUE_WORKER__IDLE_EXIT": "2",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command in the folder, with stdout and stderr in one pipe."""
        return subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str) -> str:
        """The output of a command that succeeds."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=_SECONDS)
        assert process.returncode == 0, output
        return output

    def killed(self, at: str, *command: str) -> str:
        """The output of a command that is killed with its children when it has printed a text."""
        process, lines = self.start(*command), list[str]()
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith(at):
                break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "".join(lines)
        return "".join(lines)

    def runs(self) -> dict[str, dict[str, Any]]:
        """The record of each run at the destination, by its name."""
        return {each.parent.name: json.loads(each.read_text()) for each in self.box.glob("*/run.json")}

    def metrics(self, run: str, number: str) -> dict[int, dict[str, Any]]:
        """The metrics of a run at the destination, by epoch or step."""
        texts = [each.read_text() for each in sorted(self.box.glob(f"{run}/metrics/*.jsonl"))]
        lines = [json.loads(line) for text in texts for line in text.splitlines()]
        return {each[number]: each["metrics"] for each in sorted(lines, key=lambda line: line["time"])}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# The sweep.


def used(pid: int) -> tuple[int, float]:
    """The open descriptors of a process, and its memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    memory = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert memory is not None
    return len(os.listdir(f"/proc/{pid}/fd")), int(memory[1]) / 1000


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc")
def test_a_sweep_of_two_hundred_trials_keeps_its_descriptors_and_its_memory(machine: Machine) -> None:
    sweep, at = machine.start("python", str(EXAMPLES / "sweep_optuna.py")), dict[int, tuple[int, float]]()
    assert sweep.stdout is not None
    lines = []
    for line in sweep.stdout:
        lines.append(line)
        if ended := re.search(r"Trial (\d+) (?:finished|pruned)", line):
            at[int(ended[1])] = used(sweep.pid)
    assert sweep.wait(_SECONDS) == 0, "".join(lines)
    machine.run("hubqueue", "drain", "--timeout", "400")

    assert len(at) == TRIALS
    descriptors, memory = zip(*(at[number] for number in (TRIALS // 4, TRIALS - 1)), strict=True)
    print(f"descriptors {descriptors}, MB {memory}")
    assert max(each for each, _ in at.values()) <= max(at[number][0] for number in range(20)) + 3
    assert memory[1] - memory[0] < 10, memory
    runs = machine.runs()
    assert sorted(runs) == [f"trial-{number:03}" for number in range(TRIALS)]
    assert {each["state"] for each in runs.values()} == {"finished"}
    pruned = {name: each["results"]["pruned"] for name, each in runs.items() if "pruned" in each["results"]}
    assert 0 < len(pruned) < TRIALS
    for name in runs:
        assert list(machine.metrics(name, "step")) == list(range(pruned.get(name, 9) + 1)), name


# The frameworks.


@pytest.mark.parametrize(
    ("framework", "counts", "numbers"),
    [
        ("keras", "epoch", [0, 1, 2, 3]),
        ("lightning", "step", [3, 7, 11, 15, 19, 23, 27, 31]),
        ("transformers", "step", [4, 8, 12, 16, 20, 24, 28, 32]),
        ("accelerate", "step", [0, 1, 2, 3]),
    ],
)
def test_a_training_with_a_framework_arrives_and_continues(
    machine: Machine, framework: str, counts: str, numbers: list[int]
) -> None:
    script = str(EXAMPLES / f"train_{framework}.py")
    machine.run("python", script, "--out", "out", "--epochs", "2")

    machine.run("python", script, "--out", "out", "--epochs", "4", "--resume")
    machine.run("hubqueue", "drain", "--timeout", "100")

    ((name, run),) = machine.runs().items()
    assert run["state"] == "finished"
    assert sorted(machine.metrics(name, counts)) == numbers
    # Keras ends with a final checkpoint, which supersedes those that still wait.
    records = [machine.box / name / each for each in ("final.json", "latest.json")]
    newest = json.loads(next(each for each in records if each.exists()).read_text())["checkpoint"]
    arrived = files_in(machine.box / name / "checkpoints" / newest)
    written = {hashlib.sha256(each).hexdigest() for each in files_in(machine.folder / "out").values()}
    hashes = [each["sha256"] for each in json.loads(arrived["manifest.json"])["files"]]
    assert hashes and set(hashes) <= written


# Plain PyTorch.


def losses(output: str) -> dict[int, str]:
    return {int(epoch): loss for epoch, loss in re.findall(r"^epoch (\d+): loss (\S+)", output, re.MULTILINE)}


def test_a_folder_checkpoint_of_pytorch_continues_after_a_kill_and_elsewhere(tmp_path: Path) -> None:
    script = str(EXAMPLES / "pytorch_dcp.py")
    (tmp_path / "witness").mkdir()
    witness = Machine(tmp_path / "witness")
    whole = losses(witness.run("python", script, "--out", "dcp", "--epochs", "12"))
    here = Machine(tmp_path)

    first = here.killed("epoch 3:", "python", script, "--out", "dcp", "--epochs", "8")
    second = here.run("python", script, "--out", "dcp", "--epochs", "10")
    here.run("hubqueue", "drain", "--timeout", "100")
    other = Machine(tmp_path, home="home-of-another-machine")
    third = other.run("python", script, "--out", "elsewhere", "--epochs", "12", "--resume-from", "box", "dcp")

    assert "(continued)" in second
    assert {**losses(first), **losses(second), **losses(third)} == whole
    assert min(losses(third)) == 10 and "everything has arrived" in third
    runs = here.runs()
    assert {name: each["state"] for name, each in runs.items()} == {
        "dcp": "finished",
        "elsewhere": "finished",
    }
    shown = {epoch: f"{each['loss']:.5f}" for epoch, each in here.metrics("dcp", "epoch").items()}
    assert shown == {epoch: loss for epoch, loss in whole.items() if epoch < 10}
    assert_whole(here, "dcp", tmp_path / "dcp" / "epoch-0009")
    assert_whole(here, "elsewhere", tmp_path / "elsewhere" / "epoch-0011")


def test_a_folder_checkpoint_of_two_processes_arrives_whole(machine: Machine) -> None:
    script = str(EXAMPLES / "pytorch_dcp.py")
    machine.run("python", script, "--out", "dcp", "--epochs", "2")

    several = machine.run(
        "torchrun", "--standalone", "--nproc-per-node", "2", script, "--out", "dcp", "--epochs", "4"
    )

    assert sorted(losses(several)) == [2, 3] and list(machine.runs()) == ["dcp"]
    assert sorted(machine.metrics("dcp", "epoch")) == [0, 1, 2, 3]
    names = assert_whole(machine, "dcp", machine.folder / "dcp" / "epoch-0003")
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata"} <= names


def assert_whole(machine: Machine, run: str, written: Path) -> set[str]:
    """The newest checkpoint at the destination has every file that PyTorch has written. Returns their names."""
    newest = json.loads((machine.box / run / "latest.json").read_text())["checkpoint"]
    arrived = files_in(machine.box / run / "checkpoints" / newest)
    manifest = json.loads(arrived.pop("manifest.json"))
    hashes = {name: hashlib.sha256(each).hexdigest() for name, each in files_in(written).items()}
    assert newest == written.name
    assert {each["path"]: each["sha256"] for each in manifest["files"]} == hashes
    assert {name: hashlib.sha256(each).hexdigest() for name, each in arrived.items()} == hashes
    return set(hashes)


# The notebook.


@pytest.fixture
def colab(machine: Machine) -> Machine:
    """A machine without any configuration: the notebook sets what it needs."""
    del machine.environ["HUBQUEUE_CONFIG"], machine.environ["HUBQUEUE_HOME"]
    machine.box = machine.folder / "trainings"
    return machine


def text_of(cell: dict[str, str]) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "|", cell["html"])) + cell["text"]


def epochs(cell: dict[str, str]) -> list[int]:
    """The epochs that a cell has printed."""
    return [int(each) for each in re.findall(r"^epoch (\d+)$", cell["text"], re.MULTILINE)]


def driven(machine: Machine, *arguments: str) -> list[dict[str, str]]:
    """The cells of the notebook, as `notebook.py` has run them."""
    driver, notebook = str(Path(__file__).with_name("notebook.py")), str(EXAMPLES / "notebook.ipynb")
    output = machine.run("python", driver, notebook, str(machine.folder), *arguments)
    found: list[dict[str, str]] = json.loads(output.splitlines()[-1])
    return found


def test_the_notebook_runs_from_the_first_cell_to_the_last(colab: Machine) -> None:
    cells = driven(colab)

    (run,) = colab.runs().values()
    assert run["state"] == "finished"
    assert "hubqueue run |" in text_of(cells[2])
    assert "hubqueue: everything has arrived" in text_of(cells[4])
    assert "all uploaded" in text_of(cells[5]) and " finished " in text_of(cells[5])


def test_cells_of_the_notebook_that_run_again_continue_the_run(colab: Machine) -> None:
    colab.box.touch()  # a file: the folder of the destination cannot be made

    ran = driven(colab, str(colab.box))

    cells = {each["cell"]: each for each in ran}
    assert cells["interrupted"]["error"] == "KeyboardInterrupt" and cells["again"]["error"] == "killed"
    ids: set[str] = {each for cell in ran for each in re.findall(r"run <code>(\w+)<", cell["html"])}
    assert len(ids) == 1
    (identity,) = ids
    again, restarted = (epochs(cells[each]) for each in ("again", "restarted"))
    assert again[0] >= 4 and restarted[0] >= 9 and restarted[-1] == EPOCHS - 1
    assert all(f"run {identity} (continued)" in cells[each]["text"] for each in ("again", "restarted"))

    shown, status = text_of(cells["display in an outage"]), cells["status in an outage"]["text"]
    waiting = re.search(r"(\d+) uploads \(", shown)
    # IPython runs the command in a terminal of 80 columns, where the first line is cut.
    lanes = sum(map(int, re.findall(r"^  \w+ +(\d+) waiting \(", status, re.MULTILINE)))
    assert waiting is not None and int(waiting[1]) == lanes > 0, (shown, status)
    error = re.search(r"last error: (.{20})", shown)
    assert error is not None and error[1] in status.replace("\n", " "), (shown, status)
    assert identity in status and " running" in status and status.count("\nrun ") == 1

    assert "hubqueue: everything has arrived" in text_of(cells["end"])
    assert "to box, finished: everything so far has arrived" in text_of(cells["display at the end"])
    assert "all uploaded" in cells["status"]["text"]
    (name,) = colab.runs()
    assert list(colab.metrics(name, "epoch")) == list(range(EPOCHS))
