"""Requests to a server of one's own: with the token, the digest of the body and the signature.

The response proves a delivery: 2xx, complete, JSON, and `received` true in it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import Attempt, Blocked, Delivered, Key, Outcome, Remote, RetryLater, Scope
from hubqueue.destinations.http.signature import EMPTY, HEADER, digest_field, signature
from hubqueue.destinations.wire.api import Api, ApiResponse
from hubqueue.destinations.wire.body import Body, Bytes
from hubqueue.destinations.wire.message import MAX_RESPONSE
from hubqueue.destinations.wire.waits import clock_difference, http_date
from hubqueue.domain.outcome import CLOCK

# The status of a request whose time the server does not accept.
_TIME = 412
_JSON = {"Content-Type": "application/json"}


class Server:
    """The API of one server. Safe to use from several threads."""

    def __init__(self, settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> None:
        self._keys, self._signs = keys, getattr(settings, "sign", True)
        self._api: Api[Key] = Api(settings, keys, lambda key: {"Authorization": f"Bearer {key}"})

    def ask(
        self,
        method: str,
        target: str,
        attempt: Attempt,
        *,
        body: Body | None = None,
        sha256: bytes = EMPTY,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        unknown: Scope = Scope.RUN,
        judged: Collection[int] = (),
        most: int = MAX_RESPONSE,
    ) -> ApiResponse | Outcome:
        """The response to a request, or the outcome if there is none. `sha256` is that of the body.

        `target` is the path below the API root, with its query. For the other ones see `Api.ask`.
        """
        digest = digest_field(sha256)
        sent = {**(headers or {}), "Content-Digest": digest}

        def signed(key: Key) -> Mapping[str, str]:
            made = signature(
                key.others["signing_key"],
                at=int(time.time()),
                method=method,
                target=target,
                digest=digest,
                content_range=sent.get("Content-Range", ""),
                idempotency_key=idempotency_key or "",
            )
            return {HEADER: made}

        response = self._api.ask(
            method,
            target,
            body or Bytes(b""),
            attempt,
            headers=sent,
            idempotency_key=idempotency_key,
            unknown=unknown,
            judged=(*judged, _TIME),
            signature=signed if self._signs else None,
            most=most,
        )
        if isinstance(response, ApiResponse) and response.status == _TIME:
            difference = clock_difference(http_date(response.http.headers.get("Date", "")), datetime.now(UTC))
            return Blocked(f"{CLOCK} {difference}", Scope.DESTINATION)
        return response

    def post(
        self,
        target: str,
        payload: Mapping[str, Any],
        attempt: Attempt,
        *,
        idempotency_key: str | None = None,
        unknown: Scope = Scope.RUN,
    ) -> ApiResponse | Outcome:
        """The response to a JSON object, if it proves that the server has it; else the outcome."""
        content = json.dumps(payload, allow_nan=False).encode()
        response = self.ask(
            "POST",
            target,
            attempt,
            body=Bytes(content),
            sha256=hashlib.sha256(content).digest(),
            headers=_JSON,
            idempotency_key=idempotency_key,
            unknown=unknown,
        )
        if isinstance(response, ApiResponse) and not is_received(response):
            return self.unexpected(response)
        return response

    def unexpected(self, response: ApiResponse) -> RetryLater:
        """The outcome of a 2xx that does not prove a delivery."""
        return self._api.unexpected(response)

    def missing(self, what: str) -> RetryLater:
        """The outcome of a response without a required field."""
        return self._api.missing(what)

    def secrets(self) -> tuple[str, ...]:
        """All secrets of this server."""
        return tuple(part for key in self._keys() for part in key.parts)

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._api.close()


def is_received(response: ApiResponse) -> bool:
    """Whether the server states that it has what was sent."""
    return (response.json or {}).get("received") is True


def delivered(response: ApiResponse) -> Delivered:
    """The outcome of a response that proves a delivery. It may report that a person has cancelled the training."""
    return Delivered(Remote(cancelled=True if (response.json or {}).get("cancelled") is True else None))
