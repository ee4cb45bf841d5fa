"""What the destinations have of a training, compared with the witness: the framework's own record."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubqueue.destinations.mlflow.fake_runs import FakeRun

# An integration may add the epoch to the metrics of a step.
_ADDED = {"epoch"}


class Failed(Exception):
    """A destination does not have what the framework has recorded, or a process has failed."""


@dataclass(frozen=True)
class Witness:
    """The record of a framework: metrics by number, and the hashes of the files of each checkpoint that is still there."""

    version: str
    counts: str
    metrics: dict[int, dict[str, float | None]]
    checkpoints: dict[int, dict[str, str]]

    @classmethod
    def of(cls, path: Path) -> Witness:
        found = json.loads(path.read_text())
        metrics: dict[int, dict[str, float | None]] = {}
        for number, values in found["metrics"]:
            metrics.setdefault(number, {}).update(_finite(values))
        checkpoints = {int(number): files for number, files in found["checkpoints"].items()}
        if not metrics or not checkpoints:
            raise Failed(f"the witness is empty: {found}")
        return cls(found["version"], found["counts"], metrics, checkpoints)


@dataclass(frozen=True)
class Received:
    """A run at a destination. `checkpoints` has those of each number, the newest last; None: not compared."""

    name: str
    state: str
    metrics: dict[int, dict[str, float | None]]
    checkpoints: dict[int, list[dict[str, str]]] | None = None


def runs_in(objects: Mapping[str, bytes], counts: str) -> list[Received]:
    """The runs in the objects of a folder or a bucket by name, in the order of their starts."""
    found = [
        (json.loads(data)["started_at"], name.partition("/")[0], json.loads(data)["state"])
        for name, data in objects.items()
        if name.endswith("/run.json")
    ]
    return [
        Received(run, state, _metrics(run, objects, counts), _checkpoints(run, objects, counts))
        for _, run, state in sorted(found)
    ]


def run_of(run: FakeRun) -> Received:
    """The metrics of a run at an MLflow server: of several points with one number and name, the later counts."""
    metrics: dict[int, dict[str, float | None]] = {}
    for name, value, _, step in sorted(run.points, key=lambda each: each[2]):
        metrics.setdefault(step, {}).update(_finite({name: value}))
    return Received(run.id, run.status.lower(), metrics)


def compare(witness: Witness, received: Received, where: str) -> int:
    """Returns the number of checkpoints that are equal. Raises Failed."""
    if received.state != "finished":
        raise Failed(f"the run {where} is {received.state}, not finished")
    if sorted(received.metrics) != sorted(witness.metrics):
        expected = f"recorded by the framework {sorted(witness.metrics)}"
        raise Failed(f"{witness.counts}s {where} {sorted(received.metrics)}, {expected}")
    for number, values in witness.metrics.items():
        had = {
            name: value
            for name, value in received.metrics[number].items()
            if name in values or name not in _ADDED
        }
        if had != values:
            raise Failed(f"{witness.counts} {number} {where}: {had}, recorded by the framework {values}")
    return 0 if received.checkpoints is None else _compare_checkpoints(witness, received.checkpoints, where)


def _compare_checkpoints(witness: Witness, received: Mapping[int, list[dict[str, str]]], where: str) -> int:
    """A checkpoint may have been superseded while the destination was down, but not the newest one."""
    if foreign := sorted(set(received) - set(witness.checkpoints)):
        raise Failed(f"{where} are checkpoints {foreign}, which the framework did not keep")
    newest = max(witness.checkpoints)
    if newest not in received:
        raise Failed(f"the newest checkpoint, {newest}, is not {where}, which has {sorted(received)}")
    for number, found in received.items():
        # Before the kill the framework may have written another one with this number.
        if found[-1] != witness.checkpoints[number]:
            expected = witness.checkpoints[number]
            raise Failed(f"checkpoint {number} {where}: {found[-1]}, written by the framework {expected}")
    return len(received)


def _metrics(run: str, objects: Mapping[str, bytes], counts: str) -> dict[int, dict[str, float | None]]:
    lines = [
        json.loads(line)
        for name, data in objects.items()
        if name.startswith(f"{run}/metrics/")
        for line in data.splitlines()
    ]
    found: dict[int, dict[str, float | None]] = {}
    for each in sorted(lines, key=lambda line: str(line["time"])):
        if counts not in each:
            raise Failed(f"metrics of run {run} have no {counts}: {each}")
        found.setdefault(each[counts], {}).update(each["metrics"])
    return found


def _checkpoints(run: str, objects: Mapping[str, bytes], counts: str) -> dict[int, list[dict[str, str]]]:
    found: dict[int, list[tuple[str, dict[str, str]]]] = {}
    for name, data in objects.items():
        if name.startswith(f"{run}/checkpoints/") and name.endswith("/manifest.json"):
            manifest, folder = json.loads(data), name.rpartition("/")[0]
            files = _hashes(manifest["files"], folder, objects)
            found.setdefault(manifest[counts], []).append((manifest["saved_at"], files))
    return {number: [files for _, files in sorted(each, key=_by_time)] for number, each in found.items()}


def _by_time(saved: tuple[str, dict[str, str]]) -> str:
    return saved[0]


def _hashes(files: Iterable[Mapping[str, Any]], folder: str, objects: Mapping[str, bytes]) -> dict[str, str]:
    """The SHA-256 of the bytes that are there, by the path in the checkpoint."""
    stored = {each["path"]: objects[f"{folder}/{each.get('stored', each['path'])}"] for each in files}
    return {path: hashlib.sha256(content).hexdigest() for path, content in stored.items()}


def _finite(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """A value that is not finite is sent as null."""
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
    }
