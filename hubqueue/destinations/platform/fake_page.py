"""A training on the fake Platform as the sandbox's page shows it."""

from __future__ import annotations

from typing import Any, Literal

from hubqueue.destinations.platform.fake_runs import RunRecord, UploadRecord
from hubqueue.sandbox.page import shown_file, shown_time
from hubqueue.sandbox.service import RunDetail, RunSummary, StoredFile

_KINDS: dict[str, Literal["busy", "good", "bad"]] = {
    "training": "busy",
    "complete": "good",
    "failed": "bad",
    "cancelled": "bad",
}


def summary(run: RunRecord) -> RunSummary:
    """A training as a row of the list."""
    planned = run.events[0].data.get("epochs")
    return RunSummary(
        id=run.model_id,
        name=f"{run.project}/{run.name}",
        state=run.state,
        created_at=run.created_at,
        changed_at=run.events[-1].at,
        epochs=len(run.epochs),
        planned_epochs=planned if isinstance(planned, int) else None,
        checkpoints=len(run.files),
        bytes=sum(each.size or 0 for each in run.files),
        state_kind=_KINDS[run.state],
        can_cancel=run.state == "training",
        notes={"events": str(len(run.events)), "start": f"number {run.run_id}"}
        | ({"repeated events": str(len(run.duplicates))} if run.duplicates else {}),
        more={
            "model_id": run.model_id,
            "project": run.project,
            "asked_name": run.asked_name,
            "run_id": run.run_id,
            "events": len(run.events),
            "duplicates": len(run.duplicates),
            "last_event_at": shown_time(run.events[-1].at),
        },
    )


def detail(run: RunRecord) -> RunDetail:
    """A training with its metrics, its checkpoints and every event."""
    log = [
        {
            "event": each.event,
            "run_id": each.run_id,
            "at": shown_time(each.at),
            "ignored": each.ignored,
            "data": each.data,
        }
        for each in run.events
    ]
    staged = [shown_file(_file(run, each)) for each in run.staged]
    return RunDetail(
        summary(run),
        {epoch: _metrics(data) for epoch, data in run.epochs.items()},
        [_file(run, each) for each in run.files],
        {"run_ids": run.run_ids, "staged": staged, "log": log},
    )


def _metrics(data: dict[str, Any]) -> dict[str, Any]:
    extra = {name: data[name] for name in ("fitness", "best_fitness") if name in data}
    return {**data.get("metrics", {}), **extra}


def _file(run: RunRecord, upload: UploadRecord) -> StoredFile:
    assert upload.staged_at is not None
    ends = [each.data.get("results") for each in run.counted if each.event == "training_complete"]
    final = any(isinstance(each, dict) and each.get("modelPath") == upload.object_path for each in ends)
    promoted = upload.promoted_at is not None
    return StoredFile(
        name=upload.filename,
        bytes=upload.size or 0,
        sha256=upload.sha256 or "",
        path=str(upload.path),
        at=upload.promoted_at or upload.staged_at,
        is_best=upload.filename.startswith("best"),
        is_final=final,
        note=", ".join(
            note
            for note, applies in (("not promoted", not promoted), ("came with a key", upload.with_key))
            if applies
        ),
        href=f"/files/{run.model_id}/{upload.filename}" if promoted else None,
        more={
            "filename": upload.filename,
            "run_id": upload.run_id,
            "object": upload.object_path,
            "with_key": upload.with_key,
            "staged_at": shown_time(upload.staged_at),
            "promoted_at": shown_time(upload.promoted_at) if upload.promoted_at else None,
        },
    )
