"""Responses of the sandbox before they are serialized, and how a service words them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Response:
    """A status, a body and its headers.

    `file` is streamed instead of `body`; `close` ends the connection.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Headers = ()
    file: Path | None = None
    close: bool = False


class Refused(Exception):
    """The request is refused, and nothing of it is stored. The service's dialect words the refusal."""

    def __init__(self, status: int, reason: str, *, headers: Headers = (), close: bool = False) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.headers = headers
        self.close = close


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a service words its responses.

    `done` is its smallest success response, `null` the body of a success without data. `error` makes the body of a
    refusal from its reason.
    """

    done: Response
    null: bytes
    error: Callable[[str], bytes]
    error_type: str = "application/json"

    def refusal(self, status: int, reason: str, *, headers: Headers = (), close: bool = False) -> Response:
        """The response that refuses a request, with the reason in it."""
        return Response(status, self.error(reason), self.error_type, headers, close=close)


def as_json(status: int, value: Any, headers: Headers = ()) -> Response:
    """A response with a JSON document. Raises ValueError for non-finite numbers: the sandbox sends strict JSON."""
    return Response(status, json.dumps(value, allow_nan=False).encode(), headers=headers)


def reason_phrase(status: int) -> str:
    """The standard reason phrase, or "Status" for a status without one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


PLAIN = Dialect(
    done=as_json(200, {}),
    null=b"null",
    error=lambda reason: json.dumps({"error": reason}).encode(),
)
"""The sandbox's own dialect, for paths that no service serves."""
