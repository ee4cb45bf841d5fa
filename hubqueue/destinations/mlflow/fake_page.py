"""A run of the fake MLflow server, as the sandbox's page shows it."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from hubqueue.destinations.mlflow.fake_runs import FakeRun
from hubqueue.sandbox.service import RunDetail, RunSummary, StoredFile

_KINDS: dict[str, Literal["busy", "good", "bad"]] = {
    "RUNNING": "busy",
    "FINISHED": "good",
    "FAILED": "bad",
    "KILLED": "bad",
}


def summary(run: FakeRun) -> RunSummary:
    """A run as a row of the list."""
    epochs = run.params.get("epochs", "")
    return RunSummary(
        id=run.id,
        name=run.name,
        state=run.status.lower(),
        created_at=run.created_at,
        changed_at=run.changed_at,
        epochs=len({step for _, _, _, step in run.points}),
        planned_epochs=int(epochs) if epochs.isdecimal() and len(epochs) < 10 else None,
        checkpoints=len(_manifests(run)),
        bytes=sum(each.size for each in run.files.values()),
        state_kind=_KINDS.get(run.status, ""),
        notes={"user": run.user} if run.user else {},
    )


def detail(run: FakeRun) -> RunDetail:
    """A run with its metrics and artifacts."""
    metrics: dict[int, dict[str, Any]] = {}
    for name, value, _, step in sorted(run.points, key=lambda each: each[3]):
        metrics.setdefault(step, {})[name] = value
    files = [
        StoredFile(
            name=path,
            bytes=each.size,
            sha256=hashlib.sha256(each.file.read_bytes()).hexdigest(),
            path=str(each.file),
            at=each.at,
        )
        for path, each in run.files.items()
    ]
    return RunDetail(summary(run), metrics, files, {"params": run.params, "tags": run.tags})


def _manifests(run: FakeRun) -> list[str]:
    return [each for each in run.files if each.endswith("/manifest.json")]
