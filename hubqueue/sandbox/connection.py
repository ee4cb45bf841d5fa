"""One client's connection: requests are read from it, judged by the faults, answered or mishandled.

Promises: `at_monotonic` is taken right after the request line was read; every wait ends when the sandbox
stops. Refuses: chunked bodies (411), and to record anything of the headers but the `Idempotency-Key` and
whether there was a key.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from hubqueue.sandbox import guard, mischief, page
from hubqueue.sandbox.answers import HUB, Answer, Refused, reason_phrase
from hubqueue.sandbox.faults import Rule
from hubqueue.sandbox.records import RequestRecord
from hubqueue.sandbox.request import BLOCK, Body, Request, RequestCut
from hubqueue.sandbox.routes import Route

if TYPE_CHECKING:
    from hubqueue.sandbox.server import HubServer

# A body of this size is read to its end even where the request is refused; a larger one ends the connection.
_REFUSED_LIMIT = 16 << 20
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")
_log = logging.getLogger("hubqueue.sandbox")


class HangUp(Exception):
    """Leave this connection without another byte."""


class Connection(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 with one client, request after request."""

    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120.0  # for each read and write: a client that says nothing for so long is left
    _read_at = 0.0

    def setup(self) -> None:
        super().setup()
        self.server.opened(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.server.ended(self.connection)

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
        # Arguments may hold what a client sent: escaped, and never on stderr by itself.
        _log.debug("%r", format % args)

    def _serve(self) -> None:
        target = urlsplit(self.path)
        body = Body(self.rfile.read, self._announced())
        refused = guard.refusal(
            self.command, target.path, self.headers, loopback_only=self.server.loopback_only
        )
        if refused is not None:
            status, reason = refused
            self._leave(HUB.refusal(status, reason, close=True), body)
            return
        if page.is_for_people(self.command, target.path):
            self._tell_people(target.path, body)
            return
        route = self.server.route(self.command, target.path)
        record = RequestRecord(
            method=self.command,
            path=target.path,
            kind=route.kind,
            model_id=route.model_id,
            at_monotonic=self._read_at,
            at=datetime.now(UTC),
            idempotency_key=self.headers.get("idempotency-key"),
            with_key="authorization" in self.headers or "x-api-key" in self.headers,
        )
        self.server.archive.note(record)
        try:
            self._exchange(route, record, body, parse_qs(target.query))
        except RequestCut:
            raise HangUp from None
        finally:
            record.body_bytes = body.received
            self.server.archive.ended(record)
            _log.debug("%s %r -> %d %s", record.method, record.path, record.status, record.fault or "")

    def _tell_people(self, path: str, body: Body) -> None:
        if body.length > _REFUSED_LIMIT:
            self._leave(HUB.refusal(413, "nothing of that size belongs here", close=True), body)
            return
        try:
            body.drain()
        except RequestCut:
            raise HangUp from None
        self.send(page.show(self.command, path, self.server.archive))

    def _leave(self, answer: Answer, body: Body) -> None:
        """Send a last answer, and read on for a while: a client that still sends would not see it otherwise."""
        self.send(answer)
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while body.received < _REFUSED_LIMIT and body.read(BLOCK):
                pass
        except (RequestCut, OSError):
            raise HangUp from None

    def _announced(self) -> int:
        """The announced length of the body, 0 when none was; `_exchange` refuses what cannot be delimited."""
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
        if self.server.latency:
            self.wait(self.server.latency)
        if rule is not None and rule.what == "slow-read":
            mischief.read_slowly(self, body, rule)
        if rule is not None and not rule.stores:
            if rule.what != "reset":
                body.drain()
            mischief.answer(self, rule, None, record, route.dialect)
            return
        key = record.idempotency_key
        receipt = f"{self.command} {record.path} {key}" if key else None
        request = Request(self.command, record.path, query, self.headers, body, self._root(), receipt)
        late, answer = self._carry_out(route, request, record, rule)
        if late is None and answer is not None and answer.status >= 400 and body.left > _REFUSED_LIMIT:
            record.status = answer.status
            self._leave(dataclasses.replace(answer, close=True), body)
            return
        body.drain()
        if late is not None:
            mischief.answer(self, late, answer, record, route.dialect)
        elif answer is not None:
            self.send(answer)
            record.status = answer.status

    def _carry_out(
        self, route: Route, request: Request, record: RequestRecord, rule: Rule | None
    ) -> tuple[Rule | None, Answer | None]:
        """Do what is asked, unless a rule about its epochs says otherwise. The rule, and the true answer."""
        try:
            prepared = route.service.receive(route, request)
            record.epochs = prepared.epochs
            if rule is None and prepared.epochs:
                rule = self._pick(record, request.body, epochs=prepared.epochs)
                record.fault = rule.text if rule else None
            if rule is not None and not rule.stores:
                prepared.discard()
                return rule, None
            answer, record.replayed = prepared.commit()
        except Refused as refused:
            answer = route.dialect.refusal(
                refused.status, refused.reason, headers=refused.headers, close=refused.close
            )
        return rule, answer

    def _pick(self, record: RequestRecord, body: Body, epochs: tuple[int, ...] | None = None) -> Rule | None:
        return self.server.faults.pick(
            record.kind, body_bytes=body.length, path=record.path, event=record.event, epochs=epochs
        )

    def _root(self) -> str:
        host = self.headers.get("host", "")
        return f"http://{host}" if _HOST.fullmatch(host) else self.server.url

    # --- bytes to the client

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises `HangUp` when the sandbox stops meanwhile."""
        if self.server.stopping.wait(seconds):
            raise HangUp

    def head(self, answer: Answer, length: int) -> bytes:
        """The status line and the headers of an answer whose body has `length` bytes."""
        lines = [
            f"HTTP/1.1 {answer.status} {reason_phrase(answer.status)}",
            "Server: hubqueue-sandbox",
            f"Date: {format_datetime(datetime.now(UTC), usegmt=True)}",
        ]
        if answer.status not in (204, 304):
            lines += [f"Content-Type: {answer.content_type}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        if answer.close:
            self.close_connection = True
        if self.close_connection:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")

    def pieces(self, answer: Answer) -> Iterator[bytes]:
        """Head and body of an answer, in blocks that leave memory constant."""
        if answer.file is None:
            body = b"" if answer.status in (204, 304) else answer.body
            yield self.head(answer, len(body)) + body
            return
        with answer.file.open("rb") as file:
            left = answer.file.stat().st_size
            yield self.head(answer, left)
            while left and (block := file.read(min(BLOCK, left))):
                left -= len(block)
                yield block

    def send(self, answer: Answer) -> None:
        """Send a whole answer, of which HEAD gets the head. Raises OSError when the client is gone."""
        if self.command == "HEAD":
            size = answer.file.stat().st_size if answer.file else len(answer.body)
            self.wfile.write(self.head(answer, size))
            return
        for piece in self.pieces(answer):
            self.wfile.write(piece)
