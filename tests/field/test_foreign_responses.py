"""A gateway, a proxy or a login page answers in place of the hub: nothing is lost, and nobody has to come."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import platform_stage
import pytest
import template
from _pytest.mark import ParameterSet
from peer import Peer, answer
from platform_stage import Stage
from stage import PATIENCE, ZERO, environ_of, hubqueue, log, new_run, totals

from hubqueue.destinations.base import quiet
from hubqueue.destinations.platform.settings import PlatformSettings
from hubqueue.destinations.wire.body import Bytes
from hubqueue.destinations.wire.signed_url import Storage
from hubqueue.domain.outcome import FOREIGN, RetryLater
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock
from hubqueue.worker.worker import Worker

PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Welcome to the hotel</body></html>"
REFUSALS = (400, 401, 402, 403, 404, 405, 407, 410, 413, 418, 422, 451, 501, 511)
SHAPES = {
    "html": PAGE,
    "long html": PAGE + b" " * 100_000,
    "nothing": b"",
    "text": b"Request Entity Too Large",
    "xml": b"<?xml version='1.0'?><error>no</error>",
    "an array": b'[{"message": "no"}]',
    "a string": b'"no"',
    "null": b"null",
    "half an object": b'{"message": "no"',
}


def sometimes(every: Iterable[int], *each_time: int) -> list[ParameterSet]:
    """These statuses; the ones that are not tried each time are tried by the slow tests."""
    return [pytest.param(status, marks=() if status in each_time else pytest.mark.slow) for status in every]


class Gateway:
    """Answers with `data` while it is set, else as the hub does."""

    def __init__(self) -> None:
        self.data: bytes | Callable[[bytes], bytes | None] | None = None
        self.close = False

    def act(self, connection: socket.socket, request: bytes) -> None:
        data = self.data(request) if callable(self.data) else self.data
        connection.sendall(answer() if data is None else data)
        if data is not None and self.close:
            raise OSError


def page(status: int, body: bytes = PAGE, *, kind: str = "text/html", headers: str = "") -> bytes:
    """A whole response of something that is not the hub."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def peer(gateway: Gateway) -> Iterator[Peer]:
    with Peer(gateway.act) as opened:
        yield opened


@pytest.fixture
def staged(home: Path, clock: FakeClock, peer: Peer) -> Iterator[tuple[Outbox, Worker]]:
    template.lay(home)
    environ = {
        "HUB_API_KEY": "key-of-the-tests",
        "ULTRALYTICS_HUB_API": peer.url,
        "HUBQUEUE_DESTINATIONS__HUB__ANSWER_TIMEOUT": "1",
        "HUBQUEUE_RATE_LIMITS__METRICS": "0",
    }
    with open_outbox(home, environ=environ, clock=clock) as outbox:
        outbox.note_destinations()
        worker = Worker(outbox, emit=lambda _fact: None)
        worker.start()
        yield outbox, worker
        worker.stop(ZERO)


def step(worker: Worker) -> None:
    worker.step()
    assert worker.wait_free(PATIENCE), "an attempt did not end"


def drain(outbox: Outbox, worker: Worker, clock: FakeClock) -> None:
    for _ in range(40):
        if not outbox.stats.owed().entries:
            return
        clock.advance(400)
        step(worker)
    raise AssertionError(f"still owed: {totals(outbox)}")


def held(outbox: Outbox) -> list[object]:
    shown = outbox.status()
    return [each["held"] for each in (*shown["destinations"], *shown["runs"]) if each["held"]]


@pytest.mark.parametrize("status", sometimes(REFUSALS, 400, 401, 404, 413, 511))
def test_a_page_of_a_gateway_buries_nothing_and_holds_nothing(
    status: int, staged: tuple[Outbox, Worker], gateway: Gateway, clock: FakeClock
) -> None:
    (outbox, worker), gateway.data = staged, page(status)
    log(outbox, new_run(outbox), *range(5))

    for _ in range(3):
        clock.advance(400)
        step(worker)
    during = outbox.status()
    gateway.data = None
    drain(outbox, worker, clock)

    assert during["totals"]["pending"] == 5
    assert during["totals"]["dead"] == 0
    assert not held(outbox)
    assert str(status) in during["destinations"][0]["last_error"]
    assert totals(outbox) == {"enqueued": 5, "delivered": 5}


# Each time, each shape comes with one of the first two statuses.
@pytest.mark.parametrize(
    ("shape", "status"),
    [
        pytest.param(shape, status, marks=() if status == (400, 401)[number % 2] else pytest.mark.slow)
        for number, shape in enumerate(SHAPES)
        for status in (400, 401, 404, 413)
    ],
)
def test_what_is_not_the_hubs_own_format_is_no_verdict(
    status: int, shape: str, staged: tuple[Outbox, Worker], gateway: Gateway, clock: FakeClock
) -> None:
    # The announced type does not count: a gateway may claim anything.
    (outbox, worker), gateway.data = staged, page(status, SHAPES[shape], kind="application/json")
    log(outbox, new_run(outbox), 0)

    step(worker)

    lane = next(each for each in outbox.status()["runs"][0]["lanes"] if each["kind"] == "metrics")
    assert (lane["pending"], lane["dead"], lane["held"]) == (1, 0, None)
    assert FOREIGN in lane["last_error"]
    assert str(status) in lane["last_error"]


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (400, "dead"),
        (413, "dead"),
        pytest.param(422, "dead", marks=pytest.mark.slow),
        (401, "pending"),
        pytest.param(404, "pending", marks=pytest.mark.slow),
    ],
)
def test_the_hubs_own_refusal_still_counts(
    status: int, state: str, staged: tuple[Outbox, Worker], gateway: Gateway
) -> None:
    (outbox, worker), gateway.data = staged, page(status, b'{"message": "because"}')
    log(outbox, new_run(outbox), 0)

    step(worker)

    (row,) = outbox.stats.entries()
    assert row["state"] == state
    assert bool(held(outbox)) == (state == "pending")


def test_a_429_with_a_long_page_is_a_429(
    staged: tuple[Outbox, Worker], gateway: Gateway, peer: Peer, clock: FakeClock
) -> None:
    (outbox, worker), gateway.data = staged, page(429, b"x" * 100_000, headers="Retry-After: 60\r\n")
    log(outbox, new_run(outbox), 0)
    step(worker)
    before = len(peer.requests)

    clock.advance(50)
    step(worker)
    waited = len(peer.requests)
    gateway.data = None
    clock.advance(80)
    step(worker)

    assert before == waited
    assert totals(outbox) == {"enqueued": 1, "delivered": 1}


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n"),
        ("Content-Length: 999999999\r\n", b"x" * 1000),
        ("Transfer-Encoding: chunked\r\n", b"zz\r\n"),
        ("Content-Encoding: gzip\r\n", gzip.compress(bytes(60_000_000), 9, mtime=0)),
    ],
    ids=["chunks without an end", "half a body", "chunks that are none", "a gzip bomb"],
)
def test_a_429_is_judged_by_its_headers_whatever_its_body_is(
    head: str, body: bytes, staged: tuple[Outbox, Worker], gateway: Gateway
) -> None:
    outbox, worker = staged
    gateway.data, gateway.close = f"HTTP/1.1 429 X\r\nRetry-After: 600\r\n{head}\r\n".encode() + body, True
    log(outbox, new_run(outbox), 0)

    step(worker)

    row = outbox.stats.destinations()[0]
    assert row["resumes_at"] - outbox.database.now() > timedelta(seconds=590)


def test_a_429_whose_body_never_ends_is_a_429(
    staged: tuple[Outbox, Worker], gateway: Gateway, peer: Peer
) -> None:
    outbox, worker = staged
    gateway.data = b"HTTP/1.1 429 X\r\nRetry-After: 600\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    log(outbox, new_run(outbox), 0)

    step(worker)  # the connection stays open, and the answer_timeout ends it

    row = outbox.stats.destinations()[0]
    assert row["resumes_at"] - outbox.database.now() > timedelta(seconds=590)


@pytest.mark.parametrize("status", sometimes((200, 201, 204, 205, 206, 304), 200, 204, 304))
def test_a_success_without_proof_delivers_nothing(
    status: int, staged: tuple[Outbox, Worker], gateway: Gateway
) -> None:
    outbox, worker = staged
    gateway.data, gateway.close = page(status, b"" if status in (204, 205, 304) else PAGE * 1000), True
    log(outbox, new_run(outbox), 0)

    step(worker)

    (row,) = outbox.stats.entries()
    assert row["state"] == "pending"
    assert FOREIGN in row["reason"]


def test_the_reason_names_the_host_the_status_and_the_page(
    staged: tuple[Outbox, Worker], gateway: Gateway
) -> None:
    (outbox, worker), gateway.data = staged, page(404)
    log(outbox, new_run(outbox), 0)

    step(worker)

    assert outbox.stats.entries()[0]["reason"] == (
        "127.0.0.1 responded 404 Not Found with an HTML page, not like a hub (proxy, login page or wrong URL?): "
        "Sign in Welcome to the hotel"
    )


def test_one_entry_that_a_filter_refuses_blocks_no_neighbour_and_a_person_is_told(
    staged: tuple[Outbox, Worker], gateway: Gateway, clock: FakeClock
) -> None:
    outbox, worker = staged
    gateway.data = lambda request: page(403) if b"DROP TABLE" in request else None
    run_id = new_run(outbox)
    log(outbox, run_id, 0, 1)
    log(outbox, run_id, 2, value='1, "x\'; DROP TABLE": 1')  # type: ignore[arg-type]
    log(outbox, run_id, 3, 4)

    for _ in range(30):
        clock.advance(400)
        step(worker)
    log(outbox, run_id, 5)
    for _ in range(10):
        clock.advance(400)
        step(worker)

    shown = outbox.status()
    assert {row["key"]: row["state"] for row in outbox.stats.entries()} == {
        **dict.fromkeys("01345", "delivered"),
        "2": "pending",
    }
    (concern,) = (each for each in shown["attention"] if FOREIGN in each["what"])
    assert "1 entry of metrics" in concern["what"]
    assert "hubqueue cancel" in concern["hint"]
    gateway.data = None
    clock.advance(400)
    step(worker)
    assert not any(FOREIGN in each["what"] for each in outbox.status()["attention"])


def test_a_request_that_is_too_large_for_a_gateway_gets_through_in_parts(
    staged: tuple[Outbox, Worker], gateway: Gateway, clock: FakeClock
) -> None:
    outbox, worker = staged
    gateway.data = lambda request: page(413) if len(request) > 700 else None
    log(outbox, new_run(outbox), *range(40))

    for _ in range(60):
        clock.advance(400)
        step(worker)

    assert totals(outbox) == {"enqueued": 40, "delivered": 40}


# At Platform, where some statuses of the hub have a meaning of their own.


class Front:
    """Forwards every request to a sandbox, or responds itself: `page_for(path, body)` returns what to respond."""

    def __init__(self, hub: Sandbox) -> None:
        self._target = urlsplit(hub.url).netloc
        self.page_for: Callable[[str, bytes], bytes | None] = lambda _path, _body: None

    def act(self, connection: socket.socket, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        line, _, fields = head.decode().partition("\r\n")
        method, path, _ = line.split(" ")
        found = self.page_for(path, body)
        if found is None:
            headers = dict(field.split(": ", 1) for field in fields.split("\r\n"))
            onward = http.client.HTTPConnection(self._target, timeout=PATIENCE)
            onward.request(method, path, body, {**headers, "Host": self._target})
            response = onward.getresponse()
            content = response.read()
            onward.close()
            found = page(response.status, content, kind="application/json")
        connection.sendall(found)


@pytest.fixture
def front(hub: Sandbox) -> Front:
    return Front(hub)


@pytest.fixture
def at(front: Front, hub: Sandbox, tmp_path: Path, clock: FakeClock) -> Iterator[Stage]:
    hosts = hub.url.removeprefix("http://")
    with (
        Peer(front.act) as peer,
        platform_stage.staged(
            peer.url, tmp_path / "at", clock, HUBQUEUE_DESTINATIONS__PLATFORM__UPLOAD_HOSTS=hosts
        ) as stage,
    ):
        stage._hub = hub
        yield stage


@pytest.mark.parametrize("status", sometimes((400, 403, 404, 410), 403, 404))
def test_a_page_at_the_start_of_a_training_makes_no_second_model(
    status: int, front: Front, at: Stage, hub: Sandbox
) -> None:
    at.start()
    at.drain()
    front.page_for = lambda _path, body: page(status) if b"training_started" in body else None
    first = at.run_id
    at.start(resume=first)
    at.step(4)
    front.page_for = lambda _path, _body: None
    at.drain()

    assert len(hub.runs) == 1
    assert at.run_id == first


def test_a_page_before_the_first_start_does_not_change_the_name_of_a_model(front: Front, at: Stage) -> None:
    """The name is taken by an earlier training. A start that the hub may have received would be sent under another one."""
    at.start()
    at.drain()
    front.page_for = lambda _path, body: page(403) if b"training_started" in body else None
    at.start()
    at.step(4)
    starts: list[bytes] = []
    front.page_for = lambda _path, body: starts.append(body) if b"training_started" in body else None  # type: ignore[func-returns-value]
    at.drain()

    assert [json.loads(each)["name"] for each in starts] == ["exp-1"]


@pytest.mark.parametrize("status", sometimes((404, 409, 410), 404, 409))
def test_a_page_in_place_of_an_announcement_does_not_send_the_bytes_again(
    status: int, front: Front, at: Stage, hub: Sandbox
) -> None:
    at.start()
    at.step()
    front.page_for = lambda _path, body: page(status) if b"checkpoint_saved" in body else None
    at.save(b"weights" * 1000)
    at.step(4)
    front.page_for = lambda _path, _body: None
    at.drain()

    assert at.contents() == [b"weights" * 1000]
    # 409 is a "not now" from any sender, and the hub's own 409 means that the bytes are missing.
    assert len([each for each in hub.requests if each.method == "PUT"]) == 1


@pytest.mark.parametrize("body", [PAGE, b""])
def test_a_load_balancer_before_the_storage_buries_no_checkpoint(body: bytes) -> None:
    with Peer(lambda connection, _request: connection.sendall(page(413, body))) as balancer:
        storage = Storage(PlatformSettings(name="platform", url=balancer.url))
        refused = storage.put(f"{balancer.url}/bucket/object?sig=1", Bytes(b"x" * 100), quiet())  # type: ignore[arg-type]
        storage.close()

    assert isinstance(refused, RetryLater)
    assert FOREIGN in refused.reason
    assert "sig" not in refused.reason


def test_a_kept_connection_to_the_wrong_host_is_not_used_again(
    staged: tuple[Outbox, Worker], gateway: Gateway, peer: Peer, clock: FakeClock
) -> None:
    """The name of the hub pointed elsewhere for a while: a connection that stays open would go on reaching that host."""
    (outbox, worker), gateway.data = staged, page(404)
    log(outbox, new_run(outbox), 0)
    for _ in range(3):
        clock.advance(400)
        step(worker)

    assert peer.connections == len(peer.requests)


def test_check_explains_a_page_instead_of_asking_for_patience(migrated_home: Path) -> None:
    with Peer(lambda connection, _request: connection.sendall(page(403))) as peer:
        checked = hubqueue(environ_of(migrated_home, peer.url), "check")

    text = " ".join((checked.stdout + checked.stderr).split())
    assert "403 Forbidden with an HTML page, not like a hub" in text
    assert "log in to the network, or check destinations.hub.url" in text
    assert "hubqueue login" not in text
