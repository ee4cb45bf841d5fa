"""A run on Platform that a test steps: a real sandbox, a real outbox, a worker on a clock that tests move."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import template
from stage import ZERO, platform_environ, save_snapshot
from stepping import Stepping

from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, metrics_draft
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.intake import open_run
from hubqueue.sandbox import RunRecord, Sandbox, UploadRecord
from hubqueue.testing import FakeClock
from hubqueue.worker.closing import close_run
from hubqueue.worker.events import Fact
from hubqueue.worker.worker import Worker

ARGS = MappingProxyType({"project": "coco", "name": "exp-1", "epochs": 3})


_BEATS = ("training_progress", "system_metrics")


class Stage(Stepping):
    """A home with one run, and the worker that sends for it."""

    def __init__(self, hub: Sandbox | None, outbox: Outbox, clock: FakeClock, folder: Path) -> None:
        self._hub, self.outbox, self.clock, self.folder = hub, outbox, clock, folder
        self.facts: list[Fact] = []
        self.worker = Worker(outbox, emit=self.facts.append)
        self.run_id = ""

    def start(self, model: str = "yolo26n.pt", resume: str | None = None, **args: object) -> str:
        target = self.outbox.config.destination("platform")
        named = declaration("platform").identify(model, target)
        self.run_id, _ = open_run(self.outbox, named, {**ARGS, **args}, target, resume=resume)
        return self.run_id

    def log(self, *epochs: int) -> None:
        for epoch in epochs:
            self.outbox.entries.enqueue(self.run_id, metrics_draft(f'{{"train/box_loss": {epoch}.5}}', epoch))

    def save(self, content: bytes, epoch: int = 0, *, final: bool = False) -> Path:
        path = self.folder / "best.pt"
        path.write_bytes(content)
        best = Checkpoint(path, epoch, is_best=True, map=0.5, final=final)
        save_snapshot(self.outbox, self.run_id, best)
        return path

    def end(self, state: RunState = RunState.FINISHED) -> None:
        close_run(self.outbox, self.run_id, state, results={"metrics": {"map": 0.5}})

    # What the hub has.

    @property
    def hub(self) -> Sandbox:
        assert self._hub is not None, "this peer stores nothing"
        return self._hub

    @property
    def run(self) -> RunRecord:
        (model_id,) = self.hub.runs
        return self.hub.run(model_id)

    def events(self, *names: str) -> list[str]:
        """The names of the events that count (without `names`: all but heartbeats), in order of arrival.

        Epochs have their number in the name.
        """
        return [
            f"epoch {each.data['epoch']}" if each.event == "epoch_end" else each.event
            for each in self.run.events
            if each.ignored is None and (each.event in names if names else each.event not in _BEATS)
        ]

    @property
    def promoted(self) -> list[UploadRecord]:
        return [each for each in self.run.uploads if each.promoted_at is not None]

    def contents(self) -> list[bytes]:
        """The bytes of the checkpoints that count."""
        return [each.path.read_bytes() for each in self.promoted if each.path is not None]


@contextmanager
def staged(hub: Sandbox | str, folder: Path, clock: FakeClock, **settings: str) -> Iterator[Stage]:
    """A stage that sends to a sandbox, or to the address of another peer."""
    folder.mkdir(exist_ok=True)
    if not (folder / "home").exists():
        template.lay(folder / "home")
    url = hub if isinstance(hub, str) else hub.url
    environ: Mapping[str, str] = platform_environ(folder / "home", url, **settings)
    with open_outbox(folder / "home", environ={**os.environ, **environ}, clock=clock) as outbox:
        stage = Stage(None if isinstance(hub, str) else hub, outbox, clock, folder)
        stage.worker.start()
        try:
            yield stage
        finally:
            stage.worker.stop(ZERO)
