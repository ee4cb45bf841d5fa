"""The fake MLflow server as a service of the conformance tests."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hubqueue.destinations.mlflow.artifacts import escaped
from hubqueue.destinations.mlflow.fake_runs import FakeRun
from hubqueue.destinations.mlflow.sandbox import FakeMlflow
from hubqueue.sandbox.server import Server
from hubqueue.testing.conformance import Received, SandboxService

KEY = "canary-token-of-the-conformance-tests"
_ENDS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
# The tests log epochs below this number, and steps from it on: MLflow has one number for both.
_FIRST_STEP = 100


class Mlflow(SandboxService):
    """The fake MLflow server, in the sandbox."""

    type = "mlflow"
    secrets: Mapping[str, str] = {"key": KEY}

    def __init__(self, fake: FakeMlflow) -> None:
        self.fake = fake
        super().__init__(Server([fake]))

    def received(self) -> Mapping[str, Received]:
        return {each.id: self._run(each) for each in self.fake.runs_by_id.values()}

    def _run(self, run: FakeRun) -> Received:
        points = [
            (f"step:{step}" if step >= _FIRST_STEP else str(step), {name: value})
            for name, value, _, step in run.points
        ]
        puts = [
            each
            for each in self.server.requests
            if each.method == "PUT" and "checkpoint" in each.path.split("/")[-1]
        ]
        manifests = [path for path in run.files if path.endswith("/manifest.json")]
        return Received(
            metrics=points,
            checkpoints=[self._checkpoint(run, each) for each in manifests],
            ends=[_ENDS[run.status]] if run.status in _ENDS else [],
            upload_bytes=sum(each.body_bytes for each in puts),
        )

    def _checkpoint(self, run: FakeRun, manifest: str) -> Mapping[str, bytes]:
        folder = manifest.removesuffix("manifest.json")
        files = json.loads(run.files[manifest].file.read_bytes())["files"]
        return {
            each["path"]: run.files[folder + escaped(each.get("stored", each["path"]))].file.read_bytes()
            for each in files
        }
