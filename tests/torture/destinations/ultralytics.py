"""A HUB and a Platform, each a sandbox in a process of its own. Both honour `Idempotency-Key`, so they store nothing twice."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from stage import environ_of, platform_environ
from torture.destinations.tap import Seen
from torture.destinations.target import KIB, Batch, Site, Target, There, rates
from torture.destinations.training import Sizes
from torture.kills import Hub as HubProcess

from hubqueue.destinations.sandbox import Sandbox
from hubqueue.testing.conformance.service import Received
from hubqueue.worker.delivery import Delivery

_ENDS = {"training_complete": "finished", "training_failed": "failed"}
_SIZES = Sizes(20 * KIB, (300 * KIB, 900 * KIB), folders=False)


class SandboxSite(Site):
    """One sandbox."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._hub: HubProcess | None = HubProcess(folder, honours=True)
        self.url = self._hub.url

    def environ(self, home: Path, url: str) -> dict[str, str]:
        make = environ_of if self._name == "hub" else platform_environ
        return make(home, url, **rates(self._name))

    def rest(self) -> None:
        if self._hub is not None:
            self._hub.close()
            self._hub = None

    def there(self, seen: Sequence[Seen]) -> There:
        return self._models() if self._name == "hub" else There(runs=self._runs())

    def _models(self) -> There:
        """By the journal of the sandbox, which has each batch of metrics that it has stored."""
        batches: dict[str, list[Batch]] = {}
        checkpoints: dict[str, list[dict[str, bytes]]] = {}
        for line in (self._folder / "sandbox.jsonl").read_text().splitlines():
            fact = json.loads(line)
            model = fact.get("model")
            if fact.get("fact") == "created":
                batches[model], checkpoints[model] = [], []
            elif fact.get("fact") == "metrics":
                batches[model].append([(at, json.loads(text)) for at, text in fact["metrics"].items()])
            elif fact.get("fact") == "checkpoint":
                path = self._folder / "models" / model / fact["file"]
                checkpoints[model].append({"": path.read_bytes()})
        metrics = {model: list(chain.from_iterable(found)) for model, found in batches.items()}
        runs = {model: Received(found, checkpoints[model]) for model, found in metrics.items()}
        return There(runs, batches)

    def _runs(self) -> dict[str, Received]:
        with Sandbox(self._folder) as hub:
            return {each: _received(hub, each) for each in hub.runs}


def _received(hub: Sandbox, model: str) -> Received:
    run = hub.run(model)
    epochs = [each.data for each in run.counted if each.event == "epoch_end"]
    return Received(
        metrics=[(str(each["epoch"]), each["metrics"]) for each in epochs],
        checkpoints=[{"": each.path.read_bytes()} for each in run.files if each.path is not None],
        ends=[_ENDS[each.event] for each in run.counted if each.event in _ENDS],
    )


def change_keys() -> None:
    """The defect of a control: each attempt has a key of its own."""
    inner = Delivery._send

    def send(self: Delivery, lease: Any, attempt: Any) -> Any:
        batch = replace(lease.batch, idempotency_key=str(uuid.uuid4()))
        return inner(self, replace(lease, batch=batch), attempt)

    Delivery._send = send  # type: ignore[method-assign]


class Hub(Target):
    type = name = "hub"
    sizes = _SIZES
    requests = 8
    uploads = r"/upload$"
    defects: ClassVar = {"a key for each attempt": ("twice", change_keys)}

    @contextmanager
    def site(self, folder: Path) -> Iterator[Site]:
        made = SandboxSite(folder / "hub", self.name)
        try:
            yield made
        finally:
            made.rest()


class Platform(Hub):
    type = name = "platform"
    requests = 16
    uploads = r"^PUT /storage/"
    twins = 1  # decision 0013
