"""The fake HUB of the sandbox: what each route checks, stores and responds.

Promises: nothing is stored before the whole request was received and parsed; a refused request leaves no
trace. Refuses: a wrong key (401), an unknown model (404), a wrong content type or shape (400).
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import string
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from hubqueue.destinations.hub import fake_page
from hubqueue.destinations.hub.fake_models import Model
from hubqueue.sandbox.archive import Fact
from hubqueue.sandbox.multipart import BadForm, Form, boundary_of, read_form
from hubqueue.sandbox.request import Request
from hubqueue.sandbox.response import Dialect, Refused, Response, as_json
from hubqueue.sandbox.routes import Entrance, Prepared, RoutedService, now_text, responding
from hubqueue.sandbox.service import RunDetail, RunSummary

_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 20
_WEIGHTS = r"/weights/([^/]+)/[^/]+"
_EPOCH = re.compile(r"0|[1-9][0-9]{0,8}")


def _envelope(data: Any, *, message: str = "OK") -> Response:
    """The envelope of every success: `{"success": true, "message": ..., "data": ...}`."""
    return as_json(200, {"success": True, "message": message, "data": data})


class FakeHub(RoutedService):
    """The routes of HUB, which accepts a key as a bearer token or in `x-api-key`.

    `models` are those that were not deleted, by id, oldest first; read them under `Archive.changed`.
    """

    name = "hub"
    title = "HUB"
    events: Mapping[str, str] = {}
    facts = frozenset({"created", "updated", "deleted", "metrics", "checkpoint", "beat"})
    key_headers = ("authorization", "x-api-key")
    dialect = Dialect(
        done=_envelope({}),
        null=b'{"success": true, "message": "OK", "data": null}',
        error=lambda reason: json.dumps({"success": False, "message": reason, "data": {}}).encode(),
    )

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self._gone: set[str] = set()
        model = r"/v1/models/([^/]+)"
        table: tuple[tuple[str, str, str, Callable[[Request, str], Prepared]], ...] = (
            ("POST", r"/v1/auth", "auth", self._check_key),
            ("POST", r"/v1/models", "registration", self._create),
            ("GET", r"/v1/models", "read", self._list),
            ("GET", model, "read", self._read),
            ("PATCH", model, "other", self._update),
            ("DELETE", model, "other", self._delete),
            ("POST", model, "metrics", self._take_metrics),
            ("GET", model + "/metrics", "read", self._read_metrics),
            ("POST", model + "/upload", "ckpt", self._take_checkpoint),
            ("POST", model + "/export", "other", self._export),
            ("POST", r"/v1/agent/heartbeat/models/([^/]+)", "heartbeat", self._take_beat),
            ("GET", _WEIGHTS, "read", self._serve_weights),
        )
        super().__init__(
            # Weights need no key, as the signed URLs of the real hub need none.
            Entrance(method, re.compile(path), kind, take, needs_key=path != _WEIGHTS)
            for method, path, kind, take in table
        )

    def variables(self, url: str, key: str) -> dict[str, str]:
        """The environment variables that make a training send to `url`, with `key`."""
        return {"ULTRALYTICS_HUB_API": url, "HUB_API_KEY": key}

    def key_of(self, request: Request) -> str:
        """The API key of a request."""
        return request.bearer() or request.headers.get("x-api-key", "").strip()

    def look_up(self, model_id: str | None, request: Request) -> None:
        """The model must exist, unless the request is a repeated one."""
        if model_id is not None and not self._archive.has_receipt(request.receipt):
            self._known(model_id)

    def _known(self, model_id: str) -> Model:
        with self._archive.changed:
            model = self.models.get(model_id)
        if model is None:
            raise Refused(404, "there is no such model")
        return model

    # --- state

    def reset(self) -> None:
        """Clear the state. Called before the archive reads its facts back."""
        self.models.clear()
        self._gone.clear()

    def apply(self, fact: Fact) -> None:
        """Apply one fact."""
        model_id = fact["model"]
        match fact["fact"]:
            case "created":
                at = datetime.fromisoformat(fact["at"])
                self.models[model_id] = Model(model_id, created_at=at, changed_at=at, given=fact["given"])
            case "deleted":
                self.models.pop(model_id, None)
                self._gone.add(model_id)
                if fact["hard"]:
                    shutil.rmtree(self._archive.folder_of(model_id), ignore_errors=True)
            case _:
                self.models[model_id].apply(fact, self._archive.folder_of(model_id))

    # --- keys and models

    def _check_key(self, request: Request, _: str) -> Prepared:
        request.body.drain()
        return responding(_envelope({}))

    def _create(self, request: Request, _: str) -> Prepared:
        given = request.json_object()
        for name in ("config", "dataset", "lineage", "meta"):
            if not isinstance(given.get(name, {}), dict):
                raise Refused(400, f"{name} has to be an object")

        def make() -> tuple[Fact, Response]:
            model_id = self._new_id()
            fact = {"fact": "created", "model": model_id, "at": now_text(), "given": given}
            return fact, _envelope({"id": model_id}, message="model created")

        return Prepared(lambda: self._keep(request, make))

    def _new_id(self) -> str:
        while True:
            new = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
            if new not in self.models and new not in self._gone:
                return new

    def _list(self, request: Request, _: str) -> Prepared:
        request.body.drain()
        query = {name: values[-1] for name, values in request.query.items()}
        limit = query.get("limit", "10")
        if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
            raise Refused(400, "limit has to be a number from 1 to 1000")
        wanted = query.get("query", "").lower()
        found = [model for model in self._all() if wanted in model.name.lower()]
        ids = [model.id for model in found]
        cursor = query.get("last_doc_id")
        if cursor is not None and cursor not in ids:
            raise Refused(400, "last_doc_id is not the id of a model in this list")
        start = ids.index(cursor) + 1 if cursor is not None else 0
        page = found[start : start + int(limit)]
        data: dict[str, Any] = {
            "results": [model.document(request.root) for model in page],
            "total": len(found),
        }
        if start + len(page) < len(found):
            data["lastRecordId"] = page[-1].id
        return responding(_envelope(data))

    def _all(self) -> list[Model]:
        with self._archive.changed:
            return list(self.models.values())

    def _read(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        return responding(_envelope(self._known(model_id).document(request.root)))

    def _update(self, request: Request, model_id: str) -> Prepared:
        changes = request.json_object()

        def make() -> tuple[Fact, Response]:
            self._known(model_id)
            return {"fact": "updated", "model": model_id, "changes": changes}, _envelope({"id": model_id})

        return Prepared(lambda: self._keep(request, make))

    def _delete(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        hard = request.query.get("hard", ["False"])[-1].lower() == "true"

        def make() -> tuple[Fact, Response]:
            self._known(model_id)
            return {"fact": "deleted", "model": model_id, "hard": hard}, _envelope({"id": model_id})

        return Prepared(lambda: self._keep(request, make))

    def _export(self, request: Request, model_id: str) -> Prepared:
        if not isinstance(request.json_object().get("format"), str):
            raise Refused(400, "format has to be a text")
        return responding(_envelope({}, message="the request is valid, but the sandbox exports nothing"))

    # --- what a training sends

    def _take_metrics(self, request: Request, model_id: str) -> Prepared:
        body = request.json_object()
        metrics = body.get("metrics")
        if not isinstance(metrics, dict) or body.get("type", "metrics") != "metrics":
            raise Refused(400, 'metrics have to be {"metrics": {epoch: text}, "type": "metrics"}')
        for epoch, text in metrics.items():
            if not _EPOCH.fullmatch(epoch):
                raise Refused(400, "a key of metrics is not an epoch in decimal digits")
            if not isinstance(text, str) or not _is_object_text(text):
                raise Refused(400, f"the metrics of epoch {epoch} are not the JSON text of an object")

        def make() -> tuple[Fact, Response]:
            self._known(model_id)
            return {"fact": "metrics", "model": model_id, "at": now_text(), "metrics": metrics}, _envelope({})

        return Prepared(
            lambda: self._keep(request, make), epochs=tuple(sorted(int(epoch) for epoch in metrics))
        )

    def _read_metrics(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        return responding(_envelope(self._known(model_id).series()))

    def _take_checkpoint(self, request: Request, model_id: str) -> Prepared:
        boundary = boundary_of(request.headers.get("content-type", ""))
        if boundary is None:
            raise Refused(400, "the body has to be multipart/form-data with a boundary")
        request.need_length()
        arriving = self._archive.incoming()
        try:
            form = read_form(request.body.read, boundary, arriving)
        except BadForm as error:
            raise Refused(400, str(error)) from error
        except OSError as error:
            raise Refused(507, f"the sandbox cannot store this: {error.strerror}") from error
        try:
            upload = _understood(form)
        except Refused:
            arriving.unlink(missing_ok=True)
            raise

        def make() -> tuple[Fact, Response]:
            model = self._known(model_id)
            file = self._archive.store(arriving, model_id, len(model.checkpoints) + 1, upload["name"])
            fact = {"fact": "checkpoint", "model": model_id, "at": now_text(), "file": file}
            return fact | upload, _envelope({})

        def commit() -> tuple[Response, bool]:
            try:
                return self._keep(request, make)
            finally:
                arriving.unlink(missing_ok=True)

        return Prepared(commit, lambda: arriving.unlink(missing_ok=True), epochs=(upload["epoch"],))

    def _take_beat(self, request: Request, model_id: str) -> Prepared:
        body = request.json_object()
        agent, agent_id = body.get("agent"), body.get("agentId")
        if not isinstance(agent, str) or not isinstance(agent_id, str | None):
            raise Refused(400, 'a heartbeat is {"agent": text, "agentId": text or null}')
        at, at_monotonic = now_text(), time.monotonic()

        def make() -> tuple[Fact, Response]:
            known = self._known(model_id).agents
            given = agent_id if agent_id in known else f"agent-{len(known) + 1}"
            fact = {"fact": "beat", "model": model_id, "agent": agent, "agent_id": given}
            return fact | {"at": at, "at_monotonic": at_monotonic}, _envelope({"agentId": given})

        return Prepared(lambda: self._keep(request, make))

    def _serve_weights(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        record = self._known(model_id).weights(request.path.rpartition("/")[2])
        if record is None or not record.path.is_file():
            raise Refused(404, "there are no such weights")
        return responding(Response(200, content_type="application/octet-stream", file=record.path))

    # --- what the page shows

    def runs(self) -> Sequence[RunSummary]:
        """Every model, as the page shows it."""
        return [fake_page.summary(model) for model in self.models.values()]

    def run(self, run_id: str) -> RunDetail | None:
        """One model with all its details, or None."""
        model = self.models.get(run_id)
        return fake_page.detail(model) if model else None

    def cancel(self, run_id: str) -> bool:
        """Always False: HUB has no cancelling."""
        return False

    def document(self, path: str) -> Any | None:
        """The models at `/api/models`, and one at `/api/models/<id>`."""
        if path == "/api/models":
            return {"models": [fake_page.as_model(each) for each in self.runs()]}
        model = self.models.get(path.removeprefix("/api/models/"))
        return fake_page.document(model) if model else None


def _is_object_text(text: str) -> bool:
    try:
        # Not strict on purpose: this protocol has bare non-finite numbers inside the text.
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _understood(form: Form) -> dict[str, Any]:
    """The fields of an upload form, checked. Raises `Refused` (400)."""
    fields, type_ = form.fields, form.fields.get("type")
    if type_ not in ("epoch", "final"):
        raise Refused(400, "type has to be epoch or final")
    if not _EPOCH.fullmatch(fields.get("epoch", "")):
        raise Refused(400, "epoch has to be a whole number")
    expected = "best.pt" if type_ == "final" else "last.pt"
    if form.file_field != expected or form.filename != expected:
        raise Refused(400, f"the file of type {type_} has to be sent as {expected}")
    is_best, map_ = False, None
    if type_ == "epoch":
        if fields.get("isBest", "").lower() not in ("true", "false"):
            raise Refused(400, "isBest has to be True or False")
        is_best = fields["isBest"].lower() == "true"
    else:
        try:
            map_ = float(fields.get("map", ""))
        except ValueError:
            raise Refused(400, "map has to be a number") from None
    epoch = int(fields["epoch"])
    return {
        "epoch": epoch,
        "type": type_,
        "is_best": is_best,
        "map": map_,
        "filename": form.filename,
        "name": "best.pt" if type_ == "final" else f"epoch-{epoch}.pt",
        "size": form.size,
        "sha256": form.sha256,
    }
