"""The two addresses of Platform for a training: for events, and for upload targets.

The response proves that an event arrived: 2xx, complete, JSON, and `received` true in it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeGuard

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Attempt, Batch, Kind, Outcome, RetryLater, quiet
from hubqueue.destinations.wire.api import Api, ApiResponse
from hubqueue.destinations.wire.body import Bytes
from hubqueue.destinations.wire.kept import is_kept_address, is_kept_id

_EVENTS = "/api/webhooks/training/metrics"
_UPLOADS = "/api/webhooks/models/upload"
_JSON = {"Content-Type": "application/json"}

Address = Mapping[str, str]
"""The training of a request: `modelId`, or `project` and `name`."""


class Webhooks:
    """The API of one Platform. Safe to use from several threads."""

    def __init__(self, settings: DestinationSettings, keys: Callable[[], tuple[str, ...]]) -> None:
        self.keys = keys
        self._api: Api[str] = Api(settings, keys, lambda key: {"Authorization": f"Bearer {key}"})

    def event(
        self,
        batch: Batch,
        attempt: Attempt,
        name: str,
        data: Mapping[str, Any],
        *,
        address: Address | None = None,
        judged: Collection[int] = (),
    ) -> ApiResponse | Outcome:
        """The response to one event, if the hub has received it or its status is in `judged`; else the outcome."""
        where = address if address is not None else {"modelId": str(batch.run.remote_id)}
        body = {**where, "event": name, "data": data}
        key = None if batch.kind is Kind.HEARTBEAT else _key_of(batch.idempotency_key, name, where, data)
        response = self._ask(_EVENTS, body, attempt, idempotency_key=key, judged=judged)
        if not isinstance(response, ApiResponse) or response.status in judged:
            return response
        if response.json is None or response.json.get("received") is not True:
            return self._api.unexpected(response)
        return response

    def upload_target(
        self, request: Mapping[str, Any], attempt: Attempt, *, judged: Collection[int] = ()
    ) -> ApiResponse | Outcome:
        """The response to a request for an upload target. The request changes nothing at the hub."""
        return self._ask(_UPLOADS, request, attempt, judged=judged)

    def check(self) -> ApiResponse | Outcome:
        """Ask whether the key is accepted: then a target for a model that cannot exist is refused with 404."""
        request = {"filename": "check.pt", "modelId": "0" * 24}
        found = self.upload_target(request, quiet(), judged=(400, 404))
        # A login page with a 200 says nothing of the key.
        return self._api.unexpected(found) if isinstance(found, ApiResponse) and found.json is None else found

    def missing(self, what: str) -> RetryLater:
        """The outcome of a response without a required field."""
        return self._api.missing(what)

    def is_id(self, found: object) -> TypeGuard[str]:
        """Whether a value of a response can be kept as an id."""
        return is_kept_id(found, self.keys())

    def is_address(self, found: object) -> TypeGuard[str]:
        """Whether a value of a response can be kept, and shown to a person, as an address on the web."""
        return is_kept_address(found, self.keys())

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._api.close()

    def _ask(
        self,
        path: str,
        payload: Mapping[str, Any],
        attempt: Attempt,
        *,
        idempotency_key: str | None = None,
        judged: Collection[int] = (),
    ) -> ApiResponse | Outcome:
        body = Bytes(json.dumps(payload, allow_nan=False).encode())
        # The few bytes of such a request are not progress of an upload.
        silent = attempt.silent()
        return self._api.ask(
            "POST", path, body, silent, headers=_JSON, idempotency_key=idempotency_key, judged=judged
        )


def _key_of(idempotency_key: str, event: str, address: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """The key of one of several different requests of a batch: the same for the same event to the same address.

    An announcement concerns one stored object; a checkpoint may have a second one.
    """
    text = json.dumps([event, dict(address), data.get("modelPath")], sort_keys=True)
    return str(uuid.uuid5(uuid.UUID(idempotency_key), hashlib.sha256(text.encode()).hexdigest()))
