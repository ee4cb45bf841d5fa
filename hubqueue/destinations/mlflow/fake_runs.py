"""A run of the fake MLflow server."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hubqueue.sandbox.archive import Fact


@dataclass(frozen=True, slots=True)
class FakeFile:
    """A stored artifact."""

    file: Path
    size: int
    at: datetime


@dataclass(slots=True)
class FakeRun:
    """A run. `points` are its different metrics, in the order of arrival: name, value, time and step.

    `files` are its artifacts by path. `stored` counts all that were ever stored.
    """

    id: str
    experiment: str
    name: str
    user: str
    started: int
    root: str
    created_at: datetime
    changed_at: datetime
    tags: dict[str, str]
    status: str = "RUNNING"
    end_time: int | None = None
    is_deleted: bool = False
    params: dict[str, str] = field(default_factory=dict)
    points: dict[tuple[str, float, int, int], None] = field(default_factory=dict)
    files: dict[str, FakeFile] = field(default_factory=dict)
    stored: int = 0

    @classmethod
    def of(cls, fact: Fact) -> FakeRun:
        """The run that a fact has made."""
        at = datetime.fromisoformat(fact["at"])
        names = {name: fact[name] for name in ("experiment", "name", "user", "started", "root")}
        return cls(id=fact["run"], created_at=at, changed_at=at, tags=dict(fact["tags"]), **names)

    def apply(self, fact: Fact, folder: Path) -> None:
        """Apply one fact. `folder` has the files of this run."""
        self.changed_at = datetime.fromisoformat(fact["at"])
        match fact["fact"]:
            case "mlflow_state":
                self.status = fact["changes"].get("status", self.status)
                self.end_time = fact["changes"].get("end_time", self.end_time)
            case "mlflow_logged":
                self.points |= {tuple(each): None for each in fact["points"]}
                self.params |= fact["params"]
                self.tags |= fact["tags"]
            case "mlflow_file":
                self.stored += 1
                self.files[fact["path"]] = FakeFile(folder / fact["file"], fact["size"], self.changed_at)
            case "mlflow_deleted":
                path = fact["path"]
                for name in [each for each in self.files if each == path or each.startswith(f"{path}/")]:
                    self.files.pop(name)

    def listed(self, path: str) -> list[dict[str, Any]]:
        """What is directly in a folder of its artifacts, as the server lists it."""
        found: dict[str, dict[str, Any]] = {}
        for name, file in self.files.items():
            if path and not name.startswith(f"{path}/"):
                continue
            first, slash, _ = name.removeprefix(f"{path}/" if path else "").partition("/")
            if slash:
                found[first] = {"path": first, "is_dir": True}
            else:
                # As the server: a size of 0 is left out.
                found[first] = {"path": first, "is_dir": False} | (
                    {"file_size": file.size} if file.size else {}
                )
        return sorted(found.values(), key=lambda each: each["path"])

    def document(self) -> dict[str, Any]:
        """The run object as a client reads it. Of each metric only the newest point is in it."""
        latest: dict[str, dict[str, Any]] = {}
        for name, value, at, step in sorted(self.points, key=lambda each: (each[3], each[2], each[1])):
            latest[name] = {"key": name, "value": value, "timestamp": at, "step": step}
        info = {
            "run_uuid": self.id,
            "experiment_id": self.experiment,
            "run_name": self.name,
            "user_id": self.user,
            "status": self.status,
            "start_time": self.started,
            "artifact_uri": f"{self.root}/{self.id}/artifacts",
            "lifecycle_stage": "deleted" if self.is_deleted else "active",
            "run_id": self.id,
        } | ({} if self.end_time is None else {"end_time": self.end_time})
        data = {
            "metrics": list(latest.values()),
            "params": [{"key": name, "value": value} for name, value in self.params.items()],
            "tags": [{"key": name, "value": value} for name, value in self.tags.items()],
        }
        return {"info": info, "data": {name: found for name, found in data.items() if found}, "inputs": {}}
