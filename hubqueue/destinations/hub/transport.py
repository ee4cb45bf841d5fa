"""The protocol of Ultralytics HUB, as its own clients speak it (hub-sdk 0.0.25, ultralytics 8.2 to 8.3).

The response proves a delivery: 2xx, complete, JSON, and `success` true in it. A captive portal, a redirect, an empty or
truncated response proves nothing.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Mapping
from typing import Any

from hubqueue.config.reader import DestinationSettings
from hubqueue.destinations.base import Attempt, Blocks, quiet
from hubqueue.destinations.wire.api import Api, ApiResponse
from hubqueue.destinations.wire.body import Body, Bytes, File, Multipart, form_boundary
from hubqueue.destinations.wire.kept import is_kept_id, is_kept_name
from hubqueue.domain.entry import Entry, Kind, Snapshot
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Blocked, Delivered, Outcome, Remote, Scope

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_JSON = {"Content-Type": "application/json"}


class HubTransport:
    """Sends to one HUB. Safe to use from several threads."""

    def __init__(
        self,
        settings: DestinationSettings,
        keys: Callable[[], tuple[str, ...]],
        open_body: Callable[[Snapshot], Blocks],
    ) -> None:
        self._settings, self._keys, self._open_body = settings, keys, open_body
        self._api = Api(settings, keys, lambda key: {"x-api-key": key})

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch: a registration, metrics of one or more epochs, one checkpoint, or a heartbeat."""
        match batch.kind:
            case Kind.REGISTRATION:
                return self._register(batch, attempt)
            case Kind.METRICS:
                return self._send_metrics(batch, attempt)
            case Kind.CKPT:
                return self._send_ckpt(batch, attempt)
            case Kind.HEARTBEAT:
                return self._beat(batch, attempt)
            case other:
                raise ValueError(f"a HUB accepts no {other}")

    def check(self) -> Outcome:
        """Ask `POST /v1/auth` whether the key is accepted."""
        result = self._ask("POST", "/v1/auth", Bytes(b""), quiet(), unknown=Scope.DESTINATION)
        return Delivered() if isinstance(result, dict) else result

    def read_model(self, model_id: str) -> tuple[Outcome, dict[str, Any] | None]:
        """Ask `GET /v1/models/{id}`; the model object when the outcome is `Delivered`."""
        if not _ID.fullmatch(model_id):
            return Blocked("invalid model id", Scope.RUN), None
        result = self._ask("GET", f"/v1/models/{model_id}", Bytes(b""), quiet())
        if not isinstance(result, dict):
            return result, None
        data = result.get("data")
        return (Delivered(), data) if isinstance(data, dict) else (self._api.missing("model"), None)

    def close(self) -> None:
        self._api.close()

    def _register(self, batch: Batch, attempt: Attempt) -> Outcome:
        body = Bytes(batch.entries[0].payload.encode())
        result = self._ask("POST", "/v1/models", body, attempt, batch, _JSON, unknown=Scope.DESTINATION)
        if not isinstance(result, dict):
            return result
        data = result.get("data")
        found = data.get("id") if isinstance(data, dict) else None
        if not is_kept_id(found, self._keys(), longest=64):
            return self._api.missing("valid model id")
        return Delivered(Remote(id=found, url=f"{self._settings.web_url.rstrip('/')}/models/{found}"))

    def _send_metrics(self, batch: Batch, attempt: Attempt) -> Outcome:
        epochs = {entry.key: entry.payload for entry in batch.entries}
        body = Bytes(json.dumps({"metrics": epochs, "type": "metrics"}).encode())
        return self._send_to_model("", body, attempt, batch, _JSON)

    def _send_ckpt(self, batch: Batch, attempt: Attempt) -> Outcome:
        (entry,) = batch.entries
        body = self._form(entry, batch.idempotency_key)
        return self._send_to_model("/upload", body, attempt, batch, {"Content-Type": body.content_type})

    def _form(self, entry: Entry, idempotency_key: str) -> Multipart:
        payload, snapshot = json.loads(entry.payload), entry.snapshot
        assert snapshot is not None, "a checkpoint has a snapshot"
        fields = [("epoch", str(payload["epoch"]))]
        if payload["final"]:
            fields += [("type", "final"), ("map", str(float(payload["map"])))]
        else:
            fields += [("type", "epoch"), ("isBest", str(bool(payload["is_best"])))]
        return Multipart(
            fields,
            file_name="best.pt" if payload["final"] else "last.pt",
            file=File(snapshot.size, lambda: self._open_body(snapshot)),
            boundary=form_boundary(idempotency_key),
        )

    def _send_to_model(
        self, path: str, body: Body, attempt: Attempt, batch: Batch, headers: Mapping[str, str]
    ) -> Outcome:
        model_id = batch.run.remote_id or ""
        if not _ID.fullmatch(model_id):
            return Blocked("invalid model id of the run", Scope.RUN)
        result = self._ask("POST", f"/v1/models/{model_id}{path}", body, attempt, batch, headers)
        return Delivered() if isinstance(result, dict) else result

    def _beat(self, batch: Batch, attempt: Attempt) -> Outcome:
        model_id = batch.run.remote_id or ""
        if not _ID.fullmatch(model_id):
            return Blocked("invalid model id of the run", Scope.RUN)
        payload = {"agent": _agent(), "agentId": batch.run.remembered.get("agent_id")}
        body = Bytes(json.dumps(payload).encode())
        result = self._ask(
            "POST", f"/v1/agent/heartbeat/models/{model_id}", body, attempt, headers=_JSON, proof=False
        )
        if not isinstance(result, dict):
            return result
        data = result.get("data")
        agent_id = data.get("agentId") if isinstance(data, dict) else None
        # A response without an agent does not remove the identity of the run.
        kept = agent_id if is_kept_name(agent_id, self._keys(), longest=128) else None
        return Delivered(Remote(remember={"agent_id": kept}))

    def _ask(
        self,
        method: str,
        path: str,
        body: Body,
        attempt: Attempt,
        batch: Batch | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        unknown: Scope = Scope.RUN,
        proof: bool = True,
    ) -> dict[str, Any] | Outcome:
        """The JSON of the response, or the outcome if there is none. `proof` requires its `success`."""
        key = batch.idempotency_key if batch is not None else None
        response = self._api.ask(
            method, path, body, attempt, headers=headers, idempotency_key=key, unknown=unknown
        )
        if not isinstance(response, ApiResponse):
            return response
        if response.json is None or response.json.get("success", not proof) is not True:
            return self._api.unexpected(response)
        return response.json


def _agent() -> str:
    """The name that the HUB's own clients send. Environment variables identify Colab."""
    colab = "COLAB_RELEASE_TAG" in os.environ or "COLAB_BACKEND_VERSION" in os.environ
    return f"python-{platform.python_version()}-{'colab' if colab else 'local'}"
