"""One real training with a hub that is down half the time, killed once and resumed; and the comparison after it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage import environ_of, wait_until
from trainings import dataset

from hubqueue.sandbox import Sandbox

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / ".venv-ultralytics"
SEED = 20261124
EPOCHS = 3
OUTAGE = 3.0  # seconds down, then as long up


@dataclass(frozen=True)
class Case:
    """A version of the package, a door, and whether the training starts from the address of a model at the hub."""

    version: str
    door: str
    from_hub: bool = False
    platform: bool = False
    bucket: bool = False

    @property
    def title(self) -> str:
        where = f"{' to platform' * self.platform}{' and a bucket' * self.bucket}"
        return f"{self.version} {self.door}{' from the hub' * self.from_hub}{where}"


class Failed(Exception):
    """The hub does not have what the trainer produced."""


class Training:
    """One case in its own folder."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.witness = folder / "witness.jsonl"
        self.hub = Sandbox(folder / "hub").start()
        self.environ = self.environ_with(
            HUBQUEUE_RATE_LIMITS__METRICS="0.5",
            HUBQUEUE_WORKER__IDLE_EXIT="2",
            HUBQUEUE_RATE_LIMITS__CKPT="1",
            YOLO_CONFIG_DIR=str(folder / "settings"),
            YOLO_AUTOINSTALL="false",
            # The older versions need the checkpoint loading of torch before 2.6.
            TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
            PYTHONPATH=os.pathsep.join(map(str, (ENVIRONMENT / "versions" / case.version, ROOT, HERE))),
        )

    def environ_with(self, **settings: str) -> dict[str, str]:
        """The environment of the training's processes."""
        web = {"ULTRALYTICS_HUB_WEB": self.hub.url}
        return environ_of(self.folder / "home", self.hub.url, **{**web, **settings})

    def has_a_checkpoint(self) -> bool:
        """Whether the hub already has one."""
        return any(self.hub.checkpoints(each) for each in self.hub.models)

    def run(self) -> str:
        """Train, kill, resume, deliver, compare. Returns a summary. Raises Failed."""
        dataset.make(self.folder, seed=SEED)
        if self._start("settle", str(self.folder)).wait(timeout=120):
            raise Failed(f"the package cannot be used: {self.output()}")
        model = self._made_at_hub() if self.case.from_hub else "yolov8n.yaml"
        with self._outages() as down:
            self._train_until_killed(model)
            self._train_to_the_end(model, down)
        drained = self._hubqueue("drain", "--timeout", "120")
        if drained.returncode:
            raise Failed(f"drain ended with {drained.returncode}: {drained.stdout}{drained.stderr}")
        return self._compared()

    def close(self) -> None:
        log = self.folder / "home" / "worker.log"
        wait_until(lambda: not log.exists() or _worker_has_left(log.read_text()), timeout=60)
        self.hub.stop()

    # The steps.

    def _made_at_hub(self) -> str:
        """The address of a model at the hub, made by a run that sends nothing else."""
        data = str(self.folder / "data.yaml")
        args = {"data": data, "epochs": EPOCHS, "batch": 4, "imgsz": 64, "patience": 50, "device": "cpu"}
        given = [word for name, value in args.items() for word in ("--arg", f"{name}={value}")]
        for command in (("enqueue", "run", "yolov8n.yaml", *given), ("drain",)):
            done = self._hubqueue(*command)
            if done.returncode:
                raise Failed(f"{command[0]} ended with {done.returncode}: {done.stderr}")
        return f"{self.hub.url}/models/{self.hub.models[0]}"

    def _train_until_killed(self, model: str) -> None:
        trainer = self._start(self.case.door, model, str(self.folder))
        try:
            wait_until(lambda: self._events("begun", epoch=2) or trainer.poll() is not None, timeout=300)
            if trainer.poll() is not None:
                raise Failed(f"the training ended before it was killed: {self.output()}")
            trainer.send_signal(signal.SIGSTOP)
            wait_until(self.has_a_checkpoint, timeout=120)
        finally:
            trainer.kill()
            trainer.wait()

    def _train_to_the_end(self, model: str, down: threading.Event) -> None:
        down.clear()  # a training from the hub starts with the hub's last weights, which it downloads itself
        self._resume(model, self._events("saved")[-1]["last"], down)

    def _resume(self, model: str, last: str, down: threading.Event) -> None:
        begun = len(self._events("begun"))
        trainer = self._start(self.case.door, model, str(self.folder), last)
        try:
            wait_until(lambda: len(self._events("begun")) > begun or trainer.poll() is not None, timeout=300)
            down.set()
            if trainer.wait(timeout=300):
                raise Failed(f"the resumed training failed: {self.output()}")
        finally:
            trainer.kill()

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [str(ENVIRONMENT / "bin" / "python"), str(HERE / "train.py"), *words]
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=output, stderr=output)

    def _hubqueue(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(ENVIRONMENT / "bin" / "python"), "-m", "hubqueue", *arguments]
        return subprocess.run(
            command, env=self.environ, capture_output=True, text=True, timeout=200, check=False
        )

    def _break(self) -> None:
        self.hub.stop()

    def _repair(self) -> None:
        self.hub.start()

    @contextmanager
    def _outages(self) -> Iterator[threading.Event]:
        """Break and repair the hub in turns while the yielded event is set. At the end it is up."""
        ended, allowed = threading.Event(), threading.Event()
        allowed.set()

        def alternate() -> None:
            while not ended.wait(OUTAGE):
                if allowed.is_set():
                    self._break()
                    ended.wait(OUTAGE)
                    self._repair()

        thread = threading.Thread(target=alternate, name="outages")
        thread.start()
        try:
            yield allowed
        finally:
            ended.set()
            thread.join()

    # What the trainer produced and what the hub has.

    def _events(self, name: str, **facts: Any) -> list[dict[str, Any]]:
        text = self.witness.read_text() if self.witness.exists() else ""
        found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [each for each in found if each["event"] == name and facts.items() <= each.items()]

    def output(self) -> str:
        return "\n".join((self.folder / "output.txt").read_text().splitlines()[-12:])

    def _compared(self) -> str:
        produced = {each["epoch"]: each["metrics"] for each in self._events("validated")}
        (best,) = self._events("validated best")
        # The original callbacks report the validation of the best weights under the last epoch's number.
        produced[best["epoch"] + (self.case.door == "attach")] = best["metrics"]
        had: dict[int, dict[str, Any]] = {}
        for model in self.hub.models:
            had.update(self.hub.metrics(model))
        if sorted(had) != sorted(produced):
            raise Failed(f"epochs at the hub {sorted(had)}, produced {sorted(produced)}")
        for epoch, metrics in produced.items():
            other = {name: had[epoch].get(name) for name in metrics if had[epoch].get(name) != metrics[name]}
            if other:
                raise Failed(f"epoch {epoch} at the hub: {other}, produced {metrics}")
        (end,) = self._events("ended")
        written = {digest for each in self._events("saved") for digest in each["files"].values()} | {
            end["final"]
        }
        uploads = [each for model in self.hub.models for each in self.hub.checkpoints(model)]
        finals = [each for each in uploads if each.type == "final"]
        if [each.sha256 for each in finals] != [end["final"]]:
            raise Failed(f"the final weights at the hub are {finals}, produced {end['final']}")
        foreign = [each for each in uploads if each.sha256 not in written]
        if foreign:
            raise Failed(f"the hub has weights that the trainer did not write: {foreign}")
        numbers = sum(len(each) for each in produced.values())
        return (
            f"epochs {sorted(had)} equal in {numbers} numbers, {len(uploads)} checkpoints equal "
            f"(1 final), {len(self.hub.models)} model(s)"
        )


def _worker_has_left(log: str) -> bool:
    changes = re.findall(r" worker \w+ (started|stopped): ", log)
    return not changes or changes[-1] == "stopped"
