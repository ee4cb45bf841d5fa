"""`hubqueue demo`: a run, an outage, a kill -9 and the recovery, on this machine.

Nothing is simulated. The hub is the sandbox over real sockets. The worker is the detached process that a training run
starts. At the end the demo compares every value and the checkpoint's hash with what was enqueued.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubqueue.cli.frame import ATTENTION, DONE, exit_with
from hubqueue.domain.quantities import size

if TYPE_CHECKING:
    from hubqueue.destinations.sandbox import Sandbox
    from hubqueue.outbox.outbox import Outbox
    from hubqueue.producer.run import Run

_EPOCHS = 20
_TIMEOUT = 40.0
# The hub's real limits are 3 s and 900 s. With these the demo ends within a minute.
_LIMITS = {
    "HUBQUEUE_RATE_LIMITS__METRICS": "0.5",
    "HUBQUEUE_RATE_LIMITS__CKPT": "2",
    "HUBQUEUE_RETRY__CAP": "2",
}


@click.command()
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Keep the home and what the hub received in this folder.",
)
def demo(keep: Path | None) -> None:
    """Watch an outage, a kill -9 and the recovery on this machine.

    It takes less than a minute and needs no account.

    \b
    Example:
      hubqueue demo
    """
    folder = Path(tempfile.mkdtemp(prefix="hubqueue-demo-")) if keep is None else keep
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        with _environment(_LIMITS):
            _Story(folder).play()
    except DemoFailed as error:
        click.secho(f"\nFAILED: {error}", fg="red", bold=True)
        click.echo(f"All files are kept in {folder}")
        exit_with(ATTENTION)
    click.secho(f"\nEverything was delivered, after {time.monotonic() - start:.0f} s.", fg="green", bold=True)
    if keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        click.echo(f"The home is {folder / 'home'}, what the hub received is in {folder / 'received'}.")
    exit_with(DONE)


class DemoFailed(Exception):
    """An expected event did not happen, or the hub received something else than what was enqueued."""


class _Story:
    """The demo, scene by scene."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._home = folder / "home"
        self._number = 0

    def play(self) -> None:
        from hubqueue.destinations.sandbox import Sandbox

        self._scene("A hub starts: the sandbox, on this machine.")
        hub = Sandbox(self._folder / "received").start()
        self._line(f"it listens on {hub.url}")
        port = hub.port
        with _environment({"ULTRALYTICS_HUB_API": hub.url, "HUB_API_KEY": "demo-key"}):
            try:
                self._train(hub, port)
            finally:
                self._end_worker()
                hub.stop()

    def _train(self, hub: Sandbox, port: int) -> None:
        from hubqueue.destinations.sandbox import Sandbox
        from hubqueue.outbox.outbox import open_outbox
        from hubqueue.producer.run import start_run

        self._scene(f"A training run starts and logs {_EPOCHS // 2} epochs.")
        dice = random.Random(7)
        run = start_run("yolov8n.pt", args={"epochs": _EPOCHS, "data": "coco8.yaml"}, home=self._home)
        texts = {epoch: _metrics(epoch, dice) for epoch in range(_EPOCHS)}
        for epoch in range(_EPOCHS // 2):
            run.log_metrics(texts[epoch], epoch=epoch)
        self._line("each call returned when its metrics were on disk; a worker process sends them")
        self._until(
            "the first epochs are at the hub", lambda: bool(hub.models) and bool(hub.metrics(hub.models[0]))
        )
        self._status()

        self._scene("The hub stops. The training continues: it logs the other epochs and saves a checkpoint.")
        hub.stop()
        checkpoint = self._folder / "best.pt"
        checkpoint.write_bytes(dice.randbytes(8_000_000))
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        slowest = 0.0
        for epoch in range(_EPOCHS // 2, _EPOCHS):
            start = time.perf_counter()
            run.log_metrics(texts[epoch], epoch=epoch)
            slowest = max(slowest, time.perf_counter() - start)
        run.save_checkpoint(checkpoint, epoch=_EPOCHS - 1, map=0.51, final=True)
        checkpoint.unlink()
        self._line(
            f"the slowest call took {slowest * 1000:.1f} ms; the checkpoint file is deleted, hubqueue has a copy"
        )
        with open_outbox(self._home) as outbox:
            self._until("an attempt has failed", lambda: _failed(outbox))

        self._scene("The worker is killed: kill -9.")
        self._line(f"pid {self._kill_worker()} is dead")
        self._status()

        self._scene("The hub is back, and the run finishes. That starts a new worker.")
        with Sandbox(self._folder / "received", port=port) as restarted:
            self._line(f"the hub listens on {restarted.url}")
            left = run.finish(timeout=_TIMEOUT)
            self._line(f"finish() returned; left to send: {left.entries}")
            self._status()
            self._compare(restarted, run, texts, digest)
            self._end_worker()

    def _compare(self, hub: Sandbox, run: Run, texts: Mapping[int, Mapping[str, float]], digest: str) -> None:
        self._scene("Compare what the hub has received with what was enqueued.")
        model_id = run.remote_id
        if model_id is None or hub.models != [model_id]:
            raise DemoFailed(f"the hub has the models {hub.models}, the run is {model_id}")
        received = hub.metrics(model_id)
        wrong = [epoch for epoch in texts if received.get(epoch) != texts[epoch]]
        if wrong or len(received) != len(texts):
            raise DemoFailed(f"{len(received)} of {len(texts)} epochs arrived, these are wrong: {wrong}")
        self._line(f"{len(received)} of {len(texts)} epochs, every value equal")
        files = hub.checkpoints(model_id)
        if [each.sha256 for each in files] != [digest]:
            raise DemoFailed(f"the checkpoint is not what was enqueued: {[each.sha256 for each in files]}")
        self._line(f"1 checkpoint of {size(files[0].size)}, SHA-256 {digest[:16]}… equal")

    def _status(self) -> None:
        command = [sys.executable, "-P", "-m", "hubqueue", "--home", str(self._home), "status"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        click.secho("\n    $ hubqueue status", bold=True)
        for line in (shown.stdout + shown.stderr).splitlines():
            click.echo(f"    {line}")
        click.echo()

    def _worker(self) -> dict[str, Any] | None:
        from hubqueue.outbox.outbox import open_outbox

        with open_outbox(self._home) as outbox:
            worker: dict[str, Any] = outbox.status()["worker"]
        return worker if worker["alive"] else None

    def _kill_worker(self) -> int:
        worker = self._worker()
        if worker is None:
            raise DemoFailed("no worker is alive")
        os.kill(worker["pid"], signal.SIGKILL)
        self._until("the worker is dead", lambda: self._worker() is None)
        return int(worker["pid"])

    def _end_worker(self) -> None:
        worker = self._worker()
        if worker is not None:
            os.kill(worker["pid"], signal.SIGTERM)
            self._until("the worker has exited", lambda: self._worker() is None)

    def _until(self, what: str, true: Callable[[], bool]) -> None:
        deadline, pause = time.monotonic() + _TIMEOUT, threading.Event()
        while not true():
            if time.monotonic() > deadline:
                raise DemoFailed(f"waited {_TIMEOUT:g} s until {what}")
            pause.wait(0.05)

    def _scene(self, text: str) -> None:
        self._number += 1
        click.secho(f"{self._number}. {text}", fg="cyan", bold=True)

    def _line(self, text: str) -> None:
        click.echo(f"   {text}")


def _failed(outbox: Outbox) -> bool:
    return outbox.stats.totals()["retrying"] > 0


def _metrics(epoch: int, dice: random.Random) -> dict[str, float]:
    loss = math.exp(-epoch / 8)
    return {
        "train/box_loss": round(loss + dice.random() / 10, 5),
        "metrics/mAP50(B)": round(1 - loss, 5),
        "val/box_loss": round(loss + dice.random() / 5, 5),
    }


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for this process and its children, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
