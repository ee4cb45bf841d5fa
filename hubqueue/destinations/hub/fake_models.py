"""A model of the fake HUB, built only by applying facts in order. It holds no secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hubqueue.sandbox.archive import Fact
from hubqueue.sandbox.page import finite


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """One stored upload. `type` is `epoch` or `final`; `map` is None for `epoch`; `size` is in bytes.

    `filename` is the client's name of the file, `name` the one under which the weights are served
    (`epoch-<N>.pt` or `best.pt`), `path` the stored file. `sha256` is hex, of the received bytes.
    """

    epoch: int
    type: str
    is_best: bool
    map: float | None
    filename: str
    name: str
    size: int
    sha256: str
    path: Path
    at: datetime


@dataclass(frozen=True, slots=True)
class BeatRecord:
    """One heartbeat: the agent's own name, the id in the response, and the time."""

    agent: str
    agent_id: str
    at: datetime
    at_monotonic: float


@dataclass(slots=True)
class Model:
    """One model of the hub. `given` is what the client sent at creation, with its later changes merged in.

    `metrics` maps an epoch as sent (decimal text) to the JSON text as sent; the last one received counts.
    """

    id: str
    created_at: datetime
    changed_at: datetime
    given: dict[str, Any]
    metrics: dict[str, str] = field(default_factory=dict)
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    beats: list[BeatRecord] = field(default_factory=list)
    agents: set[str] = field(default_factory=set)

    @property
    def status(self) -> str:
        """`new`, `training` after the first metrics or checkpoint, `trained` after the final weights."""
        if any(record.type == "final" for record in self.checkpoints):
            return "trained"
        return "training" if self.metrics or self.checkpoints else "new"

    @property
    def name(self) -> str:
        name = _object(self.given.get("meta")).get("name")
        return name if isinstance(name, str) else ""

    @property
    def planned_epochs(self) -> int | None:
        """The planned number of epochs, None if the client named no number."""
        epochs = _object(self.given.get("config")).get("epochs")
        return epochs if isinstance(epochs, int) else None

    def latest(self, type_: str) -> CheckpointRecord | None:
        """The last stored upload of a type, `epoch` or `final`."""
        return next((record for record in reversed(self.checkpoints) if record.type == type_), None)

    def weights(self, name: str) -> CheckpointRecord | None:
        """The last stored upload that is served under `name`."""
        return next((record for record in reversed(self.checkpoints) if record.name == name), None)

    def read_metrics(self) -> dict[int, dict[str, Any]]:
        """The metrics, parsed. Keys are epochs; values may be non-finite, as the wire format allows."""
        return {int(epoch): json.loads(text) for epoch, text in sorted(self.metrics.items(), key=_by_epoch)}

    def series(self) -> list[dict[str, Any]]:
        """The metrics as the hub reads them back: a list of `{"meta": {"name"}, "data": {epoch: value}}`."""
        found: dict[str, dict[str, Any]] = {}
        for epoch, values in self.read_metrics().items():
            for name, value in values.items():
                found.setdefault(name, {})[str(epoch)] = finite(value)
        return [{"meta": {"name": name}, "data": data} for name, data in found.items()]

    def document(self, root: str) -> dict[str, Any]:
        """The model object that a client reads. `root` is the address of this hub as the client sees it."""
        config = _object(self.given.get("config"))
        dataset = _object(self.given.get("dataset"))
        lineage = _object(self.given.get("lineage"))
        architecture = str(_object(lineage.get("architecture")).get("name") or "")
        parent = _object(lineage.get("parent")).get("name")
        last, best = self.latest("epoch"), self.latest("final")
        training = {
            "batch_size": config.get("batchSize"),
            "epochs": config.get("epochs"),
            "imgsz": config.get("imageSize"),
            "patience": config.get("patience"),
            "device": config.get("device"),
            "cache": config.get("cache"),
        }
        arguments = {"data": dataset.get("name"), "batch": training["batch_size"]}
        arguments |= {name: value for name, value in training.items() if name != "batch_size"}
        return {
            **finite({name: value for name, value in self.given.items() if name != "config"}),
            **finite(training),
            "id": self.id,
            "status": self.status,
            "has_last_weights": last is not None,
            "has_best_weights": best is not None,
            "is_pretrained": bool(parent),
            "is_custom": False,
            # Without weights of its own, the weights it starts from: a name that ultralytics resolves.
            "weights": self._url(root, best) if best else parent,
            "resume": self._url(root, last) if last else None,
            "cfg": f"{architecture}.yaml" if architecture else None,
            "data": dataset.get("name"),
            "train_args": finite(arguments),
        }

    def _url(self, root: str, record: CheckpointRecord) -> str:
        return f"{root}/weights/{self.id}/{record.name}"

    def apply(self, fact: Fact, folder: Path) -> None:
        """Apply one fact. `folder` holds the weights of this model."""
        if "at" in fact:
            self.changed_at = datetime.fromisoformat(fact["at"])
        match fact["fact"]:
            case "updated":
                self.given = merged(self.given, fact["changes"])
            case "metrics":
                self.metrics.update(fact["metrics"])
            case "checkpoint":
                self.checkpoints.append(
                    CheckpointRecord(
                        epoch=fact["epoch"],
                        type=fact["type"],
                        is_best=fact["is_best"],
                        map=fact["map"],
                        filename=fact["filename"],
                        name=fact["name"],
                        size=fact["size"],
                        sha256=fact["sha256"],
                        path=folder / fact["file"],
                        at=datetime.fromisoformat(fact["at"]),
                    )
                )
            case "beat":
                at = datetime.fromisoformat(fact["at"])
                self.agents.add(fact["agent_id"])
                self.beats.append(BeatRecord(fact["agent"], fact["agent_id"], at, fact["at_monotonic"]))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` merged into it, object by object."""
    result = dict(base)
    for name, value in changes.items():
        below = result.get(name)
        result[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _by_epoch(item: tuple[str, str]) -> int:
    return int(item[0])


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
