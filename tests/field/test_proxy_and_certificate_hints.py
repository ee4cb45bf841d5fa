"""A proxy or a certificate that every other program finds in the environment: the reason names the variable and the setting."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from peer import Peer, answer
from stage import PATIENCE, environ_of, hubqueue, python, start_worker, wait_until
from torture import tls

from hubqueue.destinations.base import quiet
from hubqueue.destinations.hub.settings import HubSettings
from hubqueue.destinations.hub.transport import HubTransport
from hubqueue.destinations.wire.body import Bytes
from hubqueue.destinations.wire.endpoint import Endpoint
from hubqueue.destinations.wire.exchange import Wire
from hubqueue.destinations.wire.message import Request
from hubqueue.domain.outcome import UNREAD

PROXY = "http://somebody:secret-of-the-proxy@proxy.example:3128"
NAMES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
PAGE = b"<html><title>Access denied</title></html>"


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def reason(url: str, **more: object) -> str:
    sender = Wire(Endpoint(url, name="hub", **more))  # type: ignore[arg-type]
    outcome = sender.exchange(Request("POST", "/x", {}, Bytes(b"{}")), quiet())
    sender.close()
    return outcome.reason  # type: ignore[union-attr]


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", PROXIES)
def test_no_connection_names_the_proxy_that_is_not_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, PROXY)

    found = reason(closed_port())

    assert found == f"127.0.0.1: connection refused; {name} {UNREAD}: set destinations.hub.proxy"


def test_an_unknown_name_and_a_page_of_a_gateway_name_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    with Peer(lambda connection, _request: connection.sendall(answer(PAGE, status="403 No"))) as peer:
        hub = HubTransport(
            HubSettings(name="lab", url=peer.url), lambda: ("key-of-the-tests",), lambda _snapshot: None
        )  # type: ignore[arg-type,return-value]
        refused = hub.check()
        hub.close()

    assert "HTTPS_PROXY is set, but not read: set destinations.hub.proxy" in reason(
        "http://no-such-host.invalid"
    )
    assert "HTTPS_PROXY is set, but not read: set destinations.lab.proxy" in refused.reason  # type: ignore[union-attr]


@pytest.mark.parametrize("exceptions", ["127.0.0.1", "*", "example.org,127.0.0.1", " 127.0.0.1 "])
def test_a_host_that_needs_no_proxy_gets_no_hint(exceptions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", exceptions)

    assert UNREAD not in reason(closed_port())


def test_nothing_is_named_where_the_setting_is_set_or_the_hub_responds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    with Peer(lambda connection, _request: connection.sendall(answer(status="503 Down"))) as peer:
        hub = Wire(Endpoint(peer.url, name="hub"))
        response = hub.exchange(Request("POST", "/x", {}, Bytes(b"{}")), quiet())
        down = hub.judge(response)  # type: ignore[arg-type]
        hub.close()

    assert UNREAD not in down.reason  # type: ignore[union-attr]
    assert UNREAD not in reason("http://hub.invalid", proxy=closed_port())


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_certificate_names_the_bundle_that_is_not_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = tls._Authority("ours")
    trusted = authority.write(tmp_path / "trusted.pem")
    monkeypatch.setenv(name, str(trusted))
    context = tls._context(tmp_path, *authority.sign("localhost"))
    with tls._server(context, lambda secure: secure.sendall(answer())) as (port, _received):
        found = reason(f"https://localhost:{port}")

    assert "certificate refused" in found
    assert found.endswith(f"; {name} is set, but not read: set destinations.hub.ca_bundle")


def test_a_proxy_that_refuses_is_named_with_its_status() -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with Peer(lambda connection, _request: connection.sendall(refusal)) as proxy:
        found = reason("https://hub.example", proxy=proxy.url)

    assert found == (
        "hub.example: the connection through the proxy failed (407 Proxy Authentication Required)"
    )


def test_status_and_check_name_the_variable_and_never_its_value(migrated_home: Path) -> None:
    environ = environ_of(migrated_home, closed_port(), HTTPS_PROXY=PROXY, NO_PROXY="")
    script = (
        "import hubqueue\n"
        "run = hubqueue.start_run('yolov8n.pt', worker='none')\n"
        "run.log_metrics({'loss': 1.0}, epoch=0)\n"
        "run.finish(timeout=0)\n"
    )
    python(script, environ).communicate(timeout=PATIENCE)
    worker = start_worker(environ)
    try:
        wait_until(lambda: "HTTPS_PROXY is set" in hubqueue(environ, "status").stdout)
        checked = hubqueue(environ, "check")
        shown = hubqueue(environ, "status", "--json")
    finally:
        worker.terminate()
        _, log = worker.communicate(timeout=PATIENCE)

    text = checked.stdout + checked.stderr
    assert "hubqueue does not read HTTPS_PROXY: set destinations.hub.proxy" in text.replace("\n", " ")
    assert "hubqueue login" not in text
    assert "HTTPS_PROXY" in log
    assert "secret-of-the-proxy" not in text + shown.stdout + log
