"""A request and a response: what is sent, and what came back of it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubqueue.destinations.wire.body import Body
from hubqueue.domain.plain import is_deep

MAX_RESPONSE = 64 * 1024
"""The largest body of a response, in bytes, unless its request allows more."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to send. `path` begins with a slash and is appended to the root of the endpoint.

    A response with more than `most` bytes is not accepted. A refusal with a status in `usual` is ordinary here, so it
    does not end the connection.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body
    most: int = MAX_RESPONSE
    usual: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """A response with a complete head. `body` has at most the bytes that its request allows.

    `cut`: the rest of the body was not read, or did not come. A 2xx is never cut: half of one proves nothing.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool = False

    def json(self) -> Any:
        """The body as JSON; None when it is not JSON (or is null), is nested too deep, or contradicts itself."""
        if is_deep(self.body):
            return None
        try:
            return json.loads(self.body, object_pairs_hook=_object)
        except (ValueError, RecursionError):
            return None

    def object(self) -> dict[str, Any] | None:
        """The JSON object in the body; None if it is anything else, cut, or compressed."""
        if self.cut or not self.is_plain:
            return None
        found = self.json()
        return found if isinstance(found, dict) else None

    @property
    def is_plain(self) -> bool:
        """Whether the body is not compressed. It was asked for uncompressed."""
        return self.headers.get("Content-Encoding", "identity").strip().lower() in ("", "identity")


def phrase_of(status: int) -> str:
    """A status with its standard words, such as `404 Not Found`."""
    return f"{status} {http.client.responses.get(status, '')}".strip()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises `ValueError` for two different values under one name."""
    fields = dict(pairs)
    if len(fields) < len(pairs) and any(fields[name] != value for name, value in pairs):
        raise ValueError("it contradicts itself")
    return fields
