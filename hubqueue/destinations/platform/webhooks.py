"""The two addresses at which Platform takes a training: for events, and for upload targets.

A response to an event proves it: 2xx, complete, JSON, and `received` true in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeGuard

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Attempt, Batch, Kind, Outcome, RetryLater, quiet
from hubqueue.destinations.wire.api import Api, Told
from hubqueue.destinations.wire.body import Bytes
from hubqueue.destinations.wire.kept import is_kept_address, is_kept_id

_EVENTS = "/api/webhooks/training/metrics"
_UPLOADS = "/api/webhooks/models/upload"
_JSON = {"Content-Type": "application/json"}

Address = Mapping[str, str]
"""Which training a request is about: `modelId`, or `project` and `name`."""


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
    ) -> Told | Outcome:
        """The response to one event, if the hub has received it or its status is `judged`, or what came instead."""
        where = address if address is not None else {"modelId": str(batch.run.remote_id)}
        body = {**where, "event": name, "data": data}
        key = None if batch.kind is Kind.HEARTBEAT else _key_of(batch.idempotency_key, name, where, data)
        told = self._ask(_EVENTS, body, attempt, idempotency_key=key, judged=judged)
        if not isinstance(told, Told) or told.answer.status in judged:
            return told
        if told.json is None or told.json.get("received") is not True:
            return self._api.unproved(told)
        return told

    def upload_target(
        self, asked: Mapping[str, Any], attempt: Attempt, *, judged: Collection[int] = ()
    ) -> Told | Outcome:
        """The response to a request for an upload target. Asking changes nothing."""
        return self._ask(_UPLOADS, asked, attempt, judged=judged)

    def check(self) -> Told | Outcome:
        """Ask whether the key is accepted: a target for a model that cannot exist is refused as unknown, with 404."""
        return self.upload_target({"filename": "check.pt", "modelId": "0" * 24}, quiet(), judged=(400, 404))

    def lacks(self, what: str) -> RetryLater:
        """A response without something that is needed."""
        return self._api.lacks(what)

    def is_id(self, found: object) -> TypeGuard[str]:
        """Whether it can be kept as an id."""
        return is_kept_id(found, self.keys())

    def is_address(self, found: object) -> TypeGuard[str]:
        """Whether it can be kept, and shown to a person, as an address on the web."""
        return is_kept_address(found, self.keys())

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._api.close()

    def _ask(
        self,
        path: str,
        said: Mapping[str, Any],
        attempt: Attempt,
        *,
        idempotency_key: str | None = None,
        judged: Collection[int] = (),
    ) -> Told | Outcome:
        body = Bytes(json.dumps(said, allow_nan=False).encode())
        # The few bytes of such a request are no progress of an upload.
        silent = dataclasses.replace(attempt, on_bytes=lambda _sent: None)
        return self._api.ask(
            "POST", path, body, silent, headers=_JSON, idempotency_key=idempotency_key, judged=judged
        )


def _key_of(idempotency_key: str, event: str, address: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """The key of one of several different requests of a batch: the same for the same event to the same address.

    An announcement is about one stored object; of the same checkpoint there may be a second one.
    """
    text = json.dumps([event, dict(address), data.get("modelPath")], sort_keys=True)
    return str(uuid.uuid5(uuid.UUID(idempotency_key), hashlib.sha256(text.encode()).hexdigest()))
