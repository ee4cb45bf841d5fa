"""One client's connection: requests are read from it, and get the response of their service or an injected fault.

Promises: `at_monotonic` is taken right after the request line was read; every wait ends when the sandbox
stops. Refuses chunked bodies (411). Of the headers it records only the `Idempotency-Key` and whether there was
a key.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, urlsplit

from hubqueue.sandbox import guard, injected_faults, page
from hubqueue.sandbox.archive import Archive
from hubqueue.sandbox.faults import Faults, Rule
from hubqueue.sandbox.request import BLOCK, Body, Request, RequestCut, RequestRecord
from hubqueue.sandbox.response import PLAIN, Refused, Response, reason_phrase
from hubqueue.sandbox.routes import Route
from hubqueue.sandbox.service import Service

# A body of this size is read to its end even where the request is refused; a larger one ends the connection.
_REFUSED_LIMIT = 16 << 20
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")
_log = logging.getLogger("hubqueue.sandbox")


class HangUp(Exception):
    """Close this connection without sending another byte."""


class Host(Protocol):
    """What a connection needs from its server."""

    archive: Archive
    services: Sequence[Service]
    faults: Faults
    latency: float
    honour_idempotency: bool
    loopback_only: bool
    example_key: str
    stopping: threading.Event
    url: str

    def route(self, method: str, path: str) -> Route:
        """The route of a request."""

    def opened(self, connection: socket.socket) -> None:
        """Register a connection that is being served. Raises OSError while the server stops."""

    def forget(self, connection: socket.socket) -> None:
        """Stop tracking a connection: its handler closes it."""

    def ended(self, connection: socket.socket) -> None:
        """Note that the handler of a connection has returned."""


class Connection(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 with one client, request after request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120.0  # for each read and write: a client that sends nothing for this long is disconnected
    _read_at = 0.0

    @property
    def host(self) -> Host:
        """The server that this connection belongs to."""
        return cast("Host", self.server)

    def setup(self) -> None:
        super().setup()
        self.host.opened(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.host.ended(self.connection)

    def handle(self) -> None:
        try:
            super().handle()
        except (HangUp, OSError):
            self.close_connection = True

    def parse_request(self) -> bool:
        self._read_at = time.monotonic()
        return super().parse_request()

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PATCH = do_DELETE = do_PUT = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:
        # Arguments may hold text from a client: escape it, and log it instead of writing to stderr.
        _log.debug("%r", format % args)

    def _serve(self) -> None:
        target = urlsplit(self.path)
        body = Body(self.rfile.read, self._announced())
        refused = guard.refusal(
            self.command, target.path, self.headers, loopback_only=self.host.loopback_only
        )
        if refused is not None:
            status, reason = refused
            self._leave(PLAIN.refusal(status, reason, close=True), body)
            return
        route = self.host.route(self.command, target.path)
        if route.take is None and page.is_for_people(self.command, target.path):
            self._show_page(target.path, body)
            return
        record = RequestRecord(
            method=self.command,
            path=target.path,
            kind=route.kind,
            model_id=route.model_id,
            at_monotonic=self._read_at,
            at=datetime.now(UTC),
            idempotency_key=self.headers.get("idempotency-key"),
            with_key=any(name in self.headers for each in self.host.services for name in each.key_headers),
        )
        self.host.archive.note(record)
        try:
            self._exchange(route, record, body, parse_qs(target.query))
        except RequestCut:
            raise HangUp from None
        finally:
            record.body_bytes = body.received
            self.host.archive.ended(record)
            _log.debug("%s %r -> %d %s", record.method, record.path, record.status, record.fault or "")

    def _show_page(self, path: str, body: Body) -> None:
        if body.length > _REFUSED_LIMIT:
            self._leave(PLAIN.refusal(413, "a body of that size is not accepted", close=True), body)
            return
        try:
            body.drain()
        except RequestCut:
            raise HangUp from None
        shown = page.Page(self.host.archive, self.host.services)
        self.send(shown.respond(self.command, path, root=self._root(), key=self.host.example_key))

    def _leave(self, response: Response, body: Body) -> None:
        """Send a last response, then keep reading for a while: a client that still sends would not see it otherwise."""
        self.send(response)
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while body.received < _REFUSED_LIMIT and body.read(BLOCK):
                pass
        except (RequestCut, OSError):
            raise HangUp from None

    def _announced(self) -> int:
        """The announced length of the body, 0 without one. `_exchange` refuses a body that cannot be delimited."""
        text = self.headers.get("content-length", "0").strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0

    def _exchange(self, route: Route, record: RequestRecord, body: Body, query: dict[str, list[str]]) -> None:
        length = self.headers.get("content-length", "0").strip()
        if "transfer-encoding" in self.headers or length != str(body.length):
            self.send(route.dialect.refusal(411, "a plain Content-Length is needed", close=True))
            record.status = 411
            return
        if route.label is not None:
            record.kind, record.event, record.model_id = route.label(body)
        rule = self._pick(record, body)
        record.fault = rule.text if rule else None
        if self.host.latency:
            self.wait(self.host.latency)
        if rule is not None and rule.what == "slow-read":
            injected_faults.read_slowly(self, body, rule)
        if rule is not None and not rule.stores:
            if rule.what != "reset":
                body.drain()
            injected_faults.inject(self, rule, None, record, route.dialect)
            return
        key = record.idempotency_key if self.host.honour_idempotency else None
        receipt = f"{self.command} {record.path} {key}" if key else None
        request = Request(self.command, record.path, query, self.headers, body, self._root(), receipt)
        late, response = self._carry_out(route, request, record, rule)
        if late is None and response is not None and response.status >= 400 and body.left > _REFUSED_LIMIT:
            record.status = response.status
            self._leave(dataclasses.replace(response, close=True), body)
            return
        body.drain()
        if late is not None:
            injected_faults.inject(self, late, response, record, route.dialect)
        elif response is not None:
            self.send(response)
            record.status = response.status

    def _carry_out(
        self, route: Route, request: Request, record: RequestRecord, rule: Rule | None
    ) -> tuple[Rule | None, Response | None]:
        """Carry the request out, unless a rule about its epochs prevents it. Returns the rule and the true response."""
        try:
            if route.take is None:
                raise Refused(route.status, f"{request.method} is not served here")
            prepared = route.take(request)
            record.epochs = prepared.epochs
            if rule is None and prepared.epochs:
                rule = self._pick(record, request.body, epochs=prepared.epochs)
                record.fault = rule.text if rule else None
            if rule is not None and not rule.stores:
                prepared.discard()
                return rule, None
            response, record.replayed = prepared.commit()
        except Refused as refused:
            response = route.dialect.refusal(
                refused.status, refused.reason, headers=refused.headers, close=refused.close
            )
        return rule, response

    def _pick(self, record: RequestRecord, body: Body, epochs: tuple[int, ...] | None = None) -> Rule | None:
        return self.host.faults.pick(
            record.kind, body_bytes=body.length, path=record.path, event=record.event, epochs=epochs
        )

    def _root(self) -> str:
        host = self.headers.get("host", "")
        return f"http://{host}" if _HOST.fullmatch(host) else self.host.url

    # --- bytes to the client

    def wait(self, seconds: float) -> None:
        """Wait. Raises `HangUp` if the sandbox stops meanwhile."""
        if self.host.stopping.wait(seconds):
            raise HangUp

    def roll(self, first: int, last: int) -> int:
        """A random whole number from `first` to `last`, both included, from the seeded generator."""
        return self.host.faults.roll(first, last)

    def forget(self) -> None:
        """Stop tracking the socket. The caller closes it."""
        self.host.forget(self.connection)

    def head(self, response: Response, length: int) -> bytes:
        """The status line and the headers of a response whose body has `length` bytes."""
        lines = [
            f"HTTP/1.1 {response.status} {reason_phrase(response.status)}",
            "Server: hubqueue-sandbox",
            f"Date: {format_datetime(datetime.now(UTC), usegmt=True)}",
        ]
        if response.status not in (204, 304):
            lines += [f"Content-Type: {response.content_type}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in response.headers]
        if response.close:
            self.close_connection = True
        if self.close_connection:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")

    def pieces(self, response: Response) -> Iterator[bytes]:
        """Head and body of a response, in blocks, so that memory use is constant."""
        if response.file is None:
            body = b"" if response.status in (204, 304) else response.body
            yield self.head(response, len(body)) + body
            return
        with response.file.open("rb") as file:
            left = response.file.stat().st_size
            yield self.head(response, left)
            while left and (block := file.read(min(BLOCK, left))):
                left -= len(block)
                yield block

    def send(self, response: Response) -> None:
        """Send a whole response; only its head to a HEAD request. Raises OSError when the client has disconnected."""
        if self.command == "HEAD":
            size = response.file.stat().st_size if response.file else len(response.body)
            self.wfile.write(self.head(response, size))
            return
        for piece in self.pieces(response):
            self.wfile.write(piece)
