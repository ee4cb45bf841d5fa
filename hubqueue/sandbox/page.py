"""What the sandbox shows to a person: a plain page that refreshes itself, and the same as JSON.

Needs no key, is never hit by a fault, and never counts as a request of the protocol.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from hubqueue.sandbox.answers import Answer, as_json, refusal
from hubqueue.sandbox.archive import Archive
from hubqueue.sandbox.model import Model, finite
from hubqueue.sandbox.records import RequestRecord

_SHOWN_REQUESTS = 20
_LISTED_REQUESTS = 1000
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem; }
th, td { border-bottom: 1px solid #8884; padding: .25rem .6rem; text-align: left; }
code { font-size: 90%; }
"""


def is_for_people(path: str) -> bool:
    """Whether a GET of this path is answered here."""
    return path == "/" or path.startswith("/api/")


def show(path: str, archive: Archive) -> Answer:
    """The page, or one of the documents under /api/."""
    with archive.changed:
        if path == "/":
            shown = _page(archive).encode("utf-8", "replace")
            return Answer(200, shown, content_type="text/html; charset=utf-8")
        if path == "/api/models":
            return as_json(200, {"models": [_summary(model) for model in archive.models()]})
        if path == "/api/requests":
            last = archive.requests()[-_LISTED_REQUESTS:]
            return as_json(200, {"requests": [_request(record) for record in last]})
        model = archive.model(path.removeprefix("/api/models/"))
        return as_json(200, _detail(model)) if model else refusal(404, "there is nothing here")


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


def _request(record: RequestRecord) -> dict[str, Any]:
    return {
        "method": record.method,
        "path": record.path,
        "kind": record.kind,
        "model_id": record.model_id,
        "status": record.status,
        "at": _time(record.at),
        "idempotency_key": record.idempotency_key,
        "replayed": record.replayed,
        "body_bytes": record.body_bytes,
        "epochs": list(record.epochs),
        "fault": record.fault,
        "ended": record.ended,
    }


def _page(archive: Archive) -> str:
    models = archive.models()
    requests = archive.requests()
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=3>",
        f"<title>hubqueue sandbox</title><style>{_STYLE}</style><h1>hubqueue sandbox</h1>",
        f"<p>{len(models)} models, {len(requests)} requests.</p>",
        "<p>As JSON: <a href=/api/models>/api/models</a>, <a href=/api/requests>/api/requests</a>.</p>",
    ]
    for model in models:
        parts.append(_model_part(model))
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


def _request_row(record: RequestRecord) -> tuple[str, ...]:
    answer = str(record.status or ("none" if record.ended else "running"))
    return (
        _time(record.at),
        record.kind,
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
