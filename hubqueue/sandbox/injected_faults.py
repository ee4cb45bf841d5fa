"""Injected faults: how each one is carried out on a connection. Every wait ends when the sandbox stops."""

from __future__ import annotations

import dataclasses
import gzip
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import BufferedIOBase
from itertools import islice
from typing import Protocol

from hubqueue.sandbox.faults import Rule
from hubqueue.sandbox.request import Body, RequestRecord
from hubqueue.sandbox.response import Dialect, Response

_SLOW_BLOCK = 4096
_SLOW_PAUSE = 1.0
_DRIP_PAUSE = 0.1
_ASKED_WAIT = 5
_PORTAL = b"<!doctype html><title>Welcome</title><h1>Welcome</h1><p>Please log in to this network.</p>\n"


class Channel(Protocol):
    """What a fault needs from the connection that it is injected into."""

    close_connection: bool
    connection: socket.socket
    rfile: BufferedIOBase
    wfile: BufferedIOBase

    def pieces(self, response: Response) -> Iterator[bytes]:
        """Head and body of a response."""

    def send(self, response: Response) -> None:
        """Send a whole response."""

    def wait(self, seconds: float) -> None:
        """Wait. Raises if the sandbox stops meanwhile."""

    def roll(self, first: int, last: int) -> int:
        """A random whole number from `first` to `last`, both included."""

    def forget(self) -> None:
        """Stop tracking the socket. The caller closes it."""


def inject(
    channel: Channel, rule: Rule, true: Response | None, record: RequestRecord, dialect: Dialect
) -> None:
    """Apply a rule after the request was read. `true` is the true response if the request was carried out."""
    plain = true if true is not None else dialect.done
    what = rule.what
    if what == "cut-body" and not plain.body and plain.file is None:
        what = "cut-head"  # without a body, only the head can be cut
    match what:
        case "cut-head":
            start = b"".join(islice(channel.pieces(plain), 2))
            # After the status line: a careless client takes such a cut response for a success.
            first, last = start.index(b"\r\n") + 2, start.index(b"\r\n\r\n") + 3
            _cut(channel, start[: channel.roll(first, last)])
        case "cut-body":
            start = b"".join(islice(channel.pieces(plain), 2))
            first, last = start.index(b"\r\n\r\n") + 4, len(start) - 1
            _cut(channel, start[: channel.roll(first, last)])
        case "reset":
            _reset(channel)
        case "close":
            channel.close_connection = True
        case "silence":
            _keep_silent(channel, rule.seconds)
        case "drip":
            _drip(channel, plain, rule.seconds if rule.seconds is not None else _DRIP_PAUSE)
            record.status = plain.status
        case _:
            sent = _false_response(rule, plain, dialect)
            channel.send(sent)
            record.status = sent.status


def _false_response(rule: Rule, plain: Response, dialect: Dialect) -> Response:
    """The false response of a rule that sends a whole one; the true one for slow-read."""
    if rule.status is not None:
        made = _status_response(rule.status, dialect)
        return dataclasses.replace(made, headers=(*made.headers, *_headers(rule)))
    match rule.what:
        case "html":
            return Response(200, _PORTAL, content_type="text/html; charset=utf-8")
        case "empty":
            return Response(200)
        case "null":
            return Response(200, dialect.null)
        case "redirect":
            return Response(302, headers=(("Location", rule.to or "/"),))
        case "gzip" if plain.file is None:
            headers = (*plain.headers, ("Content-Encoding", "gzip"))
            return dataclasses.replace(plain, body=gzip.compress(plain.body), headers=headers)
        case "lost-ack":
            return dialect.refusal(500, "something went wrong after the request was carried out")
        case _:
            return plain


def _status_response(status: int, dialect: Dialect) -> Response:
    if status >= 400:
        return dialect.refusal(status, f"a fault rule asked for {status}")
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
    """`http-date`, `unix` and `iso` become the time `+SECONDS` (5 without it) ahead; other text stays."""
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


def _cut(channel: Channel, piece: bytes) -> None:
    channel.close_connection = True
    channel.wfile.write(piece)


def _reset(channel: Channel) -> None:
    """Reset the connection: with a linger time of 0, closing discards unsent data and sends a reset."""
    channel.close_connection = True
    linger = struct.pack("ii", 1, 0)
    channel.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    # The descriptor closes with its last reference; a shutdown before that would end the connection in order.
    channel.forget()
    channel.rfile.close()
    channel.connection.close()


def _keep_silent(channel: Channel, seconds: float | None) -> None:
    """Send nothing until the time is over, the client disconnects or the sandbox stops; then close."""
    channel.close_connection = True
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        channel.wait(0.25 if end is None else max(0.0, min(0.25, end - time.monotonic())))
        if _is_gone(channel.connection):
            return


def _is_gone(peer: socket.socket) -> bool:
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(peer, selectors.EVENT_READ)
            return bool(selector.select(0)) and not peer.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True


def _drip(channel: Channel, plain: Response, pause: float) -> None:
    for piece in channel.pieces(plain):
        for at in range(len(piece)):
            channel.wfile.write(piece[at : at + 1])
            channel.wait(pause)


def read_slowly(channel: Channel, body: Body, rule: Rule) -> None:
    """Make all further reads of the body small, with a pause before each."""
    # The kernel would otherwise buffer megabytes at once, and the client would see a fast reader.
    channel.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BLOCK)
    pause = rule.seconds if rule.seconds is not None else _SLOW_PAUSE

    def take(wanted: int) -> int:
        channel.wait(pause)
        return min(wanted, _SLOW_BLOCK)

    body.pause = take
