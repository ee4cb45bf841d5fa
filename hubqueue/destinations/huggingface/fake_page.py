"""The runs in the repositories of the fake Hub, as the sandbox's page shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Literal

from hubqueue.destinations.huggingface.fake_repositories import FakeFile, FakeRepository
from hubqueue.sandbox.service import RunDetail, RunSummary, StoredFile

_KINDS: dict[str, Literal["busy", "good", "bad"]] = {"running": "busy", "finished": "good"}


def details(repositories: Iterable[FakeRepository]) -> Iterator[RunDetail]:
    """Every run with its metrics and its checkpoints, in the order in which they were started."""
    for repository in repositories:
        names = [
            path[:-9] for path in repository.head.files if path.endswith("/run.json") and path.count("/") == 1
        ]
        for name in names:
            yield _detail(repository, name)


def _detail(repository: FakeRepository, name: str) -> RunDetail:
    files = repository.head.files
    record = json.loads(repository.content(files[f"{name}/run.json"]))
    commits = [each for each in repository.commits if any(path.startswith(f"{name}/") for path in each.files)]
    metrics: dict[int, dict[str, Any]] = {}
    for path, file in files.items():
        if path.startswith(f"{name}/metrics/"):
            for line in map(json.loads, repository.content(file).splitlines()):
                number = line["epoch"] if "epoch" in line else line["step"]
                metrics.setdefault(number, {}).update(line["metrics"])
    stored = [
        _file(repository, each, commits[-1].at)
        for path, each in files.items()
        if path.startswith(f"{name}/checkpoints/") and each.oid is not None
    ]
    state = str(record.get("state", ""))
    summary = RunSummary(
        id=f"{repository.id}/{name}",
        name=name,
        state=state,
        state_kind=_KINDS.get(state, "bad"),
        created_at=commits[0].at,
        changed_at=commits[-1].at,
        epochs=len(metrics),
        planned_epochs=None,
        checkpoints=sum(
            path.endswith("/manifest.json") for path in files if path.startswith(f"{name}/checkpoints/")
        ),
        bytes=sum(each.bytes for each in stored),
        notes={"repository": repository.id, "commits": str(len(commits))},
    )
    return RunDetail(summary, metrics, stored)


def _file(repository: FakeRepository, file: FakeFile, at: datetime) -> StoredFile:
    assert file.oid is not None, "a text is not shown as a file"
    path = repository.objects[file.oid]
    return StoredFile(file.path, file.size, file.oid, str(path), at)
