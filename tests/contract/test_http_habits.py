"""What HTTP clients do automatically and this one must not: accept early responses, read redirects, count proxy bytes."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import socket
import ssl
import subprocess
import threading
import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from peer import Peer, answer
from stage import PATIENCE

from hubqueue.config.reader import SpoolSettings
from hubqueue.destinations.base import Attempt
from hubqueue.destinations.hub.settings import HubSettings
from hubqueue.destinations.hub.transport import HubTransport
from hubqueue.destinations.wire.body import Blocks
from hubqueue.destinations.wire.watchdog import Watch
from hubqueue.domain.entry import Entry, Kind, Snapshot
from hubqueue.domain.errors import SnapshotAltered
from hubqueue.domain.lane import Batch, RunRef
from hubqueue.domain.outcome import Aborted, Blocked, Delivered, Outcome, Rejected, RetryLater
from hubqueue.outbox.spool.body import SnapshotBody
from hubqueue.outbox.spool.hashing import BLOCK
from hubqueue.outbox.spool.spool import Spool

_NOW = 1_767_225_600_000_000
_LARGE = bytes(30_000_000)  # more than the buffers of both ends of a socket hold


class Recorder:
    """An attempt that records the reports of the transport."""

    def __init__(self) -> None:
        self.starts, self.sent = 0, [0]
        self.stop = threading.Event()
        self.attempt = Attempt(self._start, self.sent.append, self.stop)

    def _start(self) -> None:
        self.starts += 1


def hub(
    url: str,
    *,
    body: bytes = b"",
    key: str = "5ec4e7" * 7,
    open_body: Callable[[Snapshot], Blocks] | None = None,
    **settings: object,
) -> HubTransport:
    chosen = HubSettings("hub", url=url, **settings)  # type: ignore[arg-type]
    return HubTransport(chosen, lambda: (key,), open_body or (lambda _snapshot: io.BytesIO(body)))


def metrics() -> Batch:
    return _batch(Kind.METRICS, '{"loss": 1.0}', None)


def ckpt(size: int) -> Batch:
    payload = '{"epoch": 7, "is_best": true, "map": 0.5, "final": false}'
    return _batch(Kind.CKPT, payload, Snapshot("x.ckpt", size, 0))


def _batch(kind: Kind, payload: str, snapshot: Snapshot | None) -> Batch:
    entry = Entry(1, "0", payload, 1, _NOW, snapshot, False, 1)
    return Batch(RunRef("run", "hub", "m.pt", "abcdefghij0123456789"), kind, (entry,), "key-of-the-batch")


def _responds_at_once(data: bytes, peer_closes: bool) -> Callable[[socket.socket, bytes], None]:
    def act(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(data)
        if peer_closes:
            connection.shutdown(socket.SHUT_WR)
            threading.Event().wait(0.5)  # until the sender is blocked
            raise OSError
        threading.Event().wait(60)

    return act


# Half a request.


@pytest.mark.parametrize("peer_closes", [True, False])
def test_a_success_before_the_upload_is_complete_is_no_delivery(peer_closes: bool) -> None:
    with Peer(_responds_at_once(answer(), peer_closes), read_body=False) as peer:
        recorder = Recorder()
        there = hub(peer.url, body=_LARGE, stall_window=timedelta(seconds=1), stall_rate=10_000_000)

        outcome = there.send(ckpt(len(_LARGE)), recorder.attempt)

    assert isinstance(outcome, RetryLater)
    assert recorder.sent[-1] < len(_LARGE)


def test_a_success_before_the_upload_is_stopped_is_no_delivery() -> None:
    recorder, outcomes, reached = Recorder(), list[Outcome](), threading.Event()

    def act(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(answer())
        reached.set()
        threading.Event().wait(60)

    with Peer(act, read_body=False) as peer:
        there = hub(peer.url, body=_LARGE)
        thread = threading.Thread(
            target=lambda: outcomes.append(there.send(ckpt(len(_LARGE)), recorder.attempt)), daemon=True
        )
        thread.start()
        assert reached.wait(PATIENCE)
        recorder.stop.set()
        thread.join(PATIENCE)

    assert outcomes == [Aborted("the worker stops")]


def test_a_refusal_before_the_upload_is_complete_counts() -> None:
    """A hub may refuse a checkpoint as too large before it has read all of it."""
    refusal = answer(b'{"message": "too large"}', status="413 Too Large")
    with Peer(_responds_at_once(refusal, True), read_body=False) as peer:
        outcome = hub(peer.url, body=_LARGE).send(ckpt(len(_LARGE)), Recorder().attempt)

    assert isinstance(outcome, Rejected)
    assert "too large" in outcome.reason


# A snapshot that is altered under the upload: it never arrives whole.


@pytest.mark.parametrize("damage", ["flipped", "shorter", "longer"])
@pytest.mark.parametrize("early", [b"", answer()], ids=["", "immediate success"])
def test_a_snapshot_that_is_altered_while_it_is_sent_never_arrives_whole(
    tmp_path: Path, damage: str, early: bytes
) -> None:
    snapshot, open_body = _snapshot(tmp_path, _LARGE)
    path, arrived, ended = tmp_path / "spool" / snapshot.name, [0], threading.Event()

    def act(connection: socket.socket, request: bytes) -> None:
        connection.sendall(early)
        _first_block(connection, request)
        if damage == "flipped":
            _overwrite(path, len(_LARGE) - 1)
        else:
            os.truncate(path, len(_LARGE) + (1 if damage == "longer" else -1))
        arrived[0] = BLOCK + _rest(connection)
        ended.set()

    recorder = Recorder()
    with Peer(act, read_body=False) as peer:
        with pytest.raises(SnapshotAltered):
            hub(peer.url, open_body=open_body).send(ckpt(snapshot.size), recorder.attempt)
        assert ended.wait(PATIENCE), "the connection is still open"

    # The last block and what follows it in the form are missing.
    assert arrived[0] < len(_LARGE)
    assert recorder.sent[-1] < len(_LARGE)


def test_the_hash_covers_the_sent_bytes_not_the_files_later_content(tmp_path: Path) -> None:
    snapshot, open_body = _snapshot(tmp_path, _LARGE)
    bodies: list[bytes] = []

    def act(connection: socket.socket, request: bytes) -> None:
        length = int(re.search(rb"Content-Length: (\d+)", request)[1])  # type: ignore[index]
        body = bytearray(_first_block(connection, request))
        _overwrite(tmp_path / "spool" / snapshot.name, 0)
        while len(body) < length:
            body += connection.recv(1 << 20)
        bodies.append(bytes(body))
        connection.sendall(answer())

    with Peer(act, read_body=False) as peer:
        outcome = hub(peer.url, open_body=open_body).send(ckpt(snapshot.size), Recorder().attempt)

    assert outcome == Delivered()
    assert _LARGE in bodies[0]


@pytest.mark.parametrize("peer_closes", [True, False])
def test_an_immediate_success_is_no_delivery_of_an_altered_snapshot(
    tmp_path: Path, peer_closes: bool
) -> None:
    snapshot, open_body = _snapshot(tmp_path, _LARGE)
    _overwrite(tmp_path / "spool" / snapshot.name, 0)

    with Peer(_responds_at_once(answer(), peer_closes), read_body=False) as peer:
        there = hub(peer.url, open_body=open_body, stall_window=timedelta(seconds=1), stall_rate=10_000_000)
        outcome = there.send(ckpt(snapshot.size), Recorder().attempt)

    assert isinstance(outcome, RetryLater)


def _snapshot(folder: Path, content: bytes) -> tuple[Snapshot, Callable[[Snapshot], SnapshotBody]]:
    spool = Spool(folder / "spool", SpoolSettings(min_free_bytes=0))
    (folder / "best.pt").write_bytes(content)
    snapshot = spool.take(folder / "best.pt", label="run-1")
    assert snapshot.sha256 is not None
    return snapshot, lambda _asked: spool.open(snapshot)


def _overwrite(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (found,) = file.read(1)
        file.seek(offset)
        file.write(bytes([found ^ 1]))


def _first_block(connection: socket.socket, request: bytes) -> bytes:
    """The bytes that arrive until the sender has certainly read the beginning of the snapshot."""
    body = request.partition(b"\r\n\r\n")[2]
    while len(body) < BLOCK:
        body += connection.recv(BLOCK - len(body))
    return body


def _rest(connection: socket.socket) -> int:
    """The number of further bytes that arrive until the sender stops."""
    arrived = 0
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(1 << 20):
            arrived += len(more)
    return arrived


# Responses that prove nothing.


def test_the_body_of_a_redirect_costs_no_memory() -> None:
    packed = gzip.compress(bytes(100_000_000), 1)
    headers = "Location: /x\r\nContent-Encoding: gzip\r\n"
    with Peer(
        lambda connection, _request: connection.sendall(answer(packed, status="302 Found", headers=headers))
    ) as peer:
        there = hub(peer.url)
        tracemalloc.start()
        try:
            outcome = there.send(metrics(), Recorder().attempt)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert isinstance(outcome, RetryLater)
    assert peak < 32 * 1024 * 1024


@pytest.mark.parametrize("location", [b"http://[bad", b"//[", b"\xff\xfe", b"http://h:port/", b""], ids=repr)
def test_a_redirect_to_an_invalid_address_is_an_outcome(location: bytes) -> None:
    whole = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
    with Peer(lambda connection, _request: connection.sendall(whole)) as peer:
        outcome = hub(peer.url).send(metrics(), Recorder().attempt)

    assert isinstance(outcome, RetryLater)
    assert "not followed" in outcome.reason


def test_two_lengths_are_a_fault_of_the_response_and_hold_nothing() -> None:
    whole = answer(headers="Content-Length: 5\r\n")
    with Peer(lambda connection, _request: connection.sendall(whole)) as peer:
        outcome = hub(peer.url).send(metrics(), Recorder().attempt)

    assert isinstance(outcome, RetryLater)
    assert "length" in outcome.reason


# Before the request.


def test_stop_ends_a_tls_handshake() -> None:
    recorder, outcomes = Recorder(), list[Outcome]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = hub(f"https://127.0.0.1:{listener.getsockname()[1]}", connect_timeout=timedelta(seconds=60))
        thread = threading.Thread(
            target=lambda: outcomes.append(there.send(metrics(), recorder.attempt)), daemon=True
        )
        thread.start()
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1)  # the greeting is out, and stays unanswered
            recorder.stop.set()
            thread.join(PATIENCE)

    assert outcomes == [Aborted("the worker stops")]
    assert recorder.starts == 0


def test_a_dripping_proxy_is_disconnected() -> None:
    def drip(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not peer.done.wait(0.2):
            connection.sendall(b"X-Drip: 1\r\n")

    with Peer(drip) as peer:
        recorder = Recorder()
        there = hub("https://hub.example", proxy=peer.url, connect_timeout=timedelta(seconds=1))
        outcome = there.send(metrics(), recorder.attempt)

    assert isinstance(outcome, RetryLater)
    assert "no connection" in outcome.reason
    assert recorder.starts == 0


def test_the_dialogue_with_a_proxy_is_not_part_of_the_upload(tmp_path: Path) -> None:
    context = _secure("hub.example", tmp_path)
    received: list[bytes] = []
    starts_at_the_proxy: list[int] = []

    def tunnel(connection: socket.socket, request: bytes) -> None:
        if not request.startswith(b"CONNECT hub.example:443"):
            raise OSError
        starts_at_the_proxy.append(recorder.starts)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with context.wrap_socket(connection, server_side=True) as secure:
            while not received or not received[-1].endswith(b"}"):
                received.append(b"".join(received[-1:]) + secure.recv(65536))
            secure.sendall(answer())
            peer.done.wait(PATIENCE)

    recorder = Recorder()
    with Peer(tunnel) as peer:
        there = hub("https://hub.example", proxy=peer.url, ca_bundle=tmp_path / "cert.pem")
        outcome = there.send(metrics(), recorder.attempt)

    assert outcome == Delivered()
    assert recorder.starts == 1
    assert starts_at_the_proxy == [0]
    assert recorder.sent[-1] == len(received[-1].partition(b"\r\n\r\n")[2])
    assert b"x-api-key" not in peer.requests[0].lower()


def _secure(name: str, folder: Path) -> ssl.SSLContext:
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    try:
        made = subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("there is no openssl command here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


# On this side.


def test_a_key_that_is_not_valid_text_is_an_outcome() -> None:
    outcome = hub("http://127.0.0.1:9", key="abc\udcff").send(metrics(), Recorder().attempt)

    assert isinstance(outcome, Blocked)
    assert "abc" not in outcome.reason


def test_a_watch_that_is_over_does_not_touch_its_connection() -> None:
    stop = threading.Event()
    watch = Watch(stop, connect=1.0, window=1.0, rate=1.0, response=1.0, size=0, on_bytes=lambda _sent: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watch.opened(ours, ready=True)
        watch.over()

        stop.set()
        watch.check(float("inf"))
        ours.sendall(b"next")

        assert theirs.recv(4) == b"next"
