"""Platform showed less of a training sent by hubqueue than by the package: no machine, no repository, no load.

Here are what a start, an epoch and an end say of the training and its machine, that it is the training's own machine and
moment, and that no key and no private part of an address is in it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from stage import environ_of, hubqueue, platform_environ, python
from trainer import V84, Trainer

from hubqueue.destinations.platform.events import epoch_end
from hubqueue.destinations.platform.machine import masking
from hubqueue.destinations.platform.machine.repository import repository
from hubqueue.destinations.platform.machine.sampler import Sampler
from hubqueue.integrations.ultralytics.attachment import attach
from hubqueue.integrations.ultralytics.end_facts import results, thinned, validation
from hubqueue.producer.run import start_run
from hubqueue.sandbox import Sandbox

# What ultralytics 8.4.190 sends on a machine without a GPU, in a repository.
ENVIRONMENT = [
    "ultralyticsVersion",
    "hostname",
    "os",
    "environment",
    "pythonVersion",
    "pythonExecutable",
    "cpuCount",
    "cpu",
    "command",
    "totalRamGb",
    "totalDiskGb",
    "gitRepository",
    "gitBranch",
    "gitCommit",
    "gitCommitMessage",
]
SYSTEM = {"cpu", "ram", "disk", "disk_io", "network", "gpus"}
# These do not look like keys: only their context marks them.
NAMED, IN_URL, KNOWN = "SECRETZZZ", "SECRETYYY", "Vx3-qL8w_Tn5bZk2Jr7"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not report all of it")


@pytest.fixture
def at_hub(home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch, migrated_home: Path) -> Sandbox:
    for name, value in platform_environ(home, hub.url).items():
        monkeypatch.setenv(name, value)
    return hub


def sent(hub: Sandbox, name: str) -> list[dict[str, Any]]:
    return [each.data for model in hub.runs for each in hub.run(model).events if each.event == name]


def git(folder: Path, *words: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("there is no git on this machine")
    name = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@x.invalid"}
    name |= {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@x.invalid", "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *words]
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **name}, capture_output=True, text=True, check=True
    ).stdout.strip()


def committed(folder: Path, message: str = "a subject\n\nand a body", *options: str) -> Path:
    """A repository with one commit. Returns its folder."""
    return shutil.copytree(_committed(message, *options), folder, symlinks=True, dirs_exist_ok=True)


@cache
def _committed(message: str, *options: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="hq-repository-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    git(folder, "init", "--quiet", *options)
    git(folder, "remote", "add", "origin", "https://h.example/o/r.git")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", message)
    return folder


# The repository.


def _plain(at: Path) -> Path:
    return committed(at)


def _below(at: Path) -> Path:
    (committed(at) / "src" / "deep").mkdir(parents=True)
    return at / "src" / "deep"


def _packed(at: Path) -> Path:
    committed(at)
    git(at, "gc", "--quiet", "--aggressive", "--prune=now")
    assert not (at / ".git" / "refs" / "heads" / "main").exists()
    assert not list((at / ".git" / "objects").glob("[0-9a-f][0-9a-f]/*"))
    return at


def _worktree(at: Path) -> Path:
    git(committed(at / "first"), "worktree", "add", "--quiet", "-b", "topic/x", str(at / "second"))
    return at / "second"


def _submodule(at: Path) -> Path:
    committed(at / "inner")
    git(committed(at / "outer", "the outer one"), "submodule", "--quiet", "add", str(at / "inner"), "sub")
    git(at / "outer" / "sub", "remote", "set-url", "origin", "https://h.example/o/r.git")
    return at / "outer" / "sub"


def _borrowing(at: Path) -> Path:
    committed(at / "first")
    git(at, "clone", "--quiet", "--shared", str(at / "first"), "second")
    git(at / "second", "remote", "set-url", "origin", "https://h.example/o/r.git")
    return at / "second"


def _sha256(at: Path) -> Path:
    return committed(at, "a subject", "--object-format=sha256")


def _many_references(at: Path) -> Path:
    commit = git(committed(at), "rev-parse", "HEAD")
    names = [f"refs/pull/{number}/head" for number in range(200_000)]
    with (at / ".git" / "packed-refs").open("w") as file:
        file.write("# pack-refs with: peeled fully-peeled sorted \n")
        file.writelines(f"{commit} {name}\n" for name in ["refs/heads/main", *names])
    (at / ".git" / "refs" / "heads" / "main").unlink()
    return at


@pytest.mark.parametrize(
    "made",
    [_plain, _below, _packed, _worktree, _submodule, _borrowing, _sha256, _many_references],
    ids=lambda made: made.__name__,
)
def test_a_repository_is_described_as_git_describes_it(tmp_path: Path, made: Callable[[Path], Path]) -> None:
    folder = made(tmp_path / "code")

    assert repository(folder) == {
        "gitRepository": "https://h.example/o/r.git",
        "gitBranch": git(folder, "branch", "--show-current"),
        "gitCommit": git(folder, "rev-parse", "HEAD")[:12],
        "gitCommitMessage": "a subject",
    }


def test_a_detached_head_has_a_commit_and_no_branch(tmp_path: Path) -> None:
    git(committed(tmp_path), "checkout", "--quiet", "--detach")

    assert set(repository(tmp_path)) == {"gitRepository", "gitCommit", "gitCommitMessage"}


def test_a_repository_without_a_commit_and_a_remote_has_a_branch(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")

    assert repository(tmp_path) == {"gitBranch": "main"}


def _pipe(at: Path) -> None:
    (at / "HEAD").unlink()
    os.mkfifo(at / "HEAD")


def _elsewhere(at: Path) -> None:
    (at.parent / "private").write_text("a" * 40)
    (at / "HEAD").write_text("ref: refs/../../private\n")


def _circle(at: Path) -> None:
    (at / "refs" / "heads" / "main").write_text("ref: refs/heads/main\n")


def _no_git(at: Path) -> None:
    shutil.rmtree(at)


def _lost_folder(at: Path) -> None:
    shutil.rmtree(at)
    at.write_text("gitdir: /nonexistent/worktrees/x\n")


def _noise(at: Path) -> None:
    for name in ("HEAD", "config", "packed-refs", "refs/heads/main"):
        (at / name).write_bytes(os.urandom(5000))


@pytest.mark.parametrize("broken", [_pipe, _elsewhere, _circle, _no_git, _lost_folder, _noise])
def test_a_broken_repository_has_no_commit_and_nobody_waits(
    tmp_path: Path, broken: Callable[[Path], None]
) -> None:
    broken(committed(tmp_path) / ".git")

    assert "gitCommit" not in repository(tmp_path)


@pytest.mark.parametrize("kind", ["loose", "pack", "index"])
def test_a_damaged_object_costs_only_the_message(tmp_path: Path, kind: str) -> None:
    folder = committed(tmp_path) if kind == "loose" else _packed(tmp_path)
    pattern = {"loose": "[0-9a-f][0-9a-f]/*", "pack": "pack/*.pack", "index": "pack/*.idx"}[kind]
    for path in (folder / ".git" / "objects").glob(pattern):
        size = path.stat().st_size
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[: size // 4] + bytes(size - size // 4))

    assert set(repository(folder)) == {"gitRepository", "gitBranch", "gitCommit"}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"https://user:{IN_URL}@h.example/x.git", "https://h.example/x.git"),
        (f"https://{IN_URL}@h.example:8443/x.git", "https://h.example:8443/x.git"),
        (f"https://h.example/x.git?token={IN_URL}#{IN_URL}", "https://h.example/x.git"),
        (f"https://user:{IN_URL}/@h.example/x.git", "https://***"),
        (f"ssh://git:{IN_URL}@h.example/o/r", "ssh://h.example/o/r"),
        ("ssh://git@h.example:22/o/r.git", "ssh://git@h.example:22/o/r.git"),
        ("git@h.example:o/r.git", "git@h.example:o/r.git"),
        ("bob@h.example:/home/bob/r.git", "h.example:~/r.git"),
        (f"bob:{IN_URL}@h.example:r.git", "***"),
        ("HOME/r.git", "~/r.git"),
        ("file://HOME/r.git", "file://~/r.git"),
        ("../r", "../r"),
        (f'"https://u:{IN_URL}@h.example/x.git" ; a comment', "https://h.example/x.git"),
    ],
)
def test_the_address_of_a_repository_has_no_private_part(tmp_path: Path, url: str, shown: str) -> None:
    committed(tmp_path)
    home = os.path.expanduser("~")
    (tmp_path / ".git" / "config").write_text(
        f'[remote "fork"]\n url = x\n[Remote "origin"]\n\tURL = {url}\n'
    )
    text = (tmp_path / ".git" / "config").read_text().replace("HOME", home)
    (tmp_path / ".git" / "config").write_text(text)

    assert repository(tmp_path)["gitRepository"] == shown


def test_a_message_and_a_branch_are_masked_and_cut(tmp_path: Path) -> None:
    committed(tmp_path, f"use token={NAMED} " + "x" * 500)
    git(tmp_path, "checkout", "--quiet", "-b", "ghp_" + "a1" * 18)

    found = repository(tmp_path)

    assert found["gitBranch"] == "***"
    assert found["gitCommitMessage"].startswith("use token=*** xx")
    assert len(found["gitCommitMessage"]) == 200


@pytest.mark.parametrize("where", ["script", "cwd", "neither"])
def test_the_repository_is_that_of_the_script_else_of_the_folder(tmp_path: Path, where: str) -> None:
    for name in ("script", "cwd"):
        (tmp_path / name).mkdir()
    if where != "neither":
        committed(tmp_path / where, where)
    if where == "script":
        committed(tmp_path / "cwd", "a folder of data")
    program = tmp_path / "script" / "train.py"
    program.write_text(
        "from hubqueue.destinations.platform.machine.repository import repository\n"
        "print(repository().get('gitCommitMessage'))"
    )

    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path / "cwd",
        env=environ_of(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == {"neither": "None"}.get(where, where)


# The command line.


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train.py", "--api-key", NAMED, "--epochs", "3"], "train.py --api-key *** --epochs 3"),
        (["train.py", f"--token={NAMED}"], "train.py --token=***"),
        (["train.py", "--auth", f"-{NAMED}", "--verbose"], "train.py --auth *** --verbose"),
        (["train.py", f"wandb.api_key={NAMED}", "lr0=0.01"], "train.py wandb.api_key=*** lr0=0.01"),
        (["train.py", f"HF_TOKEN={NAMED}", "key_dim=64"], "train.py HF_TOKEN=*** key_dim=64"),
        (["train.py", f"https://u:{NAMED}@h.example/d.zip?k={NAMED}"], "train.py https://h.example/d.zip"),
        (["train.py", f"data=https://h.example/d?sig={NAMED}"], "train.py data=https://h.example/d"),
        (["train.py", f"postgresql://u:{NAMED}@h.example/x"], "train.py postgresql://h.example/x"),
        (["train.py", f"bob:{NAMED}@h.example:/data"], "train.py ***@h.example:/data"),
        (["train.py", f"curl --password {NAMED} x"], "train.py 'curl --password *** x'"),
        (
            ["train.py", f"--header=Authorization: Bearer {NAMED}"],
            "train.py '--header=Authorization: Bearer ***'",
        ),
        (["train.py", '{"pwd": "' + NAMED + '"}'], """train.py '{"pwd": "***"}'"""),
        (["train.py", f'["--token", "{NAMED}"]'], """train.py '["--token", "***"]'"""),
        (["train.py", "-u", f"bob:{NAMED}", f"--user=bob:{NAMED}"], "train.py -u bob:*** --user=bob:***"),
        (["train.py", "Cookie:", NAMED, "--key", f"----BEGIN{NAMED}"], "train.py Cookie: *** --key ***"),
        (["train.py", "ghp_" + "a1b2" * 9], "train.py ***"),
        (["train.py", "0123456789abcdef" * 2], "train.py ***"),
        (["train.py", "data=coco 8.yaml", ""], "train.py 'data=coco 8.yaml' ''"),
        (["train.py", "\x1b[31m\n"], "train.py '\\x1b[31m '"),
        (["yolo", "train", "model=yolo26n.pt", "epochs=3"], "yolo train model=yolo26n.pt epochs=3"),
        (["HOME/train.py", "data=HOME/d.yaml", "/mntHOME/x"], "~/train.py data=~/d.yaml /mntHOME/x"),
        ([], ""),
    ],
)
def test_a_command_line_says_what_ran_and_no_key(words: list[str], shown: str) -> None:
    home = os.path.expanduser("~")

    found = masking.shown_command([word.replace("HOME", home) for word in words])

    assert found == shown.replace("HOME", home)


def test_a_key_that_is_a_word_of_its_own_is_masked_if_an_argument_names_it() -> None:
    args: dict[str, Any] = {"hub": {"list": [{"token": ["short"]}], "api_key": NAMED}, "data": "d.yaml"}
    args |= {"itself": args, "again": [args] * 5}

    shown = masking.shown_command(["train.py", NAMED, f"x-{NAMED}", "short", "shorter", "d.yaml"], args)

    assert shown == "train.py *** x-*** *** shorter d.yaml"


def test_a_huge_command_line_is_cut_and_no_part_of_a_key_is_left() -> None:
    words = ["train.py", *["x" * 90] * 363, "--token", NAMED * 3000, f"--key={NAMED}"]

    shown = masking.shown_command(words)

    assert len(shown) <= 2000
    assert "SECRET" not in shown


# A training.

_SCRIPT = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
started = []
def note(event, given):
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty"):
        started.append(event)
import hubqueue
sys.addaudithook(note)
run = hubqueue.start_run("yolo26n.pt", args={"epochs": 2}, worker="none", strict=True)
for epoch in range(2):
    run.log_metrics({"loss": 1.0}, epoch=epoch)
run.log_metrics({"val": 2.0}, epoch=1)
run.finish(timeout=0)
print("programs:", started)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script in a repository whose remote, branch and commit hold secrets."""
    folder = committed(tmp_path / "code", f"password={NAMED}")
    git(folder, "remote", "set-url", "origin", f"https://user:{IN_URL}@h.example/o/r.git")
    (folder / "train.py").write_text(_SCRIPT)
    return folder / "train.py"


def _train(script: Path, environ: dict[str, str], *words: str, forks: bool = False) -> str:
    """The output of the script with these words; it `forks` where its command line does not matter."""
    if forks:
        training = python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", environ)
        said, _ = training.communicate(timeout=200)
        assert training.returncode == 0, said
        return said or ""
    command = [sys.executable, str(script), *words]
    done = subprocess.run(
        command, env=environ, cwd="/", capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@on_linux
def test_a_plain_script_says_what_the_package_says_and_no_key(hub: Sandbox, home: Path, script: Path) -> None:
    environ = platform_environ(home, hub.url, HUBQUEUE_KEY_OTHER=KNOWN)

    output = _train(script, environ, "--token", NAMED, f"--url=https://h.example/?x={IN_URL}", f"{KNOWN[1:]}")
    drained = hubqueue(environ, "drain", "--timeout", "100")

    (start,) = sent(hub, "training_started")
    assert set(ENVIRONMENT) - {"ultralyticsVersion"} <= set(start["environment"])
    assert start["environment"]["command"].endswith("train.py --token *** --url=https://h.example/ ***")
    assert start["environment"]["gitRepository"] == "https://h.example/o/r.git"
    assert set(start["system"]) == SYSTEM
    epochs = sent(hub, "epoch_end")
    assert [set(each["system"]) for each in epochs] == [SYSTEM] * len(epochs)
    assert not any("system" in name for each in epochs for name in each["metrics"])
    assert "programs: []" in output
    kept = [path for folder in (home, hub.data) for path in folder.rglob("*") if path.is_file()]
    everything = output + drained.stdout + drained.stderr
    everything += "".join(path.read_bytes().decode("utf-8", "replace") for path in kept)
    assert not [each for each in (NAMED, IN_URL, KNOWN, KNOWN[1:]) if each in everything]


def test_the_load_is_that_of_the_moment_when_an_epoch_was_logged(
    hub: Sandbox, home: Path, script: Path
) -> None:
    environ = platform_environ(home, hub.url)
    _train(script, environ, forks=True)
    with closing(sqlite3.connect(home / "outbox.db")) as database:
        rows = database.execute(
            "SELECT key, progress, payload FROM entries WHERE state = 'pending'"
        ).fetchall()
    logged = {key: json.loads(progress)["system"] for key, progress, _ in rows if progress}
    assert set(logged) == {"0", "1"}
    assert not any("disk_io" in payload for key, _, payload in rows if key in logged)

    hubqueue(environ, "drain", "--timeout", "100")  # another process, later

    assert {str(each["epoch"]): each["system"] for each in sent(hub, "epoch_end")} == logged


def test_a_damaged_load_does_not_cost_the_epoch() -> None:
    for damaged in ("{", "[]", '{"system": 3}', "", None):
        assert epoch_end(0, '{"loss": 1}', damaged) == {"epoch": 0, "metrics": {"loss": 1}}


def test_only_versions_are_sent_when_it_is_switched_off(hub: Sandbox, home: Path, script: Path) -> None:
    environ = platform_environ(home, hub.url, HUBQUEUE_DESTINATIONS__PLATFORM__ENVIRONMENT="false")

    _train(script, environ, "--x")
    hubqueue(environ, "drain", "--timeout", "100")

    (start,) = sent(hub, "training_started")
    assert set(start["environment"]) == {"pythonVersion", "hubqueueVersion"}
    assert "system" not in start
    assert not any("system" in each for each in sent(hub, "epoch_end"))
    assert sent(hub, "system_metrics") == []


def test_another_hub_gets_metrics_and_nothing_else(hub: Sandbox, home: Path, script: Path) -> None:
    environ = environ_of(home, hub.url)

    _train(script, environ, forks=True)
    hubqueue(environ, "drain", "--timeout", "100")

    (model,) = hub.models
    assert [sorted(each) for each in hub.metrics(model).values()] in (
        [["loss"], ["loss", "val"]],
        [["loss"], ["val"]],
    )


def test_a_training_without_a_folder_and_a_home_still_starts(hub: Sandbox, home: Path, script: Path) -> None:
    lost = script.parent.parent / "lost"
    lost.mkdir()
    program = (
        f"import os, runpy; os.chdir({str(lost)!r}); os.rmdir({str(lost)!r}); runpy.run_path({str(script)!r})"
    )
    environ = platform_environ(home, hub.url, HOME="/nonexistent")

    training = python(program, environ)
    said, _ = training.communicate(timeout=200)
    hubqueue(environ, "drain", "--timeout", "100")

    assert training.returncode == 0, said
    assert "hostname" in sent(hub, "training_started")[0]["environment"]


def test_a_metric_with_the_name_of_the_load_is_a_metric(at_hub: Sandbox, home: Path) -> None:
    run = start_run("yolo26n.pt", worker="none", strict=True)
    run.log_metrics({"system": 1.0, "best": 2.0}, epoch=0)
    run.finish(timeout=0)
    hubqueue(platform_environ(home, at_hub.url), "drain", "--timeout", "100")

    (epoch,) = sent(at_hub, "epoch_end")
    assert epoch["metrics"] == {"system": 1.0, "best": 2.0}
    assert isinstance(epoch["system"], dict)


# The load.


@on_linux
def test_a_sample_is_complete_plain_and_in_range() -> None:
    sampler = Sampler()

    found = sampler.sample()

    assert set(found) == SYSTEM
    assert all(0 <= found[name] <= 100 for name in ("cpu", "ram"))
    assert found["disk"][0]["mount"] == "/"
    assert all(0 <= each["used_gb"] <= each["total_gb"] for each in found["disk"])
    assert set(found["disk_io"]) == {"read_mbs", "write_mbs"}
    assert set(found["network"]) == {"recv_mbs", "sent_mbs"}
    assert found["gpus"] == {}
    assert sampler.sample() is found  # a rate over less than a second would be noise


_GPU_SCRIPT = """
import json, sys, types
sys.path.insert(0, sys.argv[1])
import torch
from hubqueue.destinations.platform.machine import gpus
print(json.dumps([gpus.hardware(), gpus.versions(), gpus.loads(sys.argv[2])]))
"""
_TORCH = """
import os
class version: cuda = "13.0"
class Props: name, total_memory = "NVIDIA L4", 22690 << 20
class cuda:
    is_initialized = staticmethod(lambda: os.environ["IN_USE"] == "1")
    is_available = staticmethod(lambda: 1 / 0)  # it would initialize CUDA
    device_count = staticmethod(lambda: 2)
    current_device = staticmethod(lambda: 0)
    memory_reserved = staticmethod(lambda at: int(os.environ["RESERVED"] == str(at)))
    get_device_properties = staticmethod(lambda _at: Props)
"""
_NVML = """
class Found: gpu, used, total = 95, 50, 200
nvmlInit = lambda: None
nvmlSystemGetDriverVersion = lambda: b"580.1"
nvmlSystemGetCudaDriverVersion_v2 = lambda: 13000
nvmlDeviceGetHandleByIndex = lambda at: at
nvmlDeviceGetUtilizationRates = nvmlDeviceGetMemoryInfo = lambda _at: Found
nvmlDeviceGetTemperature = lambda at, _kind: 70 + at
nvmlDeviceGetPowerUsage = lambda _at: 72900
NVML_TEMPERATURE_GPU = 0
"""


@pytest.mark.parametrize(
    ("in_use", "reserved", "device", "visible", "gpu"),
    [
        ("1", "1", "0", "", "1"),
        pytest.param("1", "none", "1", "", "1", marks=pytest.mark.slow),
        pytest.param("1", "none", "None", "", "0", marks=pytest.mark.slow),
        ("1", "1", "0", "4,6", "6"),
        ("0", "none", "0", "", None),
    ],
)
def test_the_gpus_are_those_of_this_training_and_cuda_is_not_initialized(
    tmp_path: Path, in_use: str, reserved: str, device: str, visible: str, gpu: str | None
) -> None:
    (tmp_path / "torch.py").write_text(_TORCH)
    (tmp_path / "pynvml.py").write_text(_NVML)
    environ = {**environ_of(tmp_path), "IN_USE": in_use, "RESERVED": reserved}
    environ |= {"CUDA_VISIBLE_DEVICES": visible} if visible else {}

    done = subprocess.run(
        [sys.executable, "-c", _GPU_SCRIPT, str(tmp_path), device],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    hardware, versions, loads = json.loads(done.stdout)
    if gpu is None:
        assert (versions, loads) == ({}, {})
    else:
        assert hardware == {"gpuCount": 2, "gpuType": "NVIDIA L4, 22690MiB"}
        assert versions == {"driver_version": "580.1", "cuda_version": "13.0"}
        assert loads == {gpu: {"usage": 95, "memory": 25.0, "temp": 70 + int(gpu), "power": 72}}


# A training of the package.


class Yolo:
    """A replacement for `YOLO(...)` with what `attach` needs."""

    def __init__(self, folder: Path) -> None:
        self.callbacks: dict[str, list[Callable[[Any], None]]] = {}
        self.folder = folder

    def train(self, **options: Any) -> Trainer:
        given = {"project": "coco", "name": "exp-1", "task": "detect", **options}
        trainer = Trainer(self.folder, habits=V84, callbacks=self.callbacks, **given)
        trainer.train()
        return trainer


class Holder:
    """An object with attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def _validated(trainer: Trainer) -> None:
    images = {f"{name}_x.jpg": {"f1": f1, "tp": 1, "fp": 2, "fn": 3} for name, f1 in (("b", 1.0), ("a", 0.5))}
    metrics = Holder(box=Holder(image_metrics=images), ap_class_index=[1])
    curve = {"data": {"type": "pr_curve", "x": [0.0, 1.0], "y": [[1.0, 0.0]]}}
    plots = {
        "one.png": curve,
        "two.png": {"data": {"type": "confusion_matrix", "matrix": [[1]]}},
        "three.png": {},
    }
    trainer.validator = Holder(names={0: "cat", 1: "dog"}, metrics=metrics, plots=plots)  # type: ignore[attr-defined]
    trainer.plots = {"four.png": {"data": {"type": "results", "x": [1], "y": [2]}}}  # type: ignore[attr-defined]


def test_an_end_has_the_validation_of_each_image_and_the_plots(at_hub: Sandbox, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train")
    attach(model, worker="thread", timeout=60)
    model.train(epochs=1, events={"on_train_end": _validated})

    (end,) = sent(at_hub, "training_complete")
    rows = [["a", 1, 2, 3], ["b", 1, 2, 3]]
    assert end["results"]["validation"] == {
        "population": 2,
        "sampling": "f1_rank",
        "rows": rows,
        "extremes": {"worst": rows, "best": rows[::-1]},
    }
    assert end["plots"] == [
        {"type": "results", "x": [1], "y": [2]},
        {"type": "confusion_matrix", "matrix": [[1]]},
        {"type": "pr_curve", "x": [0.0, 1.0], "y": [[1.0, 0.0]], "classes": [1]},
    ]
    assert end["classNames"] == ["cat", "dog"]


def test_many_images_are_sampled_evenly_and_the_extremes_are_exact() -> None:
    images = {f"{at:05}.jpg": {"f1": at / 20_000, "tp": at, "fp": 0, "fn": 0} for at in range(20_000)}

    found: Any = validation(images)

    assert (found["population"], len(found["rows"])) == (20_000, 5000)
    counts = [row[1] for row in found["rows"]]
    assert (counts[0], counts[-1]) == (0, 19_999)
    assert {after - before for before, after in pairwise(counts)} <= {3, 4, 5}
    assert [row[1] for row in found["extremes"]["worst"]] == list(range(100))
    assert [row[1] for row in found["extremes"]["best"]] == list(range(19_999, 19_899, -1))


def test_a_curve_is_interpolated_at_101_points() -> None:
    x = [at / 1000 for at in range(1001)]

    found = thinned({"type": "f1_curve", "x": x, "y": [[2 * each for each in x], [None] * 1001], "ap": [0.5]})

    assert found["x"] == pytest.approx([at / 100 for at in range(101)])
    assert found["y"][0] == pytest.approx([at / 50 for at in range(101)])
    assert found["y"][1] == [None] * 101
    assert found["ap"] == [0.5]


def test_results_of_an_unknown_trainer_are_sent_without_what_it_lacks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = Holder(epoch=3, metrics={"m": 0.5}, args=Holder(task="detect"), data=None)
    trainer.validator = Holder(
        metrics=Holder(box=Holder(image_metrics={"a.jpg": {"unknown": 1}})), plots=None
    )
    trainer.depth_calibration = {"scale": 1.5, "all": "x" * 100_000}

    with caplog.at_level(logging.WARNING):
        found = results(trainer)

    assert set(found) == {"metrics", "bestEpoch", "bestFitness", "classNames"}
    assert "without validation" in caplog.text
    assert "without the calibration: it is too large" in caplog.text


def test_a_plot_too_large_for_one_request_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Holder(epoch=3, metrics={}, args=Holder(task="detect"), validator=None)
    wide = {"type": "confusion_matrix", "matrix": [[0.0] * 1204] * 1204}
    curve = {"type": "f1_curve", "x": [0.0, 1.0], "y": [[1.0, float("nan")]]}
    trainer.plots = {"a": {"data": wide}, "b": {"data": curve}}

    with caplog.at_level(logging.WARNING):
        found: Any = results(trainer)

    assert found["plots"] == [{**curve, "y": [[1.0, None]]}]
    assert "without the plot confusion_matrix" in caplog.text


def test_a_calibration_is_sent(at_hub: Sandbox, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train")
    attach(model, worker="thread", timeout=60)
    model.train(
        epochs=1, events={"on_train_end": lambda trainer: setattr(trainer, "depth_calibration", {"a": 1})}
    )

    assert sent(at_hub, "training_complete")[0]["results"]["calibration"] == {"a": 1}


@pytest.fixture
def loud() -> Iterator[logging.Logger]:
    package = logging.getLogger("ultralytics")
    level = package.level
    package.setLevel(logging.INFO)
    yield package
    package.setLevel(level)


def test_lines_carry_the_progress_and_the_last_ones_no_bar(
    at_hub: Sandbox, tmp_path: Path, loud: logging.Logger
) -> None:
    def say(trainer: Trainer) -> None:
        trainer.train_loader = [None] * 4  # type: ignore[attr-defined]
        for line in range(5 if trainer.epoch < 2 else 1):
            loud.info("epoch %d, line %d", trainer.epoch, line)

    model = Yolo(tmp_path / "train")
    attach(model, worker="thread", timeout=60, console=True)
    model.train(epochs=3, events={"on_train_epoch_start": say})

    chunks = sent(at_hub, "console_output")
    assert [each["progress"] for each in chunks] == [{}, {"training": "epoch 1/3: 25% 1/4 batches"}, {}]
    assert [each["lineCount"] for each in chunks] == [5, 5, 1]


def test_progress_that_waits_is_replaced_and_lines_are_not(at_hub: Sandbox, home: Path) -> None:
    run = start_run("yolo26n.pt", worker="none", strict=True)
    for percent in range(5):
        run.log_console("", lines=0, progress={"training": f"{percent} %, token={NAMED}"})
        run.log_console("a line", progress={})
    run.finish(timeout=0)
    hubqueue(platform_environ(home, at_hub.url), "drain", "--timeout", "100")

    chunks = sent(at_hub, "console_output")
    assert sum(each["lineCount"] for each in chunks) == 5
    assert [each["progress"] for each in chunks if each["progress"]] == [{"training": "4 %, token=***"}]
    assert len({each["chunkId"] for each in chunks}) == 6
