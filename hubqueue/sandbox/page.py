"""What the sandbox shows to a person: a plain page that refreshes itself, and the same as JSON.

A run on Platform can be cancelled there, as on the real site.

Needs no key, is never hit by a fault, and never counts as a request of the protocol.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from hubqueue.sandbox.answers import HUB, Answer, as_json
from hubqueue.sandbox.archive import Archive
from hubqueue.sandbox.model import Model, finite
from hubqueue.sandbox.records import RequestRecord, RunRecord, UploadRecord

_SHOWN_REQUESTS = 20
_LISTED_REQUESTS = 1000
_DOCUMENTS = ("/api/models", "/api/runs", "/api/requests")
_CANCEL = re.compile(r"/api/runs/([^/]+)/cancel")
_ICON = "/favicon.ico"
# No script, nothing from elsewhere, and in nobody's frame, where a click could be stolen.
_OF_PAGE = (
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),  # with none at all browsers call the origin of the cancel button null
    ("Cache-Control", "no-store"),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem; }
th, td { border-bottom: 1px solid #8884; padding: .25rem .6rem; text-align: left; }
code { font-size: 90%; }
"""


def is_for_people(method: str, path: str) -> bool:
    """Whether this request is answered here."""
    if method in ("GET", "HEAD"):
        return path in ("/", _ICON) or path.startswith("/api/")
    return method == "POST" and _CANCEL.fullmatch(path) is not None


def show(method: str, path: str, archive: Archive) -> Answer:
    """The page, one of the documents under /api/, or the way back to the page after a cancel."""
    with archive.changed:
        if method == "POST":
            return _cancelled(path, archive)
        if path == _ICON:
            return Answer(204)  # browsers ask for it
        if path == "/":
            shown = _page(archive).encode("utf-8", "replace")
            return Answer(200, shown, content_type="text/html; charset=utf-8", headers=_OF_PAGE)
        if path == "/api/models":
            return as_json(200, {"models": [_summary(model) for model in archive.models()]})
        if path == "/api/runs":
            return as_json(200, {"runs": [_run_summary(run) for run in archive.runs()]})
        if path == "/api/requests":
            last = archive.requests()[-_LISTED_REQUESTS:]
            return as_json(200, {"requests": [_request(record) for record in last]})
        if run := archive.run(path.removeprefix("/api/runs/")):
            return as_json(200, _run_detail(run))
        model = archive.model(path.removeprefix("/api/models/"))
        return as_json(200, _detail(model)) if model else HUB.refusal(404, "there is nothing here")


def _cancelled(path: str, archive: Archive) -> Answer:
    named = _CANCEL.fullmatch(path)
    if named is None or not archive.cancel(named.group(1)):
        return HUB.refusal(404, "there is no such run")
    return Answer(303, headers=(("Location", "/"),))


def _summary(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "name": model.name,
        "status": model.status,
        "created_at": model.created_at.isoformat(),
        "epochs": len(model.metrics),
        "checkpoints": len(model.checkpoints),
        "bytes": sum(record.size for record in model.checkpoints),
        "beats": len(model.beats),
        "last_beat_at": _time(model.beats[-1].at) if model.beats else None,
    }


def _detail(model: Model) -> dict[str, Any]:
    checkpoints = [
        {
            "epoch": record.epoch,
            "type": record.type,
            "is_best": record.is_best,
            "map": finite(record.map),
            "name": record.name,
            "bytes": record.size,
            "sha256": record.sha256,
            "path": str(record.path),
            "at": _time(record.at),
        }
        for record in model.checkpoints
    ]
    metrics = {str(epoch): finite(values) for epoch, values in model.read_metrics().items()}
    beats = [{"agent": beat.agent, "agent_id": beat.agent_id, "at": _time(beat.at)} for beat in model.beats]
    return {
        **_summary(model),
        "given": finite(model.given),
        "metrics": metrics,
        "files": checkpoints,
        "heartbeats": beats,
    }


def _run_summary(run: RunRecord) -> dict[str, Any]:
    return {
        "model_id": run.model_id,
        "project": run.project,
        "name": run.name,
        "asked_name": run.asked_name,
        "run_id": run.run_id,
        "state": run.state,
        "created_at": run.created_at.isoformat(),
        "epochs": len(run.epochs),
        "events": len(run.events),
        "duplicates": len(run.duplicates),
        "last_event_at": _time(run.events[-1].at),
    }


def _run_detail(run: RunRecord) -> dict[str, Any]:
    events = [
        {
            "event": each.event,
            "run_id": each.run_id,
            "at": _time(each.at),
            "ignored": each.ignored,
            "data": each.data,
        }
        for each in run.events
    ]
    return {
        **_run_summary(run),
        "run_ids": run.run_ids,
        "staged": [_upload(each) for each in run.staged],
        "files": [_upload(each) for each in run.files],
        "log": events,
    }


def _upload(upload: UploadRecord) -> dict[str, Any]:
    return {
        "filename": upload.filename,
        "run_id": upload.run_id,
        "object": upload.object_path,
        "bytes": upload.size,
        "sha256": upload.sha256,
        "path": str(upload.path),
        "with_key": upload.with_key,
        "staged_at": _time(upload.staged_at) if upload.staged_at else None,
        "promoted_at": _time(upload.promoted_at) if upload.promoted_at else None,
    }


def _request(record: RequestRecord) -> dict[str, Any]:
    return {
        "method": record.method,
        "path": record.path,
        "kind": record.kind,
        "event": record.event,
        "model_id": record.model_id,
        "status": record.status,
        "at": _time(record.at),
        "idempotency_key": record.idempotency_key,
        "replayed": record.replayed,
        "body_bytes": record.body_bytes,
        "epochs": list(record.epochs),
        "fault": record.fault,
        "ended": record.ended,
        "with_key": record.with_key,
    }


def _page(archive: Archive) -> str:
    models = archive.models()
    runs = archive.runs()
    requests = archive.requests()
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=3>",
        f"<title>hubqueue sandbox</title><style>{_STYLE}</style><h1>hubqueue sandbox</h1>",
        f"<p>{len(models)} models on HUB, {len(runs)} runs on Platform, {len(requests)} requests.</p>",
        "<p>As JSON: " + ", ".join(f"<a href={each}>{each}</a>" for each in _DOCUMENTS) + ".</p>",
    ]
    for model in models:
        parts.append(_model_part(model))
    for run in runs:
        parts.append(_run_part(run))
    if requests:
        rows = [_request_row(record) for record in reversed(requests[-_SHOWN_REQUESTS:])]
        head = ("time", "kind", "request", "bytes", "answer", "fault")
        parts.append("<h2>Last requests</h2>" + _table(head, rows))
    return "\n".join(parts) + "\n"


def _model_part(model: Model) -> str:
    id_ = html.escape(model.id)
    beat = _time(model.beats[-1].at) if model.beats else "none"
    epochs = sorted(int(epoch) for epoch in model.metrics)
    parts = [
        f"<h2>{html.escape(model.name) or 'unnamed'} <code><a href='/api/models/{id_}'>{id_}</a></code></h2>",
        f"<p>{model.status} &middot; {len(epochs)} epochs"
        + (f" (last {epochs[-1]})" if epochs else "")
        + f" &middot; {len(model.checkpoints)} files &middot; last heartbeat: {html.escape(beat)}</p>",
    ]
    if model.checkpoints:
        rows = [
            (
                f"<a href='/weights/{id_}/{html.escape(record.name)}'>{html.escape(record.name)}</a>",
                record.type,
                "best" if record.is_best else "" if record.map is None else f"map {record.map:g}",
                f"{record.size:,}",
                f"<code>{record.sha256[:16]}</code>",
                _time(record.at),
            )
            for record in reversed(model.checkpoints)
        ]
        parts.append(_table(("file", "type", "", "bytes", "sha256", "time"), rows))
    return "\n".join(parts)


def _run_part(run: RunRecord) -> str:
    id_, epochs = html.escape(run.model_id), sorted(run.epochs)
    title = html.escape(f"{run.project}/{run.name}")
    parts = [
        f"<h2>{title} <code><a href='/api/runs/{id_}'>{id_}</a></code></h2>",
        f"<p>{run.state} &middot; run {run.run_id} &middot; {len(epochs)} epochs"
        + (f" (last {epochs[-1]})" if epochs else "")
        + f" &middot; {len(run.files)} files, {len(run.staged)} staged &middot; {len(run.events)} events"
        + (f", {len(run.duplicates)} of them duplicates" if run.duplicates else "")
        + f" &middot; last event: {_time(run.events[-1].at)}</p>",
    ]
    if run.state == "training":
        parts.append(f"<form method=post action='/api/runs/{id_}/cancel'><button>cancel</button></form>")
    if run.files or run.staged:
        rows = [
            (
                f"<a href='/files/{id_}/{html.escape(upload.filename)}'>{html.escape(upload.filename)}</a>"
                if upload.promoted_at
                else html.escape(upload.filename),
                "promoted" if upload.promoted_at else "staged",
                "came with a key" if upload.with_key else "",
                f"{upload.size:,}",
                f"<code>{(upload.sha256 or '')[:16]}</code>",
                _time(upload.staged_at) if upload.staged_at else "",
            )
            for upload in [*reversed(run.files), *reversed(run.staged)]
        ]
        parts.append(_table(("file", "state", "", "bytes", "sha256", "time"), rows))
    return "\n".join(parts)


def _request_row(record: RequestRecord) -> tuple[str, ...]:
    answer = str(record.status or ("none" if record.ended else "running"))
    return (
        _time(record.at),
        record.kind + (f" ({record.event})" if record.event else ""),
        f"<code>{html.escape(record.method)} {html.escape(record.path)}</code>",
        f"{record.body_bytes:,}",
        answer + (" (replayed)" if record.replayed else ""),
        html.escape(record.fault or ""),
    )


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["".join(f"<th>{name}" for name in head)]
    lines += ["".join(f"<td>{cell}" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}" for line in lines) + "</table>"


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
