"""The open protocol for servers of one's own, as docs/http-protocol.yaml defines it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import (
    Attempt,
    Batch,
    Blocked,
    Blocks,
    Delivered,
    Key,
    Kind,
    Outcome,
    Remote,
    Scope,
    Snapshot,
    position,
    quiet,
)
from hubqueue.destinations.http.server import Server, delivered
from hubqueue.destinations.http.upload import Uploads
from hubqueue.destinations.wire.api import ApiResponse
from hubqueue.destinations.wire.kept import is_kept_address, is_kept_id

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


class HttpTransport:
    """Sends to one server. Safe to use from several threads."""

    def __init__(
        self,
        settings: DestinationSettings,
        keys: Callable[[], tuple[Key, ...]],
        open_body: Callable[[Snapshot], Blocks],
    ) -> None:
        self._server = Server(settings, keys)
        self._uploads = Uploads(self._server, open_body)

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send a batch: the start of a training, metrics, a checkpoint, its end, or a heartbeat."""
        if batch.kind is Kind.REGISTRATION:
            return self._start(batch, attempt)
        if not _ID.fullmatch(batch.run.remote_id or ""):
            return Blocked("invalid model id of the run", Scope.RUN)
        match batch.kind:
            case Kind.METRICS:
                logged = [
                    {**position(entry).given, "values": json.loads(entry.payload)} for entry in batch.entries
                ]
                return self._post("metrics", {"metrics": logged}, batch, attempt)
            case Kind.CKPT:
                return self._uploads.send(batch, attempt)
            case Kind.COMPLETION:
                return self._post("end", json.loads(batch.entries[0].payload), batch, attempt)
            case Kind.HEARTBEAT:
                return self._post("heartbeat", {}, batch, attempt)
            case other:
                raise ValueError(f"a server of this protocol accepts no {other}")

    def check(self) -> Outcome:
        """Ask for a list of one run: that needs the token, and a signature that is accepted."""
        response = self._server.ask("GET", "/runs?limit=1", quiet(), unknown=Scope.DESTINATION)
        if not isinstance(response, ApiResponse):
            return response
        is_list = isinstance((response.json or {}).get("runs"), list)
        return Delivered() if is_list else self._server.unexpected(response)

    def close(self) -> None:
        self._server.close()

    def _start(self, batch: Batch, attempt: Attempt) -> Outcome:
        run, (entry,) = batch.run, batch.entries
        payload = {"id": run.id, "name": run.shown_name, **json.loads(entry.payload)}
        response = self._server.post(
            "/runs", payload, attempt, idempotency_key=batch.idempotency_key, unknown=Scope.DESTINATION
        )
        if not isinstance(response, ApiResponse):
            return response
        found, url = (response.json or {}).get("id"), (response.json or {}).get("url")
        if not is_kept_id(found, self._server.secrets()):
            return self._server.missing("valid id of the run")
        shown = url if is_kept_address(url, self._server.secrets()) else None
        return Delivered(Remote(id=found, url=shown, cancelled=delivered(response).remote.cancelled))

    def _post(self, what: str, payload: dict[str, object], batch: Batch, attempt: Attempt) -> Outcome:
        key = batch.idempotency_key if batch.entries else None
        target = f"/runs/{batch.run.remote_id}/{what}"
        response = self._server.post(target, payload, attempt, idempotency_key=key)
        return delivered(response) if isinstance(response, ApiResponse) else response
