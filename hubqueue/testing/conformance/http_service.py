"""A small fake service over HTTP: a subclass has only the protocol, the faults are there already."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from hubqueue.domain.entry import Kind
from hubqueue.sandbox.archive import Archive, Fact
from hubqueue.sandbox.request import BLOCK, Request
from hubqueue.sandbox.response import PLAIN, Response, as_json
from hubqueue.sandbox.routes import Prepared, Route
from hubqueue.sandbox.server import Server
from hubqueue.sandbox.service import RunDetail, RunSummary
from hubqueue.testing.conformance.sandboxed import SandboxService
from hubqueue.testing.conformance.service import BAD_EPOCH, BAD_MARK


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A whole request. `parts` are those of the path between its slashes, unquoted. Names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def parts(self) -> list[str]:
        """The parts of the path between its slashes, unquoted."""
        return [unquote(each) for each in self.path.strip("/").split("/")]


class HttpService(SandboxService):
    """A `Service` over HTTP on loopback. A subclass defines `kind_of`, `carry_out` and `received`.

    `more` are settings of the destination besides its `url`. A request whose `Idempotency-Key` was carried out gets the
    same response again, unless `honour_idempotency` is false. All calls are one after the other.
    """

    more: Mapping[str, str | int | float | bool] = {}
    honour_idempotency = True

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._responses: dict[str, Any] = {}
        super().__init__(Server([_Inbox(self)]))

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        """The settings of a destination that sends here."""
        return {**super().settings, **self.more}

    @property
    def upload_bytes(self) -> int:
        """The bytes that have arrived of all checkpoints, in all attempts: for `Received.upload_bytes` of a single run."""
        return sum(each.body_bytes for each in self.server.requests if each.kind == Kind.CKPT)

    def kind_of(self, method: str, parts: Sequence[str]) -> Kind | None:
        """The kind of the entries in a request, from its method and the parts of its path; None for another request."""
        raise NotImplementedError

    def carry_out(self, request: HttpRequest) -> Mapping[str, Any]:
        """Carry out a request; return the JSON object of the response. Raises `Refused` with a status and a reason."""
        raise NotImplementedError

    def respond(self, request: HttpRequest) -> Response:
        """The response to a request."""
        with self._lock:
            key = request.headers.get("idempotency-key") if self.honour_idempotency else None
            found = self._responses.get(key) if key else None
            if found is None:
                found = self.carry_out(request)
                if key:
                    self._responses[key] = found
            return as_json(200, found)


class _Inbox:
    """The service of the sandbox that takes every request for an `HttpService`. It keeps its state itself."""

    name = title = "http"
    events: Mapping[str, str] = {}
    facts: frozenset[str] = frozenset()
    key_headers = ()

    def __init__(self, service: HttpService) -> None:
        self._service = service

    def attach(self, archive: Archive, accepts: object) -> None:
        """Nothing to attach."""

    def reset(self) -> None:
        """Nothing is in the archive: what was received stays."""

    def apply(self, fact: Fact) -> None:
        """There are no facts."""

    def route(self, method: str, path: str) -> Route:
        parts = HttpRequest(method, path, {}, b"").parts
        return Route(PLAIN, str(self._service.kind_of(method, parts) or "auth"), take=self._take)

    def _take(self, request: Request) -> Prepared:
        body = bytearray()
        while block := request.body.read(BLOCK):
            body += block
        headers = {name.lower(): str(value) for name, value in request.headers.items()}
        whole = HttpRequest(request.method, request.path, headers, bytes(body))
        bad = BAD_MARK.encode() in whole.body
        return Prepared(lambda: (self._service.respond(whole), False), epochs=(BAD_EPOCH,) if bad else ())

    def variables(self, url: str, key: str) -> Mapping[str, str]:
        return {}

    def runs(self) -> Sequence[RunSummary]:
        return ()

    def run(self, run_id: str) -> RunDetail | None:
        return None

    def cancel(self, run_id: str) -> bool:
        return False

    def document(self, path: str) -> Any | None:
        return None
