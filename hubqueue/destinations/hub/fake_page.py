"""A model of the fake HUB as the sandbox's page shows it, and as JSON of HUB's own."""

from __future__ import annotations

from typing import Any, Literal

from hubqueue.destinations.hub.fake_models import CheckpointRecord, Model
from hubqueue.sandbox.page import finite, shown_file, shown_time
from hubqueue.sandbox.service import RunDetail, RunSummary, StoredFile

_KINDS: dict[str, Literal["busy", "good", ""]] = {"new": "", "training": "busy", "trained": "good"}


def summary(model: Model) -> RunSummary:
    """A model as a row of the list."""
    last_beat = model.beats[-1].at if model.beats else None
    return RunSummary(
        id=model.id,
        name=model.name or "unnamed",
        state=model.status,
        created_at=model.created_at,
        changed_at=model.changed_at,
        epochs=len(model.metrics),
        planned_epochs=model.planned_epochs,
        checkpoints=len(model.checkpoints),
        bytes=sum(record.size for record in model.checkpoints),
        state_kind=_KINDS[model.status],
        notes={"heartbeats": str(len(model.beats))}
        | ({"last heartbeat": shown_time(last_beat)} if last_beat else {}),
        more={"beats": len(model.beats), "last_beat_at": shown_time(last_beat) if last_beat else None},
    )


def as_model(run: RunSummary) -> dict[str, Any]:
    """The same as `/api/models` shows it."""
    return {
        "id": run.id,
        "name": run.name,
        "status": run.state,
        "created_at": run.created_at.isoformat(),
        "epochs": run.epochs,
        "checkpoints": run.checkpoints,
        "bytes": run.bytes,
        **run.more,
    }


def detail(model: Model) -> RunDetail:
    """A model with its metrics and checkpoints."""
    beats = [
        {"agent": beat.agent, "agent_id": beat.agent_id, "at": shown_time(beat.at)} for beat in model.beats
    ]
    files = [_file(model, each) for each in model.checkpoints]
    return RunDetail(summary(model), model.read_metrics(), files, {"given": model.given, "heartbeats": beats})


def document(model: Model) -> dict[str, Any]:
    """A model as `/api/models/<id>` shows it."""
    found = detail(model)
    metrics = {str(epoch): values for epoch, values in found.metrics.items()}
    files = [shown_file(each) for each in found.files]
    return {**as_model(found.summary), **finite({**found.more, "metrics": metrics}), "files": files}


def _file(model: Model, record: CheckpointRecord) -> StoredFile:
    return StoredFile(
        name=record.name,
        bytes=record.size,
        sha256=record.sha256,
        path=str(record.path),
        at=record.at,
        epoch=record.epoch,
        is_best=record.is_best,
        is_final=record.type == "final",
        note="" if record.map is None else f"map {record.map:g}",
        href=f"/weights/{model.id}/{record.name}",
        more={"type": record.type, "map": record.map},
    )
