"""Where a response begins and ends: what the HTTP library guesses, and RFC 9112 forbids."""

from __future__ import annotations

import socket

import pytest
from peer import GOOD, Peer, answer
from torture.client import attempt, batch, transport

from hubqueue.domain.outcome import Delivered, RetryLater


def _outcome(data: bytes, *, close: bool = True) -> object:
    def act(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(data)
        if close:
            raise OSError

    with Peer(act) as peer:
        return transport(peer.url, seconds=5).send(batch("metrics"), attempt())


def _head(*fields: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((status, *fields)) + b"\r\n\r\n"


_LENGTH = b"Content-Length: %d" % len(GOOD)


@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints", "199 Odd"])
def test_an_interim_response_is_not_the_response(status: str) -> None:
    early = f"HTTP/1.1 {status}\r\nLink: </x>\r\n\r\n".encode()

    assert _outcome(early + early + answer(), close=False) == Delivered()


def test_a_late_response_does_not_belong_to_the_next_request() -> None:
    """A hub that sends "processing" first: its late response must not become that to the next request."""
    seen: list[bytes] = []

    def act(connection: socket.socket, request: bytes) -> None:
        seen.append(request)
        if len(seen) == 1:
            connection.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
            peer.done.wait(0.3)
            connection.sendall(answer())
        else:
            connection.sendall(answer(b'{"success": false}'))

    with Peer(act) as peer:
        there = transport(peer.url, seconds=5)
        first, second = (there.send(batch("metrics"), attempt()) for _ in range(2))

    assert first == Delivered()
    assert isinstance(second, RetryLater)


def test_an_unexpected_switch_of_protocols_is_no_response() -> None:
    assert isinstance(_outcome(_head(b"Upgrade: h2c", status=b"HTTP/1.1 101 Switch") + answer()), RetryLater)


@pytest.mark.parametrize(
    "head",
    [
        _head(b"Content-Length: abc"),
        _head(b"Content-Length: +%d" % len(GOOD)),
        _head(b"Content-Length: %d_%d" % divmod(len(GOOD), 10)),
        _head(b"Content-Length: -1"),
        _head(b"Content-Length: "),
        _head(_LENGTH, b"Content-Length: 5"),
        _head(b"Transfer-Encoding: gzip, chunked"),
        _head(b"Transfer-Encoding: identity", _LENGTH),
        _head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        _head(b"no colon in this line", _LENGTH),
        _head(b"Bad Name: 1", _LENGTH),
        _head(b": 1", _LENGTH),
        _head(b" X: folded before the first", _LENGTH),
        _head(b"X: a\rContent-Length: %d" % len(GOOD)),
        _head(b"X: \x00", _LENGTH),
        _head(_LENGTH, status=b"HTTP/1.1 +200 OK"),
        _head(_LENGTH, status=b"HTTP/1.1 2_00 OK"),
        _head(_LENGTH, status=b"HTTP/0.9 200 OK"),
        _head(_LENGTH, status=b"HTTP/1.x 200 OK"),
        b"HTTP/1.1 103 Early\r\nno colon\r\n\r\n" + _head(_LENGTH),
    ],
    ids=repr,
)
def test_a_malformed_head_proves_nothing(head: bytes) -> None:
    assert isinstance(_outcome(head + GOOD), RetryLater)


@pytest.mark.parametrize(
    "body",
    [
        b"%x\r\n%b--0\r\n\r\n" % (len(GOOD), GOOD),
        b"0x%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD),
        b"+%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD),
        b"%x\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD),
        b"%x\r\n%b\r\n-0\r\n\r\n" % (len(GOOD), GOOD),
        b"%x x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD),
    ],
    ids=repr,
)
def test_malformed_chunks_prove_nothing(body: bytes) -> None:
    assert isinstance(_outcome(_head(b"Transfer-Encoding: chunked") + body), RetryLater)


@pytest.mark.parametrize(
    "whole",
    [
        _head(_LENGTH + b" \t") + GOOD,
        _head(_LENGTH, b"X-Fold: a\r\n  b") + GOOD,
        _head(_LENGTH, _LENGTH) + GOOD,
        _head(_LENGTH).replace(b"\r\n", b"\n") + GOOD,
        _head(b"X: \xff\xfe", b"X-Empty:", _LENGTH) + GOOD,
        _head(_LENGTH, status=b"HTTP/1.1 200") + GOOD,
        _head(b"Transfer-Encoding: Chunked \t") + b'%x;a="b"\r\n%b\r\n0\r\nX: 1\r\n\r\n' % (len(GOOD), GOOD),
    ],
    ids=repr,
)
def test_unusual_but_valid_framing_is_accepted(whole: bytes) -> None:
    assert _outcome(whole, close=False) == Delivered()


@pytest.mark.parametrize(
    "body",
    [b'{"success": false, "success": true}', b'{"success": true, "data": {}, "success": "no"}'],
    ids=repr,
)
def test_a_contradictory_success_is_no_success(body: bytes) -> None:
    assert isinstance(_outcome(answer(body)), RetryLater)


def test_a_response_that_the_watchdog_ended_proves_nothing() -> None:
    """A response without a length ends when the peer closes the connection, not when we do."""
    with Peer(lambda connection, _request: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + GOOD)) as peer:
        outcome = transport(peer.url, seconds=1).send(batch("metrics"), attempt())

    assert isinstance(outcome, RetryLater)
    assert "no complete response" in outcome.reason
