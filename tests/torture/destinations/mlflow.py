"""A real MLflow server, read by its REST API and from its disk. It has one point for a metric, a step and a moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from mlflow_real import Real
from mlflow_servers import VERSIONS, MlflowServer, running
from stage import ROOT, environ_of
from torture.destinations.layout import there_in
from torture.destinations.tap import Seen
from torture.destinations.target import KIB, MIB, Batch, Site, Target, There, rates
from torture.destinations.training import Sizes

from hubqueue.destinations.mlflow import runs as starts
from hubqueue.testing.conformance.service import Received


class TrackingSite(Site):
    """An experiment of the server."""

    def __init__(self, server: MlflowServer, experiment: str) -> None:
        self.url, self._server, self._experiment = server.url, server, experiment

    def environ(self, home: Path, url: str) -> dict[str, str]:
        start = "HUBQUEUE_DESTINATIONS__LAB__"
        own = {f"{start}TYPE": "mlflow", f"{start}URL": url, f"{start}EXPERIMENT": self._experiment}
        return environ_of(home, **own, **rates("lab"))

    def there(self, seen: Sequence[Seen]) -> There:
        found, batches, runs = There(), dict[str, Sequence[Batch]](), dict[str, Received]()
        real = Real(self._server)
        real.experiment = self._experiment
        newest = dict[str, Mapping[str, str]]()
        for each in real.runs():
            run, points = each["info"]["run_id"], self._points(each)
            batches[run] = [
                [(f"{point['step']} at {point['timestamp']}", {point["key"]: point["value"]})]
                for point in points
            ]
            of_disk = there_in(self._objects(run, each["info"]["artifact_uri"]))
            received = real._run(each)
            runs[run] = replace(received, metrics=list(_epochs(points).items()))
            newest[run] = of_disk.newest.get(run, {})
            found.left += of_disk.left
            found.wrong += of_disk.wrong
        found.runs, found.batches, found.newest = runs, batches, newest
        return found

    def _points(self, run: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All points of a run, the oldest first."""
        points: list[dict[str, Any]] = []
        for each in run["data"].get("metrics", []):
            query = f"run_id={run['info']['run_id']}&metric_key={each['key']}"
            points += self._server.get(f"mlflow/metrics/get-history?{query}")["metrics"]
        return sorted(points, key=lambda each: int(each["timestamp"]))

    def _objects(self, run: str, uri: str) -> dict[str, bytes]:
        """The artifacts of a run, as objects of the layout."""
        folder = self._server.folder / "artifacts" / uri.removeprefix("mlflow-artifacts:").strip("/")
        files = {each.relative_to(folder).as_posix(): each for each in folder.rglob("*") if each.is_file()}
        objects = {f"{run}/{name}": path.read_bytes() for name, path in files.items()}
        return {**objects, f"{run}/run.json": b'{"state": "running"}'}


def _epochs(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for each in points:
        found.setdefault(str(each["step"]), {})[each["key"]] = each["value"]
    return found


def _search_nothing() -> None:
    """The defect of a control: a run whose response was lost is not looked for."""
    starts._search = lambda server, experiment, _run, attempt: starts._experiment(server, experiment, attempt)


class Mlflow(Target):
    type = "mlflow"
    sizes = Sizes(20 * KIB, (1 * MIB, 3 * MIB), folders=True)
    requests = 20
    uploads = r"^PUT .*/checkpoints/"
    defects: ClassVar = {"a run that was made is not looked for": ("twice", _search_nothing)}

    def __init__(self) -> None:
        self._server: MlflowServer | None = None
        there = (each for each in reversed(VERSIONS) if (ROOT / f".venv-mlflow-{each}").exists())
        self._version = next(there, None)

    def missing(self) -> str | None:
        return None if self._version else "there is no environment of MLflow (make test-destinations)"

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        assert self._version is not None
        with running(self._version) as server:
            self._server = server
            yield

    @contextmanager
    def site(self, folder: Path) -> Iterator[Site]:
        assert self._server is not None
        yield TrackingSite(self._server, folder.name)
