"""Peers that behave badly: silent, slow, endless, disconnecting, redirecting. Each exchange has a deadline; none leaks a key.

The slow peers run in parallel; each is also tried with a worker that is stopped meanwhile.
"""

from __future__ import annotations

import gzip
import io
import itertools
import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from peer import Peer, answer
from torture import tls
from torture.client import KEY, attempt, batch, transport
from torture.frame import Report

from hubqueue.domain.outcome import Aborted, Blocked, Delivered, Outcome, RetryLater

Act = Callable[[socket.socket, bytes, threading.Event], None]
_LARGE = 12_000_000  # more than the buffers of both ends
_HUGE = 30_000_000
_RATE = 4_000_000
_SECONDS = 1.0
_SLACK = 10.0
_MEMORY = 24 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Manner:
    """One behaviour of a peer. `expected` are the allowed outcomes."""

    name: str
    act: Act
    expected: tuple[type[Outcome], ...] = (RetryLater,)
    kind: str = "metrics"
    size: int = _LARGE
    read_body: bool = True
    slow: bool = False


def run(report: Report) -> None:
    """Send to all of them, and report the results."""
    dice = random.Random(report.seed)
    rounds = {"quick": 1, "normal": 3, "full": 25}[report.scale]
    with Peer(lambda connection, _request: connection.sendall(answer())) as other:
        quick = [each for _ in range(rounds) for each in (*_resets(dice), *_redirects(other.url))]
        slow = [*_slow(), *_endless()]
        with ThreadPoolExecutor(16) as pool:
            faults = [
                *pool.map(_meet_in_time, slow),
                *pool.map(_meet_and_stop, (each for each in slow if each.slow)),
            ]
            faults += pool.map(_meet_in_time, quick)
        peak = 0
        for each in _bombs():
            tracemalloc.start()
            faults.append(_meet(each))
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        elsewhere, received = other.connections, b"".join(other.requests)
    faults += tls.run(step={"quick": 20, "normal": 3, "full": 1}[report.scale])
    found = [fault for fault in faults if fault]
    report.write(
        f"manners: {len(faults)} exchanges with bad peers, wrong {len(found)}; "
        f"requests to another host {elsewhere}; peak of memory {peak / 1e6:.1f} MB"
    )
    for fault in found:
        report.require(False, fault)
    report.require(not elsewhere and KEY.encode() not in received, "another host got a request")
    report.require(peak < _MEMORY, f"a response took {peak / 1e6:.0f} MB")


def _meet_in_time(manner: Manner) -> str:
    """As `_meet`. A peer that must be delivered to gets three tries: on a busy machine one can exceed its deadline."""
    problem = _meet(manner)
    for _ in range(2 if manner.expected == (Delivered,) else 0):
        problem = problem and _meet(manner)
    return problem


def _meet(manner: Manner, *, stop_after: float | None = None) -> str:
    """One exchange. Returns the problem, or ""."""
    size = manner.size if manner.kind == "ckpt" else 0
    stop, done = threading.Event(), threading.Event()

    def act(connection: socket.socket, request: bytes) -> None:
        manner.act(connection, request, done)
        if not manner.read_body:
            raise OSError  # the rest of the upload is not a request

    with Peer(act, read_body=manner.read_body) as peer:
        seconds = _SECONDS if stop_after is None else 60.0
        hub = transport(
            peer.url, seconds=seconds, stall_rate=_RATE, open_body=lambda: io.BytesIO(bytes(size))
        )
        timer = threading.Timer(stop_after or 0.0, stop.set)
        if stop_after is not None:
            timer.start()
        began = time.monotonic()
        outcome = hub.send(batch(manner.kind, size=size), attempt(stop))
        took = time.monotonic() - began
        timer.cancel()
        done.set()
        hub.close()
    bound = 3 * _SECONDS + size / _RATE + _SLACK if stop_after is None else stop_after + _SLACK
    expected = manner.expected if stop_after is None else (Aborted,)
    if KEY in repr(outcome):
        return f"{manner.name}: the outcome contains the key"
    if any(request.count(KEY.encode()) > 1 for request in peer.requests) or len(peer.requests) > 1:
        return f"{manner.name}: {len(peer.requests)} requests, or the key outside its field"
    if took > bound:
        return f"{manner.name}: took {took:.1f} s, at most {bound:.1f} s were allowed"
    return "" if isinstance(outcome, expected) else f"{manner.name}: {outcome}"


def _meet_and_stop(manner: Manner) -> str:
    return _meet(manner, stop_after=0.3)


def _slow() -> Iterator[Manner]:
    whole = answer()
    body = whole.index(b"\r\n\r\n") + 4

    def drip(data: bytes, start: bytes = b"") -> Act:
        def act(connection: socket.socket, _request: bytes, done: threading.Event) -> None:
            connection.sendall(start)
            for byte in itertools.cycle(data) if len(data) < 40 else data:
                connection.sendall(bytes([byte]))
                if done.wait(0.05):
                    return

        return act

    def silent(connection: socket.socket, _request: bytes, done: threading.Event) -> None:
        done.wait(120)

    def slowly(pause: float, block: int) -> Act:
        def act(connection: socket.socket, request: bytes, done: threading.Event) -> None:
            left = _LARGE - len(request)
            while left > 0 and not done.wait(pause):
                left -= len(connection.recv(block)) or left
            connection.sendall(answer())
            done.wait(120)

        return act

    yield Manner("silence", silent, slow=True)
    yield Manner("silence after a checkpoint", silent, kind="ckpt", slow=True)
    yield Manner("reads nothing", silent, kind="ckpt", read_body=False, slow=True)
    yield Manner("reads slowly", slowly(0.1, 4096), kind="ckpt", read_body=False, slow=True)
    yield Manner("reads just fast enough", slowly(0.01, 400_000), (Delivered,), kind="ckpt", read_body=False)
    yield Manner("drips its head", drip(whole), slow=True)
    yield Manner("drips its body", drip(whole[body:], whole[:body]), slow=True)
    yield Manner("drips fields for ever", drip(b"X: 1\r\n", b"HTTP/1.1 200 OK\r\n"), slow=True)
    yield Manner("drips chunks for ever", drip(b"1\r\n \r\n", _CHUNKED), slow=True)
    yield Manner("drips trailers for ever", drip(b"X: 1\r\n", _CHUNKED + b"0\r\n"), slow=True)
    yield Manner("drips 100s for ever", drip(b"HTTP/1.1 100 Continue\r\n\r\n"), slow=True)
    yield Manner("drips blanks for ever", drip(b" ", _UNTIL_END), slow=True)
    yield Manner(
        "half a response, then silence", lambda c, r, done: _then_silence(c, whole[: body + 5], done)
    )
    yield Manner("half a head, then silence", lambda c, r, done: _then_silence(c, whole[:20], done))


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_UNTIL_END = b"HTTP/1.1 200 OK\r\n\r\n"


def _then_silence(connection: socket.socket, data: bytes, done: threading.Event) -> None:
    connection.sendall(data)
    done.wait(120)


def _endless() -> Iterator[Manner]:
    """Peers that send without end, as fast as the connection allows."""

    def endless(start: bytes, block: bytes) -> Act:
        def act(connection: socket.socket, _request: bytes, done: threading.Event) -> None:
            connection.sendall(start)
            while not done.is_set():
                connection.sendall(block)

        return act

    yield Manner("an endless status line", endless(b"HTTP/1.1 200 ", b"x" * 65536))
    yield Manner("an endless field", endless(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536))
    yield Manner("endless fields", endless(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n" * 9000))
    yield Manner("endless 103s", endless(b"", b"HTTP/1.1 103 Early\r\nX: 1\r\n\r\n" * 2000))
    yield Manner("an endless body", endless(_UNTIL_END, b" " * 65536))
    yield Manner("an endless chunk", endless(_CHUNKED + b"ffffffffffff\r\n", b" " * 65536))
    yield Manner("endless chunks", endless(_CHUNKED, b"1\r\n \r\n" * 9000))
    yield Manner("an endless extension", endless(_CHUNKED + b"1;", b"x" * 65536))
    yield Manner("endless trailers", endless(_CHUNKED + b"0\r\n", b"X: 1\r\n" * 9000))
    yield Manner(
        "a long body", endless(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", b" " * 65536)
    )
    yield Manner("nonsense", endless(b"", random.Random(0).randbytes(65536)))


def _resets(dice: random.Random) -> Iterator[Manner]:
    """The connection ends: at once, inside the upload, inside the response; with a reset or in order."""

    def leave(data: bytes, read: int, reset: bool) -> Act:
        def act(connection: socket.socket, request: bytes, done: threading.Event) -> None:
            left = read - len(request)
            while left > 0 and (block := connection.recv(min(left, 65536))):
                left -= len(block)
            connection.sendall(data)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise OSError

        return act

    whole = answer()
    for reset in (True, False):
        ending = "reset" if reset else "closed"
        yield Manner(f"{ending} at once", leave(b"", 0, reset))
        yield Manner(f"{ending} inside the response", leave(whole[: dice.randrange(len(whole))], 0, reset))
        # The rest must exceed both kernels' buffers: the sender cannot know how much the peer has read of them.
        at = dice.randrange(_HUGE - 15_000_000)
        yield Manner(
            f"{ending} after {at} bytes", leave(b"", at, reset), kind="ckpt", size=_HUGE, read_body=False
        )
        yield Manner(
            f"success, and {ending} after {at}",
            leave(whole, at, reset),
            kind="ckpt",
            size=_HUGE,
            read_body=False,
        )


def _redirects(other: str) -> Iterator[Manner]:
    """Everything that points a client to another host; it must not follow."""
    host = other.removeprefix("http://")
    targets = (
        other + "/v1/models/x",
        f"//{host}/x",
        f"http://{KEY}@{host}/",
        f"https://{host}/",
        f"{other}/?k={KEY}",
    )

    for status, target in itertools.product((301, 302, 303, 307, 308), targets):
        for kind in ("metrics", "ckpt"):
            whole = answer(
                status=f"{status} Elsewhere", headers=f"Location: {target}\r\nRefresh: 0;url={target}\r\n"
            )
            yield Manner(f"{status} of {kind} to {target}", _sends(whole), kind=kind, size=200_000)
    for status in (300, 305, 306, 304):
        whole = answer(status=f"{status} Elsewhere", headers=f"Location: {other}\r\n")
        yield Manner(f"{status} to another host", _sends(whole))
    for headers in (f"Location: {other}\r\n", f"Refresh: 0;url={other}\r\n", f'Alt-Svc: h2="{host}"\r\n'):
        for named in (f"Content-Location: {other}\r\n", f"Link: <{other}>; rel=preload\r\n"):
            yield Manner(f"200 with {headers!r}", _sends(answer(headers=headers + named)), (Delivered,))
    # A 407 is never the hub's.
    for status, field, expected in (
        (401, "WWW-Authenticate", Blocked),
        (407, "Proxy-Authenticate", RetryLater),
    ):
        for scheme in ("Basic", 'Digest realm="x", nonce="1"', "Negotiate"):
            whole = answer(b"{}", status=f"{status} No", headers=f"{field}: {scheme}\r\n")
            yield Manner(f"{status} {scheme}", _sends(whole), (expected,))


def _sends(data: bytes) -> Act:
    return lambda connection, _request, _done: connection.sendall(data)


def _bombs() -> Iterator[Manner]:
    """Responses that are small to send and large to read."""
    zeros = gzip.compress(bytes(60_000_000), 9, mtime=0)
    yes = gzip.compress(b'{"success": true, "x": "' + b"x" * 60_000_000 + b'"}', 9, mtime=0)
    for status in ("200 OK", "302 Found", "500 Error", "400 Bad", "401 No"):
        for packed, coding in ((zeros, "gzip"), (yes, "gzip"), (yes, "deflate, gzip"), (yes, "br")):
            whole = answer(packed, status=status, headers=f"Content-Encoding: {coding}\r\nLocation: /x\r\n")
            # It was asked for uncompressed, so it is not the hub's own, whatever its status.
            yield Manner(f"{status} in {coding}", lambda c, _r, _d, w=whole: c.sendall(w))
    deep, digits = 65_000, b"9" * 60_000
    for name, body in (
        ("deep lists", b"[" * deep),
        ("deep lists, whole", b"[" * (deep // 2) + b"]" * (deep // 2)),
        ("deep objects", b'{"success":' * 5_000 + b"true" + b"}" * 5_000),
        ("deep lists beside success", b'{"success": true, "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
        ("a long number as success", b'{"success": ' + digits + b"}"),
        ("a long exponent", b'{"success": 1e' + digits + b"}"),
        ("a long string", b'{"success": "' + b"\\u0000" * 10_000 + b'"}'),
        ("many names", b"{" + b",".join(b'"%d":1' % n for n in range(6_000)) + b"}"),
        ("above the cap", b'{"success": true, "x": "' + b"x" * 65_536 + b'"}'),
    ):
        for status in ("200 OK", "500 Error"):
            yield Manner(f"{status}: {name}", _sends(answer(body, status=status)))
