"""Answers of the sandbox, before they are bytes on a socket, and how each service words them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a body and what describes it.

    `file` is streamed in place of `body`; `close` ends the connection.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Headers = ()
    file: Path | None = None
    close: bool = False


class Refused(Exception):
    """The request is not acceptable, and nothing of it is stored. The service's dialect words it."""

    def __init__(self, status: int, reason: str, *, headers: Headers = (), close: bool = False) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.headers = headers
        self.close = close


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a service words what it has to say.

    `done` is its emptiest success, `null` a good status around nothing; `error` makes the body of a refusal
    from its reason.
    """

    done: Answer
    null: bytes
    error: Callable[[str], bytes]
    error_type: str = "application/json"

    def refusal(self, status: int, reason: str, *, headers: Headers = (), close: bool = False) -> Answer:
        """The answer that refuses a request, with the reason in it."""
        return Answer(status, self.error(reason), self.error_type, headers, close=close)


def envelope(data: Any, *, message: str = "OK") -> Answer:
    """The envelope of every success of HUB: `{"success": true, "message": ..., "data": ...}`."""
    return as_json(200, {"success": True, "message": message, "data": data})


def as_json(status: int, value: Any) -> Answer:
    """Any JSON document. Raises ValueError for non-finite numbers: what leaves here is strict JSON."""
    return Answer(status, json.dumps(value, allow_nan=False).encode())


def reason_phrase(status: int) -> str:
    """The standard phrase, or a plain word for a status without one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


HUB = Dialect(
    done=envelope({}),
    null=b'{"success": true, "message": "OK", "data": null}',
    error=lambda reason: json.dumps({"success": False, "message": reason, "data": {}}).encode(),
)
PLATFORM = Dialect(
    done=as_json(200, {"received": True}),
    null=b"null",
    error=lambda reason: json.dumps({"error": reason}).encode(),
)
# Cloud storage behind a signed URL: nothing in a success, XML in a refusal.
STORAGE = Dialect(
    done=Answer(200),
    null=b"",
    error=lambda reason: f"<?xml version='1.0'?><Error><Message>{escape(reason)}</Message></Error>".encode(),
    error_type="application/xml; charset=UTF-8",
)
