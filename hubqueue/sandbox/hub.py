"""The HUB's side of the protocol: what each route checks, keeps and answers.

Promises: nothing is kept before the whole request was received and understood; a refused request leaves no
trace. Refuses: a wrong key (401), a model it does not know (404), a wrong content type or shape (400).
"""

from __future__ import annotations

import json
import re
import secrets
import string
import time
from collections.abc import Callable
from typing import Any

from hubqueue.sandbox.answers import HUB, Answer, Refused, envelope
from hubqueue.sandbox.archive import Archive
from hubqueue.sandbox.model import Fact, Model
from hubqueue.sandbox.multipart import BadForm, Form, boundary_of, read_form
from hubqueue.sandbox.request import Request
from hubqueue.sandbox.routes import Entrance, Prepared, Route, Service, answering, now_text

_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 20
_WEIGHTS = r"/weights/([^/]+)/[^/]+"
_EPOCH = re.compile(r"0|[1-9][0-9]{0,8}")


class Hub(Service):
    """The routes of HUB, which knows two ways to carry a key."""

    dialect = HUB

    def __init__(self, archive: Archive, keys: tuple[str, ...], *, honour_idempotency: bool) -> None:
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
        entrances = [
            # Weights are read by a plain URL without headers, as the signed ones of the real hub are.
            Entrance(method, re.compile(path), kind, take, needs_key=path != _WEIGHTS)
            for method, path, kind, take in table
        ]
        super().__init__(archive, keys, entrances, honour_idempotency=honour_idempotency)

    def key_of(self, request: Request) -> str:
        return request.bearer() or request.headers.get("x-api-key", "").strip()

    def admit(self, route: Route, request: Request) -> None:
        if route.model_id is not None and not self._archive.has_receipt(request.receipt):
            self._known(route.model_id)

    def _known(self, model_id: str) -> Model:
        model = self._archive.model(model_id)
        if model is None:
            raise Refused(404, "there is no such model")
        return model

    # --- keys and models

    def _check_key(self, request: Request, _: str) -> Prepared:
        request.body.drain()
        return answering(envelope({}))

    def _create(self, request: Request, _: str) -> Prepared:
        given = request.json_object()
        for name in ("config", "dataset", "lineage", "meta"):
            if not isinstance(given.get(name, {}), dict):
                raise Refused(400, f"{name} has to be an object")

        def make() -> tuple[Fact, Answer]:
            model_id = self._new_id()
            fact = {"fact": "created", "model": model_id, "at": now_text(), "given": given}
            return fact, envelope({"id": model_id}, message="model created")

        return Prepared(lambda: self._keep(request, make))

    def _new_id(self) -> str:
        while self._archive.is_taken(new := "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))):
            pass
        return new

    def _list(self, request: Request, _: str) -> Prepared:
        request.body.drain()
        query = {name: values[-1] for name, values in request.query.items()}
        limit = query.get("limit", "10")
        if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
            raise Refused(400, "limit has to be a number from 1 to 1000")
        wanted = query.get("query", "").lower()
        found = [model for model in self._archive.models() if wanted in model.name.lower()]
        ids = [model.id for model in found]
        cursor = query.get("last_doc_id")
        if cursor is not None and cursor not in ids:
            raise Refused(400, "last_doc_id names no model of this list")
        start = ids.index(cursor) + 1 if cursor is not None else 0
        page = found[start : start + int(limit)]
        data: dict[str, Any] = {
            "results": [model.document(request.root) for model in page],
            "total": len(found),
        }
        if start + len(page) < len(found):
            data["lastRecordId"] = page[-1].id
        return answering(envelope(data))

    def _read(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        return answering(envelope(self._known(model_id).document(request.root)))

    def _update(self, request: Request, model_id: str) -> Prepared:
        changes = request.json_object()

        def make() -> tuple[Fact, Answer]:
            self._known(model_id)
            return {"fact": "updated", "model": model_id, "changes": changes}, envelope({"id": model_id})

        return Prepared(lambda: self._keep(request, make))

    def _delete(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        hard = request.query.get("hard", ["False"])[-1].lower() == "true"

        def make() -> tuple[Fact, Answer]:
            self._known(model_id)
            return {"fact": "deleted", "model": model_id, "hard": hard}, envelope({"id": model_id})

        return Prepared(lambda: self._keep(request, make))

    def _export(self, request: Request, model_id: str) -> Prepared:
        if not isinstance(request.json_object().get("format"), str):
            raise Refused(400, "format has to be a text")
        return answering(envelope({}, message="the sandbox exports nothing, but the request was right"))

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

        def make() -> tuple[Fact, Answer]:
            self._known(model_id)
            return {"fact": "metrics", "model": model_id, "at": now_text(), "metrics": metrics}, envelope({})

        return Prepared(
            lambda: self._keep(request, make), epochs=tuple(sorted(int(epoch) for epoch in metrics))
        )

    def _read_metrics(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        return answering(envelope(self._known(model_id).series()))

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
            raise Refused(507, f"the sandbox cannot keep this: {error.strerror}") from error
        try:
            upload = _understood(form)
        except Refused:
            arriving.unlink(missing_ok=True)
            raise

        def make() -> tuple[Fact, Answer]:
            model = self._known(model_id)
            folder = self._archive.weights_folder(model_id)
            folder.mkdir(mode=0o700, exist_ok=True)
            file = f"{len(model.checkpoints) + 1:06d}-{upload['name']}"
            arriving.replace(folder / file)
            fact = {"fact": "checkpoint", "model": model_id, "at": now_text(), "file": file}
            return fact | upload, envelope({})

        def commit() -> tuple[Answer, bool]:
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

        def make() -> tuple[Fact, Answer]:
            known = self._known(model_id).agents
            answered = agent_id if agent_id in known else f"agent-{len(known) + 1}"
            fact = {"fact": "beat", "model": model_id, "agent": agent, "agent_id": answered}
            return fact | {"at": at, "at_monotonic": at_monotonic}, envelope({"agentId": answered})

        return Prepared(lambda: self._keep(request, make))

    def _serve_weights(self, request: Request, model_id: str) -> Prepared:
        request.body.drain()
        record = self._known(model_id).weights(request.path.rpartition("/")[2])
        if record is None or not record.path.is_file():
            raise Refused(404, "there are no such weights")
        return answering(Answer(200, content_type="application/octet-stream", file=record.path))


def _is_object_text(text: str) -> bool:
    try:
        # Not strict on purpose: on this wire a non-finite number stands bare inside the text.
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
