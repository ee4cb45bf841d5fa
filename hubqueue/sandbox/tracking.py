"""A training on Platform as the sandbox knows it: built only by applying facts, one after the other."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path

from hubqueue.sandbox.model import Fact
from hubqueue.sandbox.records import EventRecord, RunRecord, UploadRecord


def begun(fact: Fact) -> RunRecord:
    """The training that a `tracked` fact is about, still without its first run."""
    return RunRecord(
        model_id=fact["model"],
        project=fact["project"],
        asked_name=fact["asked"],
        name=fact["name"],
        created_at=datetime.fromisoformat(fact["at"]),
    )


def apply(fact: Fact, run: RunRecord, folder: Path) -> None:
    """Take one fact in. `folder` holds the checkpoints of this training."""
    at = datetime.fromisoformat(fact["at"])
    match fact["fact"]:
        case "tracked" | "event":
            event = EventRecord(fact["event"], fact["data"], fact["run"], at, fact.get("ignored"))
            if event.event == "training_started" and event.run_id not in run.run_ids:
                run.run_ids.append(event.run_id)
            run.events.append(event)
            if fact.get("promotes") is not None:
                _change(run, fact["promotes"], promoted_at=at)
        case "url":
            run.uploads.append(
                UploadRecord(
                    filename=fact["filename"],
                    run_id=fact["run"],
                    object_path=fact["object"],
                    upload_path=fact["upload_path"],
                    expires_at=datetime.fromisoformat(fact["expires_at"]),
                    token=fact["token"],
                )
            )
        case "staged":
            _change(
                run,
                fact["object"],
                size=fact["size"],
                sha256=fact["sha256"],
                path=folder / fact["file"],
                with_key=fact["with_key"],
                staged_at=at,
                promoted_at=at if fact["counts"] else None,
            )
        case "cancelled":
            run.cancelled = True


def find(run: RunRecord, object_path: str) -> UploadRecord | None:
    """The upload of this object, or None."""
    return next((each for each in run.uploads if each.object_path == object_path), None)


def copied(run: RunRecord) -> RunRecord:
    """A copy that does not change when something more arrives."""
    return dataclasses.replace(
        run, run_ids=list(run.run_ids), events=list(run.events), uploads=list(run.uploads)
    )


def _change(run: RunRecord, object_path: str, **changes: object) -> None:
    for place, each in enumerate(run.uploads):
        if each.object_path == object_path:
            run.uploads[place] = dataclasses.replace(each, **changes)  # type: ignore[arg-type]
