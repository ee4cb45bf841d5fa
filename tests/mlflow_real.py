"""A real MLflow server as a service of the conformance tests."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow_servers import Gateway, MlflowServer

from hubqueue.destinations.mlflow.artifacts import escaped
from hubqueue.domain.entry import Kind
from hubqueue.testing.conformance import Fault, Received

CANARY = "canary-token-of-the-real-servers"
_ENDS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
# The tests log epochs below this number, and steps from it on: MLflow has one number for both.
_FIRST_STEP = 100


class Real:
    """A `Service` that is a real server, behind a gateway. Its runs are those of an experiment of its own."""

    type = "mlflow"
    faults = frozenset({Fault.UNREACHABLE})
    environ: Mapping[str, str] = {}

    def __init__(self, server: MlflowServer, key: str | None = CANARY) -> None:
        """`key` is sent to the server; one without users ignores it."""
        self.secrets: Mapping[str, str] = {"key": key} if key else {}
        self.server, self.gateway = server, Gateway(server.url)
        self.experiment = f"conformance {uuid.uuid4().hex[:8]}"
        self.gateway.open()

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {"url": self.gateway.url, "experiment": self.experiment}

    def fail(
        self, fault: Fault, *, kind: Kind | None = None, after: int = 0, times: int | None = None
    ) -> None:
        assert fault is Fault.UNREACHABLE
        self.gateway.close()

    def heal(self) -> None:
        self.gateway.open()

    def received(self) -> Mapping[str, Received]:
        return {each["info"]["run_id"]: self._run(each) for each in self.runs()}

    def runs(self) -> list[dict[str, Any]]:
        """All runs of the experiment, as the server has them."""
        try:
            experiment = self._experiment
        except OSError:
            return []
        found = self.server.post("runs/search", {"experiment_ids": [experiment]})
        return found.get("runs", [])

    @cached_property
    def _experiment(self) -> str:
        name = self.experiment.replace(" ", "%20")
        found = self.server.get(f"mlflow/experiments/get-by-name?experiment_name={name}")
        return str(found["experiment"]["experiment_id"])

    def _run(self, run: Mapping[str, Any]) -> Received:
        info, points = run["info"], []
        for name in (each["key"] for each in run["data"].get("metrics", [])):
            target = f"mlflow/metrics/get-history?run_id={info['run_id']}&metric_key={name}"
            points += self.server.get(target)["metrics"]
        points.sort(key=lambda each: int(each["timestamp"]))
        root = info["artifact_uri"].removeprefix("mlflow-artifacts:").strip("/")
        folder = self.server.folder / "artifacts" / root
        return Received(
            metrics=[(_key(each), {each["key"]: each["value"]}) for each in points],
            checkpoints=[_checkpoint(each) for each in folder.glob("checkpoints/*/manifest.json")],
            ends=[_ENDS[info["status"]]] if info["status"] in _ENDS else [],
        )


def _key(point: Mapping[str, Any]) -> str:
    step = int(point.get("step", 0))
    return f"step:{step}" if step >= _FIRST_STEP else str(step)


def _checkpoint(manifest: Path) -> Mapping[str, bytes]:
    files = json.loads(manifest.read_bytes())["files"]
    return {
        each["path"]: (manifest.parent / escaped(each.get("stored", each["path"]))).read_bytes()
        for each in files
    }
