"""The same with Platform as the hub, and a comparison of the events of the package's own callback and of hubqueue."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stage import platform_environ
from trainings import dataset
from trainings.training import SEED, Case, Failed, Training

from hubqueue.sandbox import RunRecord

# Facts of a machine that both sides send in the same words.
SAME = (
    *("ultralyticsVersion", "hostname", "os", "environment", "pythonVersion", "cpuCount", "cpu"),
    *("totalRamGb", "totalDiskGb", "gitRepository", "gitBranch", "gitCommit", "gitCommitMessage"),
)


class PlatformTraining(Training):
    """A training with a Platform as its hub."""

    def environ_with(self, **settings: str) -> dict[str, str]:
        return platform_environ(self.folder / "home", self.hub.url, **settings)

    def has_a_checkpoint(self) -> bool:
        return any(each.promoted_at for model_id in self.hub.runs for each in self.hub.run(model_id).uploads)

    def record(self) -> RunRecord:
        """The one training that the hub knows."""
        if len(self.hub.runs) != 1:
            raise Failed(f"the hub has {len(self.hub.runs)} models")
        return self.hub.run(self.hub.runs[0])

    def alone(self) -> RunRecord:
        """Train from start to end without disturbances. Returns what the hub has then."""
        dataset.make(self.folder, seed=SEED)
        for words in (("settle", str(self.folder)), (self.case.door, "yolov8n.yaml", str(self.folder))):
            if self._start(*words).wait(timeout=300):
                raise Failed(self.output())
        if self.case.door != "package" and self._hubqueue("drain", "--timeout", "120").returncode:
            raise Failed("something is left over")
        return self.record()

    def _compared(self) -> str:
        produced = {each["epoch"]: each["metrics"] for each in self._events("validated")}
        (best,) = self._events("validated best")
        produced[best["epoch"] + 1] = best["metrics"]
        run = self.record()
        counted = [each for each in run.events if each.ignored is None]
        had = {each.data["epoch"]: each.data["metrics"] for each in counted if each.event == "epoch_end"}
        if sorted(had) != sorted(produced):
            raise Failed(f"epochs at the hub {sorted(had)}, produced {sorted(produced)}")
        for epoch, metrics in produced.items():
            metrics.pop("fitness", None)  # the page adds it to the metrics
            other = {name: had[epoch].get(name) for name in metrics if had[epoch].get(name) != metrics[name]}
            if other:
                raise Failed(f"epoch {epoch} at the hub: {other}, produced {metrics}")
        (end,) = self._events("ended")
        written = {digest for each in self._events("saved") for digest in each["files"].values()} | {
            end["final"]
        }
        promoted = [each for each in run.uploads if each.promoted_at is not None]
        if promoted[-1].sha256 != end["final"] or any(each.sha256 not in written for each in promoted):
            raise Failed(f"the promoted weights are {promoted}, produced {end['final']}")
        last = [each.event for each in counted if each.event != "console_output"][-1]
        if last != "training_complete" or run.state != "complete":
            raise Failed(f"the last event is {last}, the run is {run.state}")
        numbers = sum(len(each) for each in produced.values())
        return (
            f"epochs {sorted(had)} equal in {numbers} numbers, {len(promoted)} promoted checkpoints equal, "
            f"{len(run.run_ids)} starts of 1 model, the last event is training_complete"
        )


def compared_with_the_package(version: str) -> str:
    """A table of the events that the package's own callback and hubqueue send for the same training. Raises Failed."""
    found = {}
    for door in ("package", "attach-console"):
        with tempfile.TemporaryDirectory(prefix="hubqueue-training-") as folder:
            training = PlatformTraining(Case(version, door, platform=True), Path(folder))
            try:
                found[door] = (training.alone(), training.hub.requests)
            finally:
                training.close()
    (theirs, their_requests), (ours, our_requests) = found["package"], found["attach-console"]
    lines = ["| event | package | hubqueue | only the package's | only hubqueue's |", "|---|---|---|---|---|"]
    missing = []
    for name in dict.fromkeys(
        [*(each.event for each in theirs.events), *(each.event for each in ours.events)]
    ):
        mine, other = _data(ours, name), _data(theirs, name)
        here, there = _fields(mine), _fields(other)
        lines.append(
            f"| `{name}` | {len(other)} | {len(mine)} | {_shown(there - here)} | {_shown(here - there)} |"
        )
        if other and (not mine or there - here):
            missing.append(f"{name}: {sorted(there - here) or 'not sent'}")
    for name, path in (("upload URL", "/api/webhooks/models/upload"), ("`PUT`", "/storage/")):
        counts = [
            sum(each.path.startswith(path) for each in requests)
            for requests in (their_requests, our_requests)
        ]
        lines.append(f"| {name} | {counts[0]} | {counts[1]} | | |")
    missing += _other_values(theirs, ours)
    if missing:
        raise Failed(f"hubqueue does not send what the package sends: {missing}\n" + "\n".join(lines))
    if (ours.project, ours.asked_name) != (theirs.project, theirs.asked_name):
        raise Failed(f"another name: {ours.project}/{ours.asked_name}, {theirs.project}/{theirs.asked_name}")
    return "\n".join([*lines, f"both are {ours.project}/{ours.asked_name}"])


def _other_values(theirs: RunRecord, ours: RunRecord) -> list[str]:
    """The facts that have to be the same on both sides, and are not: they show a wrong unit or another source."""
    starts = [_data(each, "training_started")[0] for each in (theirs, ours)]
    ends = [_data(each, "training_complete")[0] for each in (theirs, ours)]
    pairs = {f"environment.{name}": [start["environment"].get(name) for start in starts] for name in SAME}
    pairs["system.disk"] = [
        [(each["mount"], each["total_gb"]) for each in start["system"]["disk"]] for start in starts
    ]
    pairs["results.validation"] = [end["results"].get("validation") for end in ends]
    pairs["plots"] = [[(each["type"], len(each.get("x", ()))) for each in end["plots"]] for end in ends]
    return [f"{name}: {one} and {other}" for name, (one, other) in pairs.items() if one != other]


def _data(run: RunRecord, name: str) -> list[dict[str, Any]]:
    return [each.data for each in run.events if each.event == name]


def _fields(found: Iterable[dict[str, Any]]) -> set[str]:
    """The fields of all events, including those of nested objects (metrics and arguments by their own names).

    A bar of `progress` has any name. A list has the fields of the objects in it.
    """
    fields: set[str] = set()
    for data in found:
        for name, value in data.items():
            objects = value if isinstance(value, list) else [value]
            inner = [each for each in objects if isinstance(each, dict)] if name != "progress" else []
            fields |= {f"{name}.{each}" for each in _fields(inner)} or {name}
    return fields


def _shown(fields: set[str]) -> str:
    return ", ".join(f"`{each}`" for each in sorted(fields))
