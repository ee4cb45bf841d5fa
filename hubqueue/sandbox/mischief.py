"""How each fault is acted out on a connection. Every wait ends when the sandbox stops."""

from __future__ import annotations

import dataclasses
import gzip
import selectors
import socket
import struct
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import islice
from typing import TYPE_CHECKING

from hubqueue.sandbox.answers import Answer, Dialect
from hubqueue.sandbox.faults import Rule
from hubqueue.sandbox.records import RequestRecord
from hubqueue.sandbox.request import Body

if TYPE_CHECKING:
    from hubqueue.sandbox.connection import Connection

_SLOW_BLOCK = 4096
_SLOW_PAUSE = 1.0
_DRIP_PAUSE = 0.1
_ASKED_WAIT = 5
_PORTAL = b"<!doctype html><title>Welcome</title><h1>Welcome</h1><p>Please log in to this network.</p>\n"


def answer(
    connection: Connection, rule: Rule, true: Answer | None, record: RequestRecord, dialect: Dialect
) -> None:
    """Act a rule out, after the request was read. `true` is the true answer where it was carried out."""
    plain = true if true is not None else dialect.done
    what = rule.what
    if what == "cut-body" and not plain.body and plain.file is None:
        what = "cut-head"  # without a body, only the head can be cut
    match what:
        case "cut-head":
            start = b"".join(islice(connection.pieces(plain), 2))
            # Behind the status line: the cut that makes a careless client believe in a success.
            first, last = start.index(b"\r\n") + 2, start.index(b"\r\n\r\n") + 3
            _cut(connection, start[: connection.server.faults.roll(first, last)])
        case "cut-body":
            start = b"".join(islice(connection.pieces(plain), 2))
            first, last = start.index(b"\r\n\r\n") + 4, len(start) - 1
            _cut(connection, start[: connection.server.faults.roll(first, last)])
        case "reset":
            _reset(connection)
        case "close":
            connection.close_connection = True
        case "silence":
            _keep_silent(connection, rule.seconds)
        case "drip":
            _drip(connection, plain, rule.seconds if rule.seconds is not None else _DRIP_PAUSE)
            record.status = plain.status
        case _:
            sent = _answer_of(rule, plain, dialect)
            connection.send(sent)
            record.status = sent.status


def _answer_of(rule: Rule, plain: Answer, dialect: Dialect) -> Answer:
    """The false answer of a rule that sends a whole one; the true one for slow-read."""
    if rule.status is not None:
        return dataclasses.replace(_status_answer(rule.status, dialect), headers=tuple(_headers(rule)))
    match rule.what:
        case "html":
            return Answer(200, _PORTAL, content_type="text/html; charset=utf-8")
        case "empty":
            return Answer(200)
        case "null":
            return Answer(200, dialect.null)
        case "redirect":
            return Answer(302, headers=(("Location", rule.to or "/"),))
        case "gzip" if plain.file is None:
            headers = (*plain.headers, ("Content-Encoding", "gzip"))
            return dataclasses.replace(plain, body=gzip.compress(plain.body), headers=headers)
        case "lost-ack":
            return dialect.refusal(500, "something went wrong after the request was carried out")
        case _:
            return plain


def _status_answer(status: int, dialect: Dialect) -> Answer:
    if status >= 400:
        return dialect.refusal(status, f"the sandbox was told to answer {status}")
    return dataclasses.replace(dialect.done, status=status)


def _headers(rule: Rule) -> list[tuple[str, str]]:
    now = datetime.now(UTC)
    headers: list[tuple[str, str]] = []
    if rule.retry_after is not None:
        headers.append(("Retry-After", _moment(rule.retry_after, now)))
    if rule.reset is not None:
        headers.append(("X-RateLimit-Reset", _moment(rule.reset, now)))
    if rule.ratelimit is not None:
        headers.append(("RateLimit", rule.ratelimit))
    if rule.status in range(300, 400):
        headers.append(("Location", rule.to or "/"))
    return headers


def _moment(text: str, now: datetime) -> str:
    """`http-date`, `unix` and `iso`, with `+SECONDS` or 5 s ahead, become a moment; other text stays."""
    form, _, ahead = text.partition("+")
    if form not in ("http-date", "unix", "iso") or not (ahead or "0").isdecimal():
        return text
    then = now + timedelta(seconds=int(ahead) if ahead else _ASKED_WAIT)
    match form:
        case "unix":
            return str(int(then.timestamp()))
        case "iso":
            return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case _:
            return format_datetime(then, usegmt=True)


def _cut(connection: Connection, piece: bytes) -> None:
    connection.close_connection = True
    connection.wfile.write(piece)


def _reset(connection: Connection) -> None:
    """Make the peer see a connection reset: closing without lingering throws away what is unsent."""
    connection.close_connection = True
    linger = struct.pack("ii", 1, 0)
    connection.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    # The descriptor is closed with its last holder; a shutdown before that would say goodbye properly.
    connection.server.forget(connection.connection)
    connection.rfile.close()
    connection.connection.close()


def _keep_silent(connection: Connection, seconds: float | None) -> None:
    """Say nothing until the time is over, the client has gone or the sandbox stops; then close."""
    connection.close_connection = True
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        connection.wait(0.25 if end is None else max(0.0, min(0.25, end - time.monotonic())))
        if _is_gone(connection.connection):
            return


def _is_gone(peer: socket.socket) -> bool:
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(peer, selectors.EVENT_READ)
            return bool(selector.select(0)) and not peer.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True


def _drip(connection: Connection, plain: Answer, pause: float) -> None:
    for piece in connection.pieces(plain):
        for at in range(len(piece)):
            connection.wfile.write(piece[at : at + 1])
            connection.wait(pause)


def read_slowly(connection: Connection, body: Body, rule: Rule) -> None:
    """From now on the body is taken in small blocks, with a pause before each."""
    # The kernel would otherwise take megabytes at once, and the client see a quick reader.
    connection.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BLOCK)
    pause = rule.seconds if rule.seconds is not None else _SLOW_PAUSE

    def take(wanted: int) -> int:
        connection.wait(pause)
        return min(wanted, _SLOW_BLOCK)

    body.pause = take
