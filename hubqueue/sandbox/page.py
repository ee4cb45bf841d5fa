"""What the sandbox shows a person: one static page, and the JSON below `/api` that it reads.

Promises: the bytes of the page do not depend on what was received, so received text cannot become code. Its policy
allows only its own script and reads from its own address. It needs no key, no injected fault hits it, and its requests
do not count as requests of a protocol.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from typing import Any

from hubqueue.sandbox.archive import Archive
from hubqueue.sandbox.request import RequestRecord
from hubqueue.sandbox.response import PLAIN, Headers, Response, as_json
from hubqueue.sandbox.service import RunDetail, RunSummary, Service, StoredFile

_SHOWN_REQUESTS = 30
_LISTED_REQUESTS = 1000
_CANCEL = re.compile(r"/api/runs/([^/]+)/cancel")
_RUN = re.compile(r"/api/runs/([^/]+)")
# The address of a run, as a service gives it to its client, opens the run on the page.
_LINK = re.compile(r"/(?:models|runs)/([A-Za-z0-9_-]+)")
_ICON = "/favicon.ico"
_PRIVATE = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),  # with none at all browsers call the origin of the cancel button null
    ("Cache-Control", "no-store"),
)


def is_for_people(method: str, path: str) -> bool:
    """Whether this request is for the page or its JSON."""
    if method in ("GET", "HEAD"):
        own = path in ("/", "/api", _ICON) or path.startswith("/api/")
        return own or _LINK.fullmatch(path) is not None
    return method == "POST" and _CANCEL.fullmatch(path) is not None


class Page:
    """The page and its JSON, for an archive and the services that keep their state in it."""

    def __init__(self, archive: Archive, services: Sequence[Service]) -> None:
        self._archive = archive
        self._services = services

    def respond(self, method: str, path: str, *, root: str, key: str) -> Response:
        """The response to a request from a person.

        `root` is the address under which they see the sandbox, `key` the API key for examples.
        """
        if method == "POST":
            return self._cancel(path)
        if path == _ICON:
            return Response(204)  # browsers ask for it
        if path == "/":
            content, headers = _page()
            return Response(200, content, content_type="text/html; charset=utf-8", headers=headers)
        if linked := _LINK.fullmatch(path):
            return self._open(linked.group(1))
        with self._archive.changed:
            found = self._document(path, root, key)
        if found is None:
            return PLAIN.refusal(404, "this path is not served")
        return as_json(200, found, _PRIVATE)

    def _open(self, run_id: str) -> Response:
        with self._archive.changed:
            known = any(each.run(run_id) is not None for each in self._services)
        if not known:
            return PLAIN.refusal(404, "there is no such run")
        return Response(302, headers=(("Location", f"/#/runs/{run_id}"),))

    def _cancel(self, path: str) -> Response:
        named = _CANCEL.fullmatch(path)
        if named is None or not any(each.cancel(named.group(1)) for each in self._services):
            return PLAIN.refusal(404, "there is no such run")
        return Response(303, headers=(("Location", "/"),))

    def _document(self, path: str, root: str, key: str) -> Any | None:
        if path == "/api":
            newest = sorted(self._runs(), key=lambda pair: pair[1].created_at, reverse=True)
            return {
                "runs": [_summary(each, run) for each, run in newest],
                "requests": self._requests(_SHOWN_REQUESTS),
                "services": [
                    {"name": each.name, "title": each.title, "variables": dict(each.variables(root, key))}
                    for each in self._services
                ],
            }
        if path == "/api/runs":
            return {"runs": [_summary(each, run) for each, run in self._runs()]}
        if path == "/api/requests":
            return {"requests": self._requests(_LISTED_REQUESTS)[::-1]}
        if named := _RUN.fullmatch(path):
            for each in self._services:
                if (run := each.run(named.group(1))) is not None:
                    return _detail(each, run) | {
                        "requests": self._requests(_SHOWN_REQUESTS, about=run.summary.id)
                    }
        documents = (each.document(path) for each in self._services)
        return next((each for each in documents if each is not None), None)

    def _runs(self) -> list[tuple[Service, RunSummary]]:
        """Every run of every service, in the order in which they were created."""
        found = [(each, run) for each in self._services for run in each.runs()]
        return sorted(found, key=lambda pair: pair[1].created_at)

    def _requests(self, most: int, *, about: str | None = None) -> list[dict[str, Any]]:
        return [_request(each) for each in self._archive.last_requests(most, about=about)]


@functools.cache
def _page() -> tuple[bytes, Headers]:
    content = resources.files("hubqueue.sandbox").joinpath("page.html").read_bytes()
    script, style = (
        " ".join(_hash(each) for each in re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), content, re.DOTALL))
        for tag in (b"script", b"style")
    )
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return content, (("Content-Security-Policy", policy), *_PRIVATE)


def _hash(code: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code).digest()).decode()}'"


def _summary(service: Service, run: RunSummary) -> dict[str, Any]:
    return {
        "service": service.name,
        "id": run.id,
        "name": run.name,
        "state": run.state,
        "state_kind": run.state_kind,
        "created_at": run.created_at.isoformat(),
        "changed_at": shown_time(run.changed_at),
        "epochs": run.epochs,
        "planned_epochs": run.planned_epochs,
        "checkpoints": run.checkpoints,
        "bytes": run.bytes,
        "can_cancel": run.can_cancel,
        "notes": dict(run.notes),
        **finite(run.more),
    }


def _detail(service: Service, run: RunDetail) -> dict[str, Any]:
    return {
        **_summary(service, run.summary),
        "metrics": {str(epoch): finite(values) for epoch, values in sorted(run.metrics.items())},
        "files": [shown_file(each) for each in run.files],
        **finite(run.more),
    }


def shown_file(file: StoredFile) -> dict[str, Any]:
    """A stored checkpoint as JSON."""
    return {
        "name": file.name,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "path": file.path,
        "at": shown_time(file.at),
        "epoch": file.epoch,
        "is_best": file.is_best,
        "is_final": file.is_final,
        "note": file.note,
        "href": file.href,
        **finite(file.more),
    }


def shown_time(at: datetime) -> str:
    """A moment as JSON: ISO 8601 with a `Z`."""
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def finite(value: Any) -> Any:
    """The value with every non-finite number, at any depth, as null: strict JSON cannot express it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def _request(record: RequestRecord) -> dict[str, Any]:
    return {
        "method": record.method,
        "path": record.path,
        "kind": record.kind,
        "event": record.event,
        "model_id": record.model_id,
        "status": record.status,
        "at": shown_time(record.at),
        "idempotency_key": record.idempotency_key,
        "replayed": record.replayed,
        "body_bytes": record.body_bytes,
        "epochs": list(record.epochs),
        "fault": record.fault,
        "ended": record.ended,
        "with_key": record.with_key,
    }
