"""The HUB transport against raw sockets: what counts as a response, its limits, and that it reveals no secret."""

from __future__ import annotations

import email
import email.policy
import gzip
import io
import json
import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest
import requests
import urllib3
from peer import GOOD, Peer, answer
from stage import PATIENCE

from hubqueue.destinations.base import Attempt
from hubqueue.destinations.hub.settings import HubSettings
from hubqueue.destinations.hub.transport import HubTransport
from hubqueue.destinations.wire.outcomes import outcome_of_error
from hubqueue.domain.entry import Entry, Kind, Snapshot
from hubqueue.domain.lane import Batch, RunRef
from hubqueue.domain.outcome import Aborted, Blocked, Delivered, Outcome, Rejected, Remote, RetryLater, Scope

KEY = "5ec4e7" * 7
MODEL = "abcdefghij0123456789"


def transport(
    url: str, *, keys: tuple[str, ...] = (KEY,), body: bytes = b"", **settings: object
) -> HubTransport:
    quick = {"answer_timeout": timedelta(seconds=10), "connect_timeout": timedelta(seconds=5)}
    chosen = HubSettings(name="hub", url=url, **{**quick, **settings})  # type: ignore[arg-type]

    def open_body(_snapshot: Snapshot) -> BinaryIO:
        return io.BytesIO(body)

    return HubTransport(chosen, lambda: keys, open_body)


def batch(
    kind: Kind = Kind.METRICS,
    *,
    payload: str = '{"loss": 1.0}',
    snapshot: Snapshot | None = None,
    final: bool = False,
) -> Batch:
    entry = Entry(1, "0", payload, len(payload), _NOW, snapshot, final, 1)
    entries = () if kind is Kind.HEARTBEAT else (entry,)
    return Batch(RunRef("run", "hub", "m.pt", MODEL), kind, entries, "11111111-2222-3333-4444-555555555555")


def ckpt(body: bytes, *, final: bool = False) -> Batch:
    payload = json.dumps({"epoch": 7, "is_best": True, "map": 0.51, "final": final})
    return batch(Kind.CKPT, payload=payload, snapshot=Snapshot("x.ckpt", len(body), 0), final=final)


class Recorder:
    """An attempt that records the reports of the transport."""

    def __init__(self) -> None:
        self.starts, self.sent = 0, [0]
        self.stop = threading.Event()
        self.attempt = Attempt(self._start, self.sent.append, self.stop)

    def _start(self) -> None:
        self.starts += 1


def send(url: str, what: Batch | None = None, **options: object) -> Outcome:
    return transport(url, **options).send(what or batch(), Recorder().attempt)  # type: ignore[arg-type]


def sends(data: bytes, *, close: bool = False) -> Callable[[socket.socket, bytes], None]:
    def act(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(data)
        if close:
            raise OSError

    return act


# What counts.


def test_a_good_response_is_a_delivery() -> None:
    with Peer(sends(answer())) as peer:
        assert send(peer.url) == Delivered()


def test_no_cut_of_a_good_response_is_a_delivery() -> None:
    whole = answer(headers="X-One: 1\r\nX-Two: 2\r\n")

    for cut in range(len(whole)):
        with Peer(sends(whole[:cut], close=True)) as peer:
            outcome = send(peer.url)
            assert isinstance(outcome, RetryLater), (cut, outcome)


def test_no_cut_of_a_response_without_a_length_is_a_delivery() -> None:
    whole = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + GOOD
    for cut in range(len(whole) - 1):
        with Peer(sends(whole[:cut], close=True)) as peer:
            assert isinstance(send(peer.url), RetryLater), cut


def test_no_cut_of_a_chunked_response_is_a_delivery() -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    with Peer(sends(whole)) as peer:
        assert send(peer.url) == Delivered()
    for cut in range(len(whole)):
        with Peer(sends(whole[:cut], close=True)) as peer:
            outcome = send(peer.url)
            assert isinstance(outcome, RetryLater), (cut, outcome)


def test_no_cut_of_a_refusal_is_a_refusal() -> None:
    """A truncated 404 proves nothing: it must not hold the run."""
    whole = answer(b"", status="404 Not Found", headers="X-One: 1\r\n")
    for cut in range(len(whole)):
        with Peer(sends(whole[:cut], close=True)) as peer:
            outcome = send(peer.url)
            assert isinstance(outcome, RetryLater), (cut, outcome)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"ok"',
        b"true",
        b"{}",
        b'{"success": false}',
        b'{"success": "true"}',
        b'{"success": 1}',
        b'{"success": null, "data": {}}',
        b'{"success": true',
        b"<html>Please log in</html>",
        b"[" * 60_000,
        gzip.compress(GOOD, mtime=0),
        b"\xff\xfe" + GOOD,
    ],
    ids=repr,
)
def test_a_response_of_another_shape_is_no_delivery(body: bytes) -> None:
    with Peer(sends(answer(body))) as peer:
        assert isinstance(send(peer.url), RetryLater)


def test_a_compressed_response_is_no_delivery() -> None:
    with Peer(sends(answer(gzip.compress(GOOD, mtime=0), headers="Content-Encoding: gzip\r\n"))) as peer:
        assert isinstance(send(peer.url), RetryLater)


def test_a_long_response_is_aborted() -> None:
    with Peer(sends(answer(b'{"success": true, "x": "' + b"x" * 100_000 + b'"}'))) as peer:
        outcome = send(peer.url)

    assert isinstance(outcome, RetryLater)
    assert "64 KiB" in outcome.reason


def test_bytes_after_a_response_are_not_the_next_response() -> None:
    """Bytes after a response must not become the response to the next request on the same connection."""
    forged = answer()

    def act(connection: socket.socket, request: bytes) -> None:
        connection.sendall(
            answer(b'{"success": false}') + forged if b'"0"' in request else answer(b'{"success": false}')
        )

    with Peer(act) as peer:
        hub = transport(peer.url)
        outcomes = [hub.send(batch(), Recorder().attempt) for _ in range(3)]

    assert not any(isinstance(outcome, Delivered) for outcome in outcomes)


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"]
)
def test_a_redirect_is_not_followed(status: str) -> None:
    with (
        Peer(sends(answer())) as other,
        Peer(sends(answer(status=status, headers=f"Location: {other.url}/x\r\n"))) as peer,
    ):
        outcome = send(peer.url)

    assert isinstance(outcome, RetryLater)
    assert "not followed" in outcome.reason
    assert other.connections == 0


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("400 Bad Request", Rejected),
        ("413 Too Large", Rejected),
        ("422 Unprocessable", Rejected),
        ("418 Teapot", Rejected),
        ("401 Unauthorized", Blocked),
        ("403 Forbidden", Blocked),
        ("404 Not Found", Blocked),
        ("410 Gone", Blocked),
        ("408 Timeout", RetryLater),
        ("409 Conflict", RetryLater),
        ("425 Too Early", RetryLater),
        ("429 Too Many", RetryLater),
        ("500 Error", RetryLater),
        ("502 Bad Gateway", RetryLater),
        ("503 Unavailable", RetryLater),
        ("599 Odd", RetryLater),
    ],
)
def test_each_status_has_its_outcome(status: str, expected: type[Outcome]) -> None:
    with Peer(sends(answer(b'{"message": "because"}', status=status))) as peer:
        outcome = send(peer.url)

    assert isinstance(outcome, expected)
    assert "because" in outcome.reason  # type: ignore[union-attr]
    assert status[:3] in outcome.reason  # type: ignore[union-attr]


def test_the_scopes_of_holds() -> None:
    with Peer(sends(answer(b"{}", status="404 Not Found"))) as peer:
        metrics, registration = send(peer.url), send(peer.url, batch(Kind.REGISTRATION, payload="{}"))
    with Peer(sends(answer(b"{}", status="403 Forbidden"))) as peer:
        forbidden = send(peer.url)

    assert [each.scope for each in (metrics, registration, forbidden)] == [
        Scope.RUN,
        Scope.DESTINATION,
        Scope.DESTINATION,
    ]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ("Retry-After: 7\r\n", 7),
        ("Retry-After: {date}\r\n", 40),
        ("X-RateLimit-Reset: {unix}\r\n", 40),
        ("X-RateLimit-Reset: {iso}\r\n", 40),
        ('RateLimit: "default";r=0;t=9\r\n', 9),
        ("", None),
        ("Retry-After: soon\r\n", None),
    ],
)
def test_a_429_gives_the_wait_and_its_scope(headers: str, seconds: int | None) -> None:
    then = datetime.now(UTC) + timedelta(seconds=40)
    words = headers.format(
        date=f"{then:%a, %d %b %Y %H:%M:%S} GMT", unix=int(then.timestamp()), iso=f"{then:%Y-%m-%dT%H:%M:%SZ}"
    )
    with Peer(sends(answer(b"{}", status="429 Too Many", headers=words))) as peer:
        outcome = send(peer.url)

    assert isinstance(outcome, RetryLater)
    assert outcome.scope is Scope.DESTINATION
    if seconds is None:
        assert outcome.after is None
    else:
        assert outcome.after is not None
        assert seconds - 25 <= outcome.after.total_seconds() <= seconds


# The requests.


def test_the_requests_are_the_hubs_own() -> None:
    body = os.urandom(3_000_000)
    with Peer(sends(answer())) as peer:
        hub = transport(peer.url, body=body)
        assert hub.send(batch(Kind.REGISTRATION, payload='{"meta": {}}'), Recorder().attempt) == Delivered(
            Remote(id=MODEL, url=f"https://hub.ultralytics.com/models/{MODEL}")
        )
        assert hub.send(batch(), Recorder().attempt) == Delivered()
        assert hub.send(ckpt(body), Recorder().attempt) == Delivered()
        assert hub.send(ckpt(body, final=True), Recorder().attempt) == Delivered()
        assert hub.send(batch(Kind.HEARTBEAT), Recorder().attempt) == Delivered(
            Remote(remember={"agent_id": "agent-1"})
        )
        assert hub.check() == Delivered()
        assert hub.read_model(MODEL)[1] == {"id": MODEL, "agentId": "agent-1"}
        hub.close()

    lines = [request.split(b"\r\n", 1)[0].decode() for request in peer.requests]
    assert lines == [
        "POST /v1/models HTTP/1.1",
        f"POST /v1/models/{MODEL} HTTP/1.1",
        f"POST /v1/models/{MODEL}/upload HTTP/1.1",
        f"POST /v1/models/{MODEL}/upload HTTP/1.1",
        f"POST /v1/agent/heartbeat/models/{MODEL} HTTP/1.1",
        "POST /v1/auth HTTP/1.1",
        f"GET /v1/models/{MODEL} HTTP/1.1",
    ]
    assert peer.connections == 1
    metrics = json.loads(peer.requests[1].split(b"\r\n\r\n", 1)[1])
    assert metrics == {"metrics": {"0": '{"loss": 1.0}'}, "type": "metrics"}
    assert _form(peer.requests[2]) == [
        ("epoch", b"7"),
        ("type", b"epoch"),
        ("isBest", b"True"),
        ("last.pt", body),
    ]
    assert _form(peer.requests[3]) == [
        ("epoch", b"7"),
        ("type", b"final"),
        ("map", b"0.51"),
        ("best.pt", body),
    ]
    heads = [
        email.message_from_bytes(request.split(b"\r\n", 1)[1].split(b"\r\n\r\n")[0])
        for request in peer.requests
    ]
    assert {head["x-api-key"] for head in heads} == {KEY}
    assert {head["Accept-Encoding"] for head in heads} == {"identity"}
    assert [bool(head["Idempotency-Key"]) for head in heads] == [True, True, True, True, False, False, False]
    assert heads[5]["Content-Length"] == "0"
    assert heads[2]["Transfer-Encoding"] is None


def test_a_response_without_an_agent_removes_none() -> None:
    with Peer(sends(answer(b'{"data": {}}'))) as peer:
        assert send(peer.url, batch(Kind.HEARTBEAT)) == Delivered(Remote())


@pytest.mark.parametrize("found", ['"../../x"', '""', "7", "null", '"' + "x" * 65 + '"', '"a b"'])
def test_an_invalid_model_id_is_no_registration(found: str) -> None:
    with Peer(sends(answer(b'{"success": true, "data": {"id": %b}}' % found.encode()))) as peer:
        assert isinstance(send(peer.url, batch(Kind.REGISTRATION, payload="{}")), RetryLater)


def test_the_attempt_receives_the_start_once_and_all_bytes() -> None:
    body = os.urandom(5_000_000)
    recorder = Recorder()
    with Peer(sends(answer())) as peer:
        transport(peer.url, body=body).send(ckpt(body), recorder.attempt)

    assert recorder.starts == 1
    assert recorder.sent == sorted(recorder.sent)
    assert recorder.sent[-1] > len(body)
    assert len(recorder.sent) > 10


def test_an_attempt_whose_start_is_refused_sends_nothing() -> None:
    def refuse() -> None:
        raise LookupError("the lease is lost")

    with Peer(sends(answer())) as peer:
        attempt = Attempt(refuse, lambda _sent: None, threading.Event())
        with pytest.raises(LookupError):
            transport(peer.url).send(batch(), attempt)

    assert peer.requests == []


@pytest.mark.parametrize("length", [999, 1001, 0])
def test_a_body_of_another_length_than_announced_is_aborted(length: int) -> None:
    with Peer(sends(answer())) as peer:
        outcome = send(peer.url, ckpt(b"x" * 1000), body=b"x" * length)

    assert isinstance(outcome, RetryLater)
    assert "snapshot" in outcome.reason


# What it may cost.


def _quick(**more: object) -> dict[str, object]:
    return {"answer_timeout": timedelta(seconds=1), "stall_window": timedelta(seconds=1), **more}


def test_a_silent_peer_is_disconnected() -> None:
    with Peer(lambda _connection, _request: threading.Event().wait(30) and None) as peer:  # type: ignore[func-returns-value]
        outcome = send(peer.url, **_quick())

    assert isinstance(outcome, RetryLater)
    assert "response" in outcome.reason


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_dripped_response_is_aborted(where: str) -> None:
    whole = answer(b" " * 400 + GOOD)
    start = 0 if where == "head" else whole.index(b"\r\n\r\n") + 4

    def drip(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(whole[:start])
        for index in range(start, len(whole)):
            connection.sendall(whole[index : index + 1])
            peer.done.wait(0.2)

    with Peer(drip) as peer:
        outcome = send(peer.url, **_quick())

    assert isinstance(outcome, RetryLater)
    assert "no complete response" in outcome.reason


def test_a_peer_that_does_not_read_is_disconnected() -> None:
    body = b"x" * 30_000_000

    def act(_connection: socket.socket, _request: bytes) -> None:
        peer.done.wait(60)

    with Peer(act, read_body=False) as peer:
        outcome = send(peer.url, ckpt(body), body=body, **_quick(stall_rate=1_000_000))

    assert isinstance(outcome, RetryLater)
    assert "stalled" in outcome.reason or "too long" in outcome.reason


def test_a_slow_reader_above_the_rate_is_not_disconnected() -> None:
    body = os.urandom(6_000_000)

    def slowly(connection: socket.socket, request: bytes) -> None:
        have = len(request.partition(b"\r\n\r\n")[2])
        length = int(request.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while have < length:
            have += len(connection.recv(200_000))
            peer.done.wait(0.02)
        connection.sendall(answer())

    with Peer(slowly, read_body=False) as peer:
        outcome = send(
            peer.url,
            ckpt(body),
            body=body,
            **_quick(answer_timeout=timedelta(seconds=20), stall_rate=100_000),
        )

    assert outcome == Delivered()


def test_stop_ends_an_upload() -> None:
    body = b"x" * 30_000_000
    recorder = Recorder()
    reached = threading.Event()

    def act(_connection: socket.socket, _request: bytes) -> None:
        reached.set()
        peer.done.wait(60)

    with Peer(act, read_body=False) as peer:
        outcomes: list[Outcome] = []
        hub = transport(peer.url, body=body)
        thread = threading.Thread(target=lambda: outcomes.append(hub.send(ckpt(body), recorder.attempt)))
        thread.start()
        assert reached.wait(PATIENCE)
        recorder.stop.set()
        thread.join(PATIENCE)

    assert outcomes == [Aborted("the worker stops")]


def test_a_reset_and_a_refusal_have_readable_reasons() -> None:
    def reset(connection: socket.socket, _request: bytes) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise OSError

    with Peer(reset) as peer:
        url = peer.url
        broken = send(url)
    refused = send(url)

    assert isinstance(broken, RetryLater)
    assert isinstance(refused, RetryLater)
    assert "refused" in refused.reason
    assert "127.0.0.1" in refused.reason


def test_an_unknown_host_is_retried_without_a_hold() -> None:
    outcome = send("http://no-such-host.invalid")

    assert isinstance(outcome, RetryLater)
    assert "no-such-host.invalid" in outcome.reason


def test_a_wrong_certificate_holds_the_destination_and_receives_no_key(tmp_path: Path) -> None:
    made = subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-keyout",
            str(tmp_path / "key.pem"),
            "-out",
            str(tmp_path / "cert.pem"),
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("there is no openssl command here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    listener = socket.create_server(("127.0.0.1", 0))
    received: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                received.append(secure.recv(65536))
        except OSError:
            return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    outcome = send(f"https://127.0.0.1:{listener.getsockname()[1]}")
    thread.join(PATIENCE)
    listener.close()

    assert isinstance(outcome, Blocked)
    assert outcome.scope is Scope.DESTINATION
    assert "certificate" in outcome.reason
    assert KEY.encode() not in b"".join(received)


# What it gives away.


def test_the_environment_redirects_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Peer(sends(answer())) as proxy, Peer(sends(answer())) as peer:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        assert send(peer.url) == Delivered()

    assert proxy.connections == 0
    assert b"authorization" not in peer.requests[0].lower()


def test_a_cookie_is_not_kept() -> None:
    with Peer(sends(answer(headers="Set-Cookie: tracked=1; Path=/\r\n"))) as peer:
        hub = transport(peer.url)
        hub.send(batch(), Recorder().attempt)
        hub.send(batch(), Recorder().attempt)

    assert b"cookie" not in peer.requests[1].lower()


def test_a_server_that_echoes_the_key_finds_it_nowhere() -> None:
    def echo(connection: socket.socket, request: bytes) -> None:
        connection.sendall(
            answer(json.dumps({"message": request.decode()}).encode(), status="400 Bad Request")
        )

    with Peer(echo) as peer:
        outcome = send(peer.url)

    assert isinstance(outcome, Rejected)
    assert KEY not in outcome.reason


def test_a_redirect_to_a_host_named_like_the_key_shows_no_part_of_it() -> None:
    key = "Zk7rq4m9x2Zk7rq4m9x2/Q4m9x2Zk7rq4m9x2"
    with Peer(sends(answer(status="302 Found", headers=f"Location: http://{key}.invalid/\r\n"))) as peer:
        outcome = send(peer.url, keys=(key,))

    assert isinstance(outcome, RetryLater)
    assert key[:8].lower() not in outcome.reason.lower()


@pytest.mark.parametrize("offset", range(0, 120, 7))
def test_a_cut_text_contains_no_part_of_a_key(offset: int) -> None:
    """A reason shows the beginning of an unexpected response; a key in it is masked before the cut."""
    with Peer(sends(answer(b"x" * offset + KEY.encode() * 2 + b" and more"))) as peer:
        outcome = send(peer.url)

    assert isinstance(outcome, RetryLater)
    assert KEY[:8] not in outcome.reason


@pytest.mark.parametrize(
    "spelled", [KEY, f"a-{KEY.upper()}", "NWVjNGU3" * 6 + "NWVjNGU3"], ids=["plain", "upper", "base64"]
)
def test_a_hub_cannot_make_us_keep_the_key_as_an_id(spelled: str) -> None:
    body = json.dumps({"success": True, "data": {"id": spelled, "agentId": spelled}}).encode()
    with Peer(sends(answer(body))) as peer:
        registered, beaten = (send(peer.url, batch(kind)) for kind in (Kind.REGISTRATION, Kind.HEARTBEAT))

    assert isinstance(registered, RetryLater)
    assert beaten == Delivered(Remote())
    assert KEY not in registered.reason


@pytest.mark.parametrize("keys", [(), ("with blank",), ("ключ",), ("new\nline",)])
def test_an_invalid_key_is_not_sent(keys: tuple[str, ...]) -> None:
    with Peer(sends(answer())) as peer:
        outcome = send(peer.url, keys=keys)

    assert isinstance(outcome, Blocked)
    assert peer.requests == []
    assert not any(key in outcome.reason for key in keys)


def test_after_a_refused_key_the_next_one_is_tried() -> None:
    def act(connection: socket.socket, request: bytes) -> None:
        good = b"x-api-key: right-key" in request.lower()
        connection.sendall(answer() if good else answer(b"{}", status="401 Unauthorized"))

    with Peer(act) as peer:
        hub = transport(peer.url, keys=("wrong-key", "right-key"))
        first, second = (hub.send(batch(), Recorder().attempt) for _ in range(2))
        alone = send(peer.url, keys=("wrong-key",))

    assert isinstance(first, RetryLater)
    assert second == Delivered()
    assert isinstance(alone, Blocked)


def test_every_error_of_the_http_client_has_an_outcome() -> None:
    def subclasses(kind: type[BaseException]) -> set[type[BaseException]]:
        return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))

    found = (
        subclasses(requests.RequestException) | subclasses(urllib3.exceptions.HTTPError) | subclasses(OSError)
    )
    assert len(found) > 40

    for kind in found:
        if kind.__module__.split(".")[0] not in {"requests", "urllib3", "builtins", "socket", "ssl", "http"}:
            continue
        error = kind.__new__(kind)
        error.args = ("something with ?api_key=" + KEY,)
        outcome = outcome_of_error(error, host="hub.example", secrets=(KEY,))
        assert isinstance(outcome, RetryLater | Blocked), kind
        assert "hub.example" in outcome.reason
        assert KEY not in outcome.reason


def _form(request: bytes) -> list[tuple[str, bytes]]:
    """The parts of a multipart request, by the parser of the standard library."""
    head, _, body = request.partition(b"\r\n\r\n")
    kind = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-type"))
    message = email.message_from_bytes(kind + b"\r\n\r\n" + body, policy=email.policy.HTTP)
    return [
        (part.get_param("name", header="content-disposition"), part.get_payload(decode=True))
        for part in message.iter_parts()
    ]  # type: ignore[attr-defined,misc]


_NOW = 1_767_225_600_000_000
