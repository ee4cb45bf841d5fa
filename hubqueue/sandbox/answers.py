"""Answers of the hub, before they are bytes on a socket."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a body and what describes it.

    `file` is streamed in place of `body`; `close` ends the connection.
    """

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    file: Path | None = None
    close: bool = False


class Refused(Exception):
    """The request is not acceptable; `answer` says why. Nothing of it is stored."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def envelope(data: Any, *, message: str = "OK") -> Answer:
    """The envelope of every success: `{"success": true, "message": ..., "data": ...}`."""
    return as_json(200, {"success": True, "message": message, "data": data})


def refusal(status: int, message: str, *, close: bool = False) -> Answer:
    """The envelope of every refusal, with the reason in `message`."""
    return as_json(status, {"success": False, "message": message, "data": {}}, close=close)


def as_json(status: int, value: Any, *, close: bool = False) -> Answer:
    """Any JSON document. Raises ValueError for non-finite numbers: what leaves here is strict JSON."""
    return Answer(status, json.dumps(value, allow_nan=False).encode(), close=close)


def reason_phrase(status: int) -> str:
    """The standard phrase, or a plain word for a status without one."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"
