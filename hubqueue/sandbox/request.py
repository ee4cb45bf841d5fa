"""A request as a service sees it (its head, and a body that is read as it arrives), and its record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from email.message import Message
from typing import Any

from hubqueue.sandbox.response import Refused

BLOCK = 1 << 20
# Metrics of 100,000 epochs fit; more in one request is an error of the client.
JSON_LIMIT = 16 << 20


class RequestCut(Exception):
    """The client disconnected before its body was complete. Nothing of the request counts."""


class Body:
    """The body of one request. `length` is the announced size in bytes, `received` the bytes that arrived so far.

    `pause` simulates a slow reader. If set, it is called before each read with the number of bytes wanted, and
    returns the number to take.
    """

    def __init__(self, source: Callable[[int], bytes], length: int) -> None:
        self.length = length
        self.received = 0
        self.pause: Callable[[int], int] | None = None
        self._source = source
        self._given = 0
        self._looked_at = b""

    @property
    def left(self) -> int:
        """The number of bytes that were announced and not read yet."""
        return self.length - self._given

    def read(self, wanted: int) -> bytes:
        """At most `wanted` bytes, b"" when all was read. Raises `RequestCut` when the client has disconnected."""
        wanted = min(wanted, self.length - self._given)
        if wanted <= 0:
            return b""
        if self.pause is not None:
            wanted = min(wanted, self.pause(wanted))
        if self._looked_at:
            block, self._looked_at = self._looked_at[:wanted], self._looked_at[wanted:]
        else:
            block = self._arrived(wanted)
        self._given += len(block)
        return block

    def preview(self) -> bytes:
        """The whole body, which can still be read afterwards; b"" for a body that is too long to be JSON.

        Must be called before the first `read`. Raises `RequestCut` when the client has disconnected.
        """
        if self.length > JSON_LIMIT:
            return b""
        content = bytearray()
        while len(content) < self.length:
            content += self._arrived(min(BLOCK, self.length - len(content)))
        self._looked_at = bytes(content)
        return self._looked_at

    def _arrived(self, wanted: int) -> bytes:
        try:
            block = self._source(wanted)
        except OSError as error:
            raise RequestCut from error
        self.received += len(block)
        if len(block) < wanted:
            raise RequestCut
        return block

    def drain(self) -> None:
        """Read and discard the rest, so that the connection can be reused."""
        while self.read(BLOCK):
            pass


@dataclass(slots=True)
class Request:
    """One request. `root` is the address under which the client sees the sandbox; `receipt` names the request
    among those with an `Idempotency-Key`, or is None."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: Body
    root: str
    receipt: str | None

    def bearer(self) -> str:
        """The token of an `Authorization: Bearer` header, "" without one."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return str(token).strip() if scheme.lower() == "bearer" else ""

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object. Raises `Refused` (400, 411, 413) for anything else."""
        if self.headers.get_content_type() != "application/json" or "content-type" not in self.headers:
            raise Refused(400, "the body has to be application/json")
        self.need_length()
        if self.body.length > JSON_LIMIT:
            raise Refused(413, f"a JSON body of {self.body.length} bytes is more than {JSON_LIMIT}")
        content = bytearray()
        while block := self.body.read(BLOCK):
            content += block
        value = strict_json(content)
        if not isinstance(value, dict):
            raise Refused(400, "the body has to be a JSON object")
        return value

    def need_length(self) -> None:
        """Raises `Refused` (411) unless the body's length was announced."""
        if "content-length" not in self.headers:
            raise Refused(411, "a Content-Length is needed", close=True)


@dataclass(slots=True)
class RequestRecord:
    """One request of a protocol, noted when its request line was read and completed when it ended.

    `path` excludes the query. `kind` is registration, metrics, ckpt, heartbeat, event, completion, auth, read
    or other. `model_id` is the model or run that it is about. `event` is the name of an event, for
    a service that has events. `with_key`: it carried a header for API keys, with any value.
    `status` is the status of a response that was sent completely, otherwise 0. `at_monotonic` is
    `time.monotonic()` when the request line was read: comparable within one boot of the machine.
    `replayed`: the `Idempotency-Key` was known and nothing was stored again. `body_bytes` counts what
    arrived of the body. `epochs` are those of a complete metrics or checkpoint request. `fault` is the rule
    that fired. `ended` is false while the request is still being read or responded to.
    """

    method: str
    path: str
    kind: str
    model_id: str | None
    at_monotonic: float
    at: datetime
    status: int = 0
    idempotency_key: str | None = None
    replayed: bool = False
    body_bytes: int = 0
    epochs: tuple[int, ...] = ()
    fault: str | None = None
    ended: bool = False
    event: str | None = None
    with_key: bool = False


def strict_json(content: bytes | bytearray) -> Any:
    """Parse strict JSON (no NaN). Raises `Refused` (400)."""
    try:
        return json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None


def _no_constant(word: str) -> Any:
    raise ValueError(word)
