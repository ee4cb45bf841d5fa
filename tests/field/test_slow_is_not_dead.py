"""A slow line and a slow hub: an upload may take as long as its bytes move, and a hub may take its time for a response."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Self

import pytest
import template
from peer import Peer, answer
from platform_stage import staged
from stage import PATIENCE, ZERO, log, new_run, save_snapshot, totals

from hubqueue.destinations.base import Attempt
from hubqueue.destinations.wire.body import Bytes
from hubqueue.destinations.wire.endpoint import Endpoint
from hubqueue.destinations.wire.exchange import Wire
from hubqueue.destinations.wire.message import Request, Response
from hubqueue.domain.drafts import Checkpoint
from hubqueue.domain.outcome import UNANSWERED, Outcome, RetryLater
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock
from hubqueue.worker.worker import Worker

SECONDS = 2.0
# More than the socket buffers of both ends hold.
LARGE = 12_000_000


def wire(url: str, *, answer_timeout: float = SECONDS, **more: object) -> Wire:
    seconds = {
        "answer_timeout": timedelta(seconds=answer_timeout),
        "stall_window": timedelta(seconds=SECONDS),
    }
    return Wire(Endpoint(url, **{**seconds, **more}))  # type: ignore[arg-type]


def put(sender: Wire, size: int, *, patience: int = 0) -> Response | Outcome:
    sent = Attempt(lambda: None, lambda _sent: None, threading.Event(), patience=patience)
    try:
        return sender.exchange(Request("PUT", "/x", {}, Bytes(bytes(size))), sent)
    finally:
        sender.close()


def reads(*, block: int, pause: float) -> Callable[[socket.socket, bytes], None]:
    """A peer that reads a request in blocks, with a pause before each, and responds when it has all."""
    waiting = threading.Event()

    def act(connection: socket.socket, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        have = len(body)
        while have < length:
            waiting.wait(pause)
            have += len(connection.recv(block)) or length
        connection.sendall(answer())

    return act


def test_an_upload_that_takes_many_windows_arrives() -> None:
    """12 MB in several windows: a total time would end it."""
    with Peer(reads(block=1_000_000, pause=0.6), read_body=False) as peer:
        began = time.monotonic()
        outcome = put(wire(peer.url), LARGE)
        took = time.monotonic() - began

    assert isinstance(outcome, Response)
    assert took > 2 * SECONDS


def test_what_the_socket_has_taken_but_not_sent_is_still_moving() -> None:
    """The socket takes megabytes at once; the time limit of the response begins when the peer has read them."""
    with Peer(reads(block=400_000, pause=0.6), read_body=False) as peer:
        outcome = put(wire(peer.url), 3_000_000)

    assert isinstance(outcome, Response)


def test_an_upload_of_which_no_byte_moves_is_given_up() -> None:
    released = threading.Event()
    with Peer(lambda _connection, _request: released.wait(PATIENCE) and None, read_body=False) as peer:  # type: ignore[func-returns-value]
        outcome = put(wire(peer.url), LARGE)
        released.set()

    assert outcome == RetryLater("127.0.0.1: the upload stalled: no byte in 2 s")


def test_a_rate_that_is_asked_for_still_counts() -> None:
    with Peer(reads(block=200_000, pause=0.4), read_body=False) as peer:
        outcome = put(wire(peer.url, stall_rate=100_000_000), LARGE)

    assert isinstance(outcome, RetryLater)
    assert "the upload stalled" in outcome.reason


def test_the_wait_for_a_response_doubles_with_patience() -> None:
    with Peer(_after(3.0)) as peer:
        at_once, patient = put(wire(peer.url), 10), put(wire(peer.url), 10, patience=3)

    assert isinstance(at_once, RetryLater)
    assert UNANSWERED in at_once.reason
    assert isinstance(patient, Response)


def _after(seconds: float) -> Callable[[socket.socket, bytes], None]:
    waiting = threading.Event()

    def act(connection: socket.socket, _request: bytes) -> None:
        waiting.wait(seconds)
        connection.sendall(answer())

    return act


# A whole worker.


class Digesting:
    """A hub that needs `seconds` for each checkpoint, and nothing for the rest."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.uploads = seconds, 0
        self.numbers = itertools.count()
        self._waiting = threading.Event()

    def act(self, connection: socket.socket, request: bytes) -> None:
        if b"/upload HTTP" in request.partition(b"\r\n")[0]:
            self.uploads += 1
            self._waiting.wait(self.seconds)
        connection.sendall(answer())


@pytest.fixture
def worker_at(home: Path, clock: FakeClock) -> Iterator[Callable[[str], tuple[Outbox, Worker]]]:
    opened: list[tuple[Outbox, Worker]] = []
    template.lay(home)

    def start(url: str) -> tuple[Outbox, Worker]:
        environ = {
            "HUB_API_KEY": "key-of-the-tests",
            "ULTRALYTICS_HUB_API": url,
            "HUBQUEUE_DESTINATIONS__HUB__ANSWER_TIMEOUT": "0.3",
            "HUBQUEUE_RATE_LIMITS__CKPT": "0",
            "HUBQUEUE_RATE_LIMITS__HEARTBEAT": "100000",
        }
        outbox = open_outbox(home, environ=environ, clock=clock)
        outbox.note_destinations()
        worker = Worker(outbox, emit=lambda _fact: None)
        worker.start()
        opened.append((outbox, worker))
        return outbox, worker

    yield start
    for outbox, worker in opened:
        worker.stop(ZERO)
        outbox.close()


def step(worker: Worker, clock: FakeClock) -> None:
    worker.step()
    assert worker.wait_free(PATIENCE), "an attempt did not end"
    clock.advance(1000)


def save(outbox: Outbox, folder: Path, epoch: int, run_id: str | None = None) -> str:
    run_id = run_id or new_run(outbox)
    path = folder / "best.pt"
    path.write_bytes(os.urandom(200_000))
    save_snapshot(outbox, run_id, Checkpoint(path, epoch, is_best=False, map=0.5, final=False))
    return run_id


def test_a_hub_that_digests_longer_than_the_answer_timeout_gets_its_checkpoint(
    worker_at: Callable[[str], tuple[Outbox, Worker]], clock: FakeClock, tmp_path: Path
) -> None:
    hub = Digesting(1.5)
    with Peer(hub.act) as peer:
        outbox, worker = worker_at(peer.url)
        run_id = save(outbox, tmp_path, 0)
        deliver(outbox, worker, clock)
        first = hub.uploads
        # What was learned stays: a newer checkpoint of this run does not begin again.
        save(outbox, tmp_path, 1, run_id)
        deliver(outbox, worker, clock)

    assert totals(outbox) == {"enqueued": 2, "delivered": 2}
    assert first >= 3
    assert hub.uploads - first < first


def deliver(outbox: Outbox, worker: Worker, clock: FakeClock) -> None:
    """Step until nothing is owed. On a busy machine a hub needs longer than planned."""
    for _ in range(10):
        if not outbox.stats.owed().entries:
            return
        step(worker, clock)


def test_three_whole_uploads_without_a_response_are_attention(
    worker_at: Callable[[str], tuple[Outbox, Worker]], clock: FakeClock, tmp_path: Path
) -> None:
    hub = Digesting(3.0)
    with Peer(hub.act) as peer:
        outbox, worker = worker_at(peer.url)
        save(outbox, tmp_path, 0)
        step(worker, clock)
        step(worker, clock)
        early = outbox.status()["attention"]
        step(worker, clock)
        shown = outbox.status()
        deliver(outbox, worker, clock)

    assert not any("whole checkpoint" in each["what"] for each in early)
    (concern,) = (each for each in shown["attention"] if "whole checkpoint 3 times" in each["what"])
    assert "answer_timeout" in concern["hint"]
    assert totals(outbox) == {"enqueued": 1, "delivered": 1}
    assert not any("whole checkpoint" in each["what"] for each in outbox.status()["attention"])


def test_other_runs_and_other_kinds_wait_no_longer(
    worker_at: Callable[[str], tuple[Outbox, Worker]], clock: FakeClock, tmp_path: Path
) -> None:
    hub = Digesting(1.0)
    with Peer(hub.act) as peer:
        outbox, worker = worker_at(peer.url)
        run_id = save(outbox, tmp_path, 0)
        log(outbox, run_id, 0)
        step(worker, clock)
        lanes = {lane["kind"]: lane for lane in outbox.status()["runs"][0]["lanes"]}
        deliver(outbox, worker, clock)

    assert lanes["metrics"]["delivered"] == 1
    assert lanes["ckpt"]["pending"] == 1
    assert totals(outbox) == {"enqueued": 2, "delivered": 2}


def test_a_slow_line_to_a_signed_url_is_no_failure(hub: Sandbox, tmp_path: Path, clock: FakeClock) -> None:
    with (
        Throttle(hub.url, block=400_000, pause=0.2) as slow,
        staged(
            slow.url,
            tmp_path / "stage",
            clock,
            HUBQUEUE_DESTINATIONS__PLATFORM__STALL_WINDOW="2",
            HUBQUEUE_DESTINATIONS__PLATFORM__ANSWER_TIMEOUT="20",
            HUBQUEUE_DESTINATIONS__PLATFORM__UPLOAD_HOSTS=hub.url.removeprefix("http://"),
        ) as at,
    ):
        at.start()
        at.save(os.urandom(4_000_000))
        at.step(3)

        assert not [each for each in at.reasons() if each.startswith("retry")]
        assert totals(at.outbox)["delivered"] == 2


class Throttle:
    """Forwards connections to an address; what a client sends goes on in blocks with pauses."""

    def __init__(self, url: str, *, block: int, pause: float) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._target, self._block, self._pause = (host, int(port)), block, pause
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._waiting = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            pairs = ((client, server, self._pause), (server, client, 0.0))
            for pair in pairs:
                threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, pause: float) -> None:
        try:
            while data := source.recv(self._block):
                target.sendall(data)
                self._waiting.wait(pause)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()
