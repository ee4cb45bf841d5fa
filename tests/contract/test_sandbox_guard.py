"""The sandbox and pages of other sites: requests under another name, from another site, and endless headers."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from hubqueue.sandbox import Sandbox, server
from hubqueue.sandbox.connection import Connection

PATIENCE = 20.0


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(keys=("good-key",)) as sandbox:
        yield sandbox


def ask(
    sandbox: Sandbox, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=PATIENCE)) as client:
        client.request(method, path, body, named)
        response = client.getresponse()
        return response.status, response.read()


def create(sandbox: Sandbox, **headers: str) -> int:
    body = json.dumps({"meta": {"name": "x"}}).encode()
    content = {"Content_Type": "application/json", "x_api_key": "good-key"}
    return ask(sandbox, "POST", "/v1/models", body, **content, **headers)[0]


@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1", "[", ""]
)
def test_a_name_of_another_machine_is_refused(sandbox: Sandbox, name: str) -> None:
    for path in ("/", "/api", "/api/runs/x", "/api/models", "/v1/models/x"):
        assert ask(sandbox, "GET", path, Host=f"{name}:{sandbox.port}")[0] == 421
    assert create(sandbox, Host=name) == 421
    assert sandbox.models == []


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_every_name_of_the_loopback_is_served(sandbox: Sandbox, name: str) -> None:
    assert ask(sandbox, "GET", "/", Host=f"{name}:{sandbox.port}")[0] == 200
    assert create(sandbox, Host=name) == 200


def test_a_sandbox_at_another_address_accepts_any_name() -> None:
    with Sandbox(host="0.0.0.0") as open_one:
        assert ask(open_one, "GET", "/api/models", Host="gpu-box:8765")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_pages_of_other_sites_change_and_read_nothing(sandbox: Sandbox, headers: dict[str, str]) -> None:
    assert create(sandbox, **headers) == 403
    assert ask(sandbox, "POST", "/api/runs/x/cancel", **headers)[0] == 403
    for path in ("/api", "/api/runs", "/api/runs/x", "/api/requests"):
        assert ask(sandbox, "GET", path, **headers)[0] == 403
    assert ask(sandbox, "GET", "/", **headers)[0] == 200  # a link to the page is harmless
    assert sandbox.models == []


def test_its_own_page_can_cancel(sandbox: Sandbox) -> None:
    origin = {"Origin": f"http://127.0.0.1:{sandbox.port}", "Sec_Fetch_Site": "same-origin"}

    assert ask(sandbox, "POST", "/api/runs/none/cancel", **origin)[0] == 404  # looked up, not refused


def test_the_page_cannot_be_framed(sandbox: Sandbox) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=PATIENCE)) as client:
        client.request("GET", "/")
        policy = client.getresponse().headers["Content-Security-Policy"]

    assert "frame-ancestors 'none'" in policy and "default-src 'none'" in policy


def test_the_page_runs_its_own_script_only_and_loads_nothing(sandbox: Sandbox) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=PATIENCE)) as client:
        client.request("GET", "/")
        response = client.getresponse()
        rules = dict(
            each.split(maxsplit=1) for each in response.headers["Content-Security-Policy"].split("; ")
        )
        content = response.read().decode()
    (script,) = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)

    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{own}'" and rules["style-src"].startswith("'sha256-")
    assert rules["connect-src"] == "'self'" and rules["require-trusted-types-for"] == "'script'"
    assert set(re.findall(r"https?://[\w.]+", content)) == {
        "http://www.w3.org"
    }  # the namespace of SVG, not an address
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", content)


def test_a_head_request_gets_no_body_and_browsers_get_their_icon(sandbox: Sandbox) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=PATIENCE)) as client:
        for path in ("/", "/api", "/api/models"):
            client.request("GET", path)
            whole = client.getresponse()
            size = len(whole.read())
            client.request("HEAD", path)
            head = client.getresponse()
            assert (head.status, head.headers["Content-Length"], head.read()) == (200, str(size), b"")
        client.request("GET", "/favicon.ico")  # on the same connection: nothing was left of a body
        assert client.getresponse().status == 204

    assert ask(sandbox, "HEAD", "/v1/models/x")[0] in (404, 405)
    assert all(each.path != "/favicon.ico" for each in sandbox.requests)


def test_an_endless_head_is_refused(sandbox: Sandbox) -> None:
    assert ask(sandbox, "GET", "/", **{f"x_{n}": "y" * 1000 for n in range(40)})[0] == 431
    assert ask(sandbox, "GET", "/", **{f"x_{n}": "y" for n in range(200)})[0] == 431


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/models/x/upload", 401), ("/nothing", 404), ("/api/runs/x/cancel", 413)]
)
def test_a_large_body_is_not_taken_without_a_key(sandbox: Sandbox, path: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=PATIENCE) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 40}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())

        received = client.recv(65536)  # immediately, although nothing of the body was sent

    assert received.startswith(f"HTTP/1.1 {status} ".encode())


def test_a_silent_connection_is_closed(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "timeout", 0.2)
    for start in (
        b"",
        b"GET / HT",
        b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", sandbox.port), timeout=PATIENCE) as client:
            client.sendall(start)
            while client.recv(4096):
                pass


def test_connections_have_a_limit(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MOST_CONNECTIONS", 3)
    with ExitStack() as opened:
        for _ in range(3):
            client = opened.enter_context(
                socket.create_connection(("127.0.0.1", sandbox.port), timeout=PATIENCE)
            )
            client.sendall(b"GET /api/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", sandbox.port), timeout=PATIENCE) as one_more:
            assert one_more.recv(1) == b""
