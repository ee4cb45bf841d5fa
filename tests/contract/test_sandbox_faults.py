"""The sandbox on raw sockets: the bytes that a client sees of each fault, and what is stored."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from hubqueue.domain.errors import ConfigError
from hubqueue.sandbox import Sandbox

PATIENCE = 120.0


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(keys=("good-key",)) as sandbox:
        yield sandbox


@pytest.fixture
def model_id(sandbox: Sandbox) -> str:
    return created(sandbox)


# --- a raw client


def request(method: str, path: str, body: bytes = b"", *, key: str = "good-key", **headers: str) -> bytes:
    head = {
        "Host": "localhost",
        "x-api-key": key,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    head |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def metrics(model_id: str, *epochs: int, **headers: str) -> bytes:
    texts = {str(epoch): json.dumps({"train/box_loss": epoch / 2}) for epoch in epochs}
    body = json.dumps({"metrics": texts, "type": "metrics"}).encode()
    return request("POST", f"/v1/models/{model_id}", body, **headers)


def checkpoint(model_id: str, content: bytes, *, epoch: int = 3, **headers: str) -> bytes:
    fields = {"epoch": str(epoch), "type": "epoch", "isBest": "True"}
    parts = [f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items()]
    disposition = 'Content-Disposition: form-data; name="last.pt"; filename="last.pt"'
    body = "".join(parts).encode() + f"--b\r\n{disposition}\r\n\r\n".encode() + content + b"\r\n--b--\r\n"
    form = {"Content_Type": "multipart/form-data; boundary=b"} | headers
    return request("POST", f"/v1/models/{model_id}/upload", body, **form)


def beat(model_id: str) -> bytes:
    body = b'{"agent": "python-3.11.7-local", "agentId": null}'
    return request("POST", f"/v1/agent/heartbeat/models/{model_id}", body)


def connected(sandbox: Sandbox) -> socket.socket:
    return socket.create_connection(("127.0.0.1", sandbox.port), timeout=PATIENCE)


def exchange(sandbox: Sandbox, *requests: bytes) -> bytes:
    """All bytes that the hub sends to these requests on one connection, until it closes it."""
    with connected(sandbox) as client:
        client.sendall(
            b"".join(requests[:-1]) + requests[-1].replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        )
        received = b""
        while block := client.recv(65536):
            received += block
    return received


def parts(received: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body of one complete response."""
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert len(body) == int(headers.get("content-length", 0))
    return int(first.split()[1]), headers, body


def status(sandbox: Sandbox, sent: bytes) -> int:
    return parts(exchange(sandbox, sent))[0]


def created(sandbox: Sandbox) -> str:
    body = b'{"meta": {"name": "yolov8n.pt"}}'
    return str(json.loads(parts(exchange(sandbox, request("POST", "/v1/models", body)))[2])["data"]["id"])


# --- faults


@pytest.mark.parametrize("code", [400, 401, 403, 404, 408, 413, 429, 500, 502, 503])
def test_a_status_is_sent_and_nothing_is_stored(sandbox: Sandbox, model_id: str, code: int) -> None:
    sandbox.fail(f"metrics:{code}")

    got, _, body = parts(exchange(sandbox, metrics(model_id, 0)))

    assert (got, json.loads(body)["success"]) == (code, False)
    assert sandbox.metrics(model_id) == {}
    assert sandbox.requests[-1].fault == f"metrics:{code}"


def test_a_healed_sandbox_behaves(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("503")
    assert status(sandbox, metrics(model_id, 0)) == 503

    sandbox.heal()

    assert status(sandbox, metrics(model_id, 0)) == 200


def test_a_wait_can_be_requested_in_every_form(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:429:times=1:retry-after=5:reset=unix+60:ratelimit=limit=10, remaining=0, reset=5")
    sandbox.fail("metrics:429:retry-after=http-date+60:reset=iso+60")

    _, first, _ = parts(exchange(sandbox, metrics(model_id, 0)))
    _, second, _ = parts(exchange(sandbox, metrics(model_id, 0)))

    now = datetime.now(UTC)
    assert (first["retry-after"], first["ratelimit"]) == ("5", "limit=10, remaining=0, reset=5")
    for moment in (
        datetime.fromtimestamp(int(first["x-ratelimit-reset"]), UTC),
        parsedate_to_datetime(second["retry-after"]),
        datetime.fromisoformat(second["x-ratelimit-reset"]),
    ):
        assert 0 < (moment - now).total_seconds() <= 60


def test_a_cut_head_never_ends_its_headers(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:cut-head")

    received = [exchange(sandbox, metrics(model_id, 0)) for _ in range(60)]

    assert all(each.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\n\r\n" not in each for each in received)
    assert len({len(each) for each in received}) > 1
    assert sandbox.metrics(model_id) == {}


def test_a_cut_body_is_shorter_than_announced(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("ckpt:cut-body")

    received = exchange(sandbox, checkpoint(model_id, b"weights"))

    head, _, body = received.partition(b"\r\n\r\n")
    announced = int(re.search(rb"Content-Length: (\d+)", head).group(1))  # type: ignore[union-attr]
    assert len(body) < announced
    assert sandbox.checkpoints(model_id) == []


def test_a_reset_is_a_reset(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:reset")

    with pytest.raises(ConnectionResetError):
        exchange(sandbox, metrics(model_id, 0))

    assert sandbox.metrics(model_id) == {}


def test_a_close_sends_no_byte(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("ckpt:close")

    assert exchange(sandbox, checkpoint(model_id, bytes(3 << 20))) == b""


def test_a_silence_ends_with_a_close_after_its_seconds(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("any:silence:seconds=0.2")

    started = time.monotonic()
    received = exchange(sandbox, beat(model_id))

    assert received == b"" and time.monotonic() - started >= 0.2


@pytest.mark.parametrize("rule", ["silence", "drip:seconds=600", "slow-read:seconds=600"])
def test_a_long_fault_ends_when_the_sandbox_stops(sandbox: Sandbox, model_id: str, rule: str) -> None:
    sandbox.fail(f"metrics:{rule}")
    with connected(sandbox) as client:
        client.sendall(metrics(model_id, 0))
        assert sandbox.wait_until(lambda: sandbox.requests[-1].kind == "metrics")

        handlers = [each for each in threading.enumerate() if "process_request" in each.name]
        sandbox.stop()

        received = b""
        while block := client.recv(65536):
            received += block
        assert len(received) <= 1
        for handler in handlers:
            handler.join(PATIENCE)
        assert handlers and not any(handler.is_alive() for handler in handlers)


def test_an_idle_connection_ends_when_the_sandbox_stops(sandbox: Sandbox, model_id: str) -> None:
    with connected(sandbox) as client:
        client.sendall(metrics(model_id, 0))
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")

        sandbox.stop()

        assert client.recv(65536) == b""


def test_a_false_page_is_html_with_a_good_status(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:html")

    got, headers, body = parts(exchange(sandbox, metrics(model_id, 0)))

    assert (got, headers["content-type"]) == (200, "text/html; charset=utf-8") and b"<h1>" in body
    assert sandbox.metrics(model_id) == {}


def test_an_empty_response_and_a_null_one_have_a_good_status(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("heartbeat:empty:times=1")
    sandbox.fail("heartbeat:null")

    empty, null = (parts(exchange(sandbox, beat(model_id))) for _ in range(2))

    assert (empty[0], empty[2]) == (200, b"")
    assert (null[0], json.loads(null[2])["data"]) == (200, None)


def test_a_redirect_points_elsewhere(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:redirect:times=1:to=http://127.0.0.1:9/elsewhere?a=b")
    sandbox.fail("metrics:307")

    first, second = (parts(exchange(sandbox, metrics(model_id, 0))) for _ in range(2))

    assert (first[0], first[1]["location"]) == (302, "http://127.0.0.1:9/elsewhere?a=b")
    assert (second[0], second[1]["location"]) == (307, "/")


def test_a_lost_acknowledgement_was_carried_out(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:lost-ack")

    assert status(sandbox, metrics(model_id, 4)) == 500
    assert list(sandbox.metrics(model_id)) == [4]


def test_any_fault_can_carry_the_request_out(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:close:store=yes")

    assert exchange(sandbox, metrics(model_id, 4)) == b""
    assert list(sandbox.metrics(model_id)) == [4]


def test_a_compressed_response_is_gzip(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("heartbeat:gzip")

    _, headers, body = parts(exchange(sandbox, beat(model_id)))

    assert headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(body))["data"]["agentId"] == "agent-1"


def test_a_dripped_response_arrives_whole(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("heartbeat:drip:seconds=0.001")

    with connected(sandbox) as client:
        client.sendall(beat(model_id))
        first = client.recv(65536)

    assert len(first) < 20
    assert parts(exchange(sandbox, beat(model_id)))[0] == 200


def test_a_slow_reader_takes_everything(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("ckpt:slow-read:seconds=0.001")
    content = os.urandom(60_000)

    got = status(sandbox, checkpoint(model_id, content))

    assert got == 200
    assert sandbox.checkpoints(model_id)[0].path.read_bytes() == content


def test_a_bad_epoch_fails_only_the_requests_that_contain_it(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:400:epoch=7")

    got = [status(sandbox, metrics(model_id, *epochs)) for epochs in [(5, 6, 7, 8), (5, 6), (7,), (8,), (7,)]]

    assert got == [400, 200, 400, 200, 400]
    assert list(sandbox.metrics(model_id)) == [5, 6, 8]
    assert sandbox.requests[-1].epochs == (7,)


def test_a_size_limit_refuses_only_what_is_above_it(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("ckpt:413:bytes=100000")

    assert status(sandbox, checkpoint(model_id, bytes(200_000))) == 413
    assert status(sandbox, checkpoint(model_id, bytes(1000))) == 200
    assert [record.size for record in sandbox.checkpoints(model_id)] == [1000]


def test_faults_leave_the_page_for_people_alone(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("any:503")

    assert status(sandbox, request("GET", "/", key="")) == 200
    assert status(sandbox, request("GET", "/api/requests", key="")) == 200


# --- strictness


@pytest.mark.parametrize(
    ("code", "body", "headers"),
    [
        (401, b"{}", {"key": "bad-key"}),
        (401, b"{}", {"key": ""}),
        (401, b"{}", {"Authorization": "Bearer bad-key"}),
        (400, b"not json", {}),
        (400, b"[]", {}),
        (400, b'{"metrics": [], "type": "metrics"}', {}),
        (400, b'{"metrics": {"0": {"a": 1}}, "type": "metrics"}', {}),
        (400, b'{"metrics": {"0": "not json"}, "type": "metrics"}', {}),
        (400, b'{"metrics": {"0": "[1]"}, "type": "metrics"}', {}),
        (400, b'{"metrics": {"one": "{}"}, "type": "metrics"}', {}),
        (400, b'{"metrics": {"0": "{}"}, "type": "other"}', {}),
        (400, b'{"metrics": {"0": NaN}}', {}),
        (400, b'{"metrics": {"0": "{}"}}', {"Content_Type": "text/plain"}),
        (411, b"", {"Content_Length": ""}),
        (411, b"", {"Transfer_Encoding": "chunked", "Content_Length": ""}),
        (411, b"", {"Content_Length": "+5"}),
    ],
)
def test_invalid_metrics_are_refused_and_not_stored(
    sandbox: Sandbox, model_id: str, code: int, body: bytes, headers: dict[str, Any]
) -> None:
    sent = request("POST", f"/v1/models/{model_id}", body, **headers)

    with connected(sandbox) as client:
        client.sendall(sent)
        assert client.recv(65536).startswith(f"HTTP/1.1 {code} ".encode())

    assert sandbox.metrics(model_id) == {}


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/v1/models/nosuchmodel000000000", 404),
        ("POST", "/v1/models/nosuchmodel000000000/upload", 404),
        ("POST", "/v1/agent/heartbeat/models/nosuchmodel000000000", 404),
        ("GET", "/v2/models", 404),
        ("PUT", "/v1/models", 405),
        ("GET", "/weights/../../etc/passwd", 404),
        ("GET", "/api/models/..%2f..", 404),
    ],
)
def test_an_unknown_path_is_not_found(sandbox: Sandbox, method: str, path: str, code: int) -> None:
    assert status(sandbox, request(method, path, b"{}")) == code


@pytest.mark.parametrize(
    "broken",
    [
        lambda sent: sent.replace(b'name="type"\r\n\r\nepoch', b'name="type"\r\n\r\nother'),
        lambda sent: sent.replace(b'name="epoch"\r\n\r\n3', b'name="epoch"\r\n\r\nx'),
        lambda sent: sent.replace(b"True", b"Trve"),
        lambda sent: sent.replace(b'filename="last.pt"', b'filename="best.pt"'),
        lambda sent: sent.replace(b"--b--", b"--c--"),
        lambda sent: sent.replace(b"boundary=b", b"boundarx=b"),
    ],
)
def test_an_invalid_form_is_refused_and_leaves_no_file(sandbox: Sandbox, model_id: str, broken: Any) -> None:
    sent = broken(checkpoint(model_id, b"weights"))

    assert status(sandbox, sent) == 400
    assert sandbox.checkpoints(model_id) == []
    assert [path for path in sandbox.data.rglob("*") if path.suffix == ".pt"] == []
    assert list((sandbox.data / "incoming").iterdir()) == []


@pytest.mark.parametrize("kind", ["metrics", "ckpt"])
def test_a_request_that_is_cut_stores_nothing(sandbox: Sandbox, model_id: str, kind: str) -> None:
    whole = metrics(model_id, 0) if kind == "metrics" else checkpoint(model_id, os.urandom(3 << 20))

    with connected(sandbox) as client:
        client.sendall(whole[:-1])
    assert sandbox.wait_until(lambda: sandbox.requests[-1].kind == kind and sandbox.requests[-1].ended)

    assert sandbox.requests[-1].status == 0
    assert sandbox.metrics(model_id) == {} and sandbox.checkpoints(model_id) == []
    assert list((sandbox.data / "incoming").iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 17])
def test_a_checkpoint_is_kept_byte_for_byte(sandbox: Sandbox, model_id: str, size: int) -> None:
    # Full of beginnings of the boundary (never the whole: it is "b"), so that some cross the blocks of the reader.
    content = (
        (b"\r\n--a" + os.urandom(59)) * (size // 64) + b"\r\n--"[: size % 4] + bytes(size % 64 - size % 4)
    )

    assert status(sandbox, checkpoint(model_id, content)) == 200

    record = sandbox.checkpoints(model_id)[0]
    assert record.path.read_bytes() == content
    assert (record.size, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_one_connection_serves_many_requests(sandbox: Sandbox, model_id: str) -> None:
    received = exchange(
        sandbox, metrics(model_id, 0), metrics(model_id, 1, key="bad-key"), metrics(model_id, 2)
    )

    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"401", b"200"]
    assert list(sandbox.metrics(model_id)) == [0, 2]


# --- repeated requests, restarts, what is shown


def test_a_repeated_key_gets_the_same_response_and_stores_nothing_again(
    sandbox: Sandbox, model_id: str
) -> None:
    first = parts(exchange(sandbox, checkpoint(model_id, b"weights", Idempotency_Key="a")))
    again = parts(exchange(sandbox, checkpoint(model_id, b"weights", Idempotency_Key="a")))
    other = parts(exchange(sandbox, checkpoint(model_id, b"weights", Idempotency_Key="b")))

    assert first[2] == again[2] and other[0] == 200
    assert len(sandbox.checkpoints(model_id)) == 2
    assert [record.replayed for record in sandbox.requests[-3:]] == [False, True, False]


def test_racing_requests_with_one_key_are_stored_once(sandbox: Sandbox) -> None:
    sent = request("POST", "/v1/models", b'{"meta": {"name": "race"}}', Idempotency_Key="race")
    threads = [threading.Thread(target=exchange, args=(sandbox, sent)) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert len(sandbox.models) == 1
    assert sorted(record.replayed for record in sandbox.requests) == [False] + [True] * 7


def test_a_hub_that_ignores_idempotency_keys_stores_twice() -> None:
    sent = request("POST", "/v1/models", b'{"meta": {"name": "twin"}}', Idempotency_Key="x")

    with Sandbox(honour_idempotency=False) as sandbox:
        exchange(sandbox, sent)
        exchange(sandbox, sent)

        assert len(sandbox.models) == 2


def test_a_refusal_is_not_remembered_for_a_key(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:503")
    assert status(sandbox, metrics(model_id, 0, Idempotency_Key="k")) == 503
    sandbox.heal()

    assert status(sandbox, metrics(model_id, 0, Idempotency_Key="k")) == 200
    assert list(sandbox.metrics(model_id)) == [0]


def test_a_restart_has_everything_and_the_same_port(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "data").start()
    model_id, gone = created(sandbox), created(sandbox)
    exchange(sandbox, metrics(model_id, 0, Idempotency_Key="m"))
    exchange(sandbox, checkpoint(model_id, b"weights"))
    exchange(sandbox, beat(model_id))
    exchange(sandbox, request("DELETE", f"/v1/models/{gone}?hard=True"))
    port, requests = sandbox.port, sandbox.requests
    sandbox.stop()
    with pytest.raises(ConnectionRefusedError):
        connected(sandbox)

    sandbox.start()
    with sandbox:
        assert sandbox.port == port and sandbox.requests == requests
        again = status(sandbox, metrics(model_id, 0, Idempotency_Key="m"))

        assert (again, sandbox.requests[-1].replayed) == (200, True)
        assert sandbox.models == [model_id]
        assert sandbox.metrics(model_id) == {0: {"train/box_loss": 0.0}}
        assert sandbox.checkpoints(model_id)[0].path.read_bytes() == b"weights"
        assert [each.agent_id for each in sandbox.beats(model_id)] == ["agent-1"]


def serve_until_killed(data: Path, port: Any) -> None:
    sandbox = Sandbox(data).start()
    port.put(sandbox.port)
    sandbox.serve_forever()


def test_a_killed_sandbox_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    port = spawn.SimpleQueue()
    child = spawn.Process(target=serve_until_killed, args=(tmp_path, port))
    child.start()
    client = http.client.HTTPConnection("127.0.0.1", port.get(), timeout=PATIENCE)
    client.request("POST", "/v1/models", b"{}", {"x-api-key": "k", "Content-Type": "application/json"})
    model_id = json.loads(client.getresponse().read())["data"]["id"]
    client.close()
    port.close()
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(PATIENCE)
    child.close()
    with (tmp_path / "sandbox.jsonl").open("ab") as journal:
        journal.write(b'{"fact": "metrics", "model": "half a li')

    with Sandbox(tmp_path) as sandbox:
        assert sandbox.models == [model_id]
        assert status(sandbox, metrics(model_id, 0)) == 200

    with Sandbox(tmp_path) as sandbox:
        assert list(sandbox.metrics(model_id)) == [0]


def test_a_folder_serves_one_sandbox_at_a_time(tmp_path: Path) -> None:
    with Sandbox(tmp_path), pytest.raises(ConfigError, match="another sandbox"):
        Sandbox(tmp_path).start()


def test_a_port_that_is_taken_is_a_configuration_error(sandbox: Sandbox, tmp_path: Path) -> None:
    other = Sandbox(tmp_path, port=sandbox.port)

    with pytest.raises(ConfigError, match=str(sandbox.port)) as caught:
        other.start()

    assert caught.value.hint


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sandbox.jsonl").write_text("dear diary\n")

    with pytest.raises(ConfigError, match=r"line 1 of .*sandbox\.jsonl"):
        Sandbox(tmp_path).start()

    assert (tmp_path / "sandbox.jsonl").read_text() == "dear diary\n"


def test_the_key_is_written_nowhere(sandbox: Sandbox, model_id: str) -> None:
    exchange(sandbox, metrics(model_id, 0, Authorization="Bearer good-key"))
    exchange(sandbox, request("GET", f"/v1/models/{model_id}?api_key=good-key"))
    page = b"".join(
        exchange(sandbox, request("GET", path, key=""))
        for path in ("/", "/api", "/api/requests", f"/api/runs/{model_id}")
    )

    kept = [path.read_bytes() for path in sandbox.data.rglob("*") if path.is_file()]

    assert not any(b"good-key" in each for each in [page, repr(sandbox.requests).encode(), *kept])


def test_what_is_received_is_shown_and_never_becomes_code(sandbox: Sandbox) -> None:
    empty = parts(exchange(sandbox, request("GET", "/", key="")))[2]
    body = b'{"meta": {"name": "<script>alert(1)</script>"}}'
    model_id = str(json.loads(parts(exchange(sandbox, request("POST", "/v1/models", body)))[2])["data"]["id"])
    exchange(sandbox, metrics(model_id, 0, 11))
    exchange(sandbox, checkpoint(model_id, b"weights", epoch=11))

    _, _, page = parts(exchange(sandbox, request("GET", "/", key="")))
    _, _, listed = parts(exchange(sandbox, request("GET", "/api/models", key="")))
    _, _, detail = parts(exchange(sandbox, request("GET", f"/api/models/{model_id}", key="")))
    _, headers, run = parts(exchange(sandbox, request("GET", f"/api/runs/{model_id}", key="")))

    assert page == empty  # received data never becomes part of the page
    assert headers["content-type"] == "application/json" and headers["x-content-type-options"] == "nosniff"
    assert json.loads(run)["name"] == "<script>alert(1)</script>"
    assert json.loads(run)["metrics"] == {"0": {"train/box_loss": 0.0}, "11": {"train/box_loss": 5.5}}
    assert [each["name"] for each in json.loads(run)["files"]] == ["epoch-11.pt"]
    assert [each["kind"] for each in json.loads(run)["requests"]] == ["ckpt", "metrics"]
    assert json.loads(listed)["models"][0]["epochs"] == 2
    assert json.loads(detail)["files"][0]["sha256"] == hashlib.sha256(b"weights").hexdigest()


def test_the_list_starts_with_the_newest_run_of_any_service(sandbox: Sandbox) -> None:
    first = created(sandbox)
    started = b'{"event": "training_started", "project": "p", "name": "n", "data": {"epochs": 9}}'
    head = {"Authorization": "Bearer good-key"}
    exchange(sandbox, request("POST", "/api/webhooks/training/metrics", started, **head))

    shown = json.loads(parts(exchange(sandbox, request("GET", "/api", key="")))[2])

    assert [(each["service"], each["name"]) for each in shown["runs"]] == [
        ("platform", "p/n"),
        ("hub", "yolov8n.pt"),
    ]
    assert shown["runs"][0]["planned_epochs"] == 9 and shown["runs"][1]["id"] == first
    assert [each["kind"] for each in shown["requests"]] == ["registration", "registration"]
    assert [each["name"] for each in shown["services"]] == ["hub", "platform", "mlflow", "huggingface"]


def test_a_non_finite_number_leaves_a_gap(sandbox: Sandbox, model_id: str) -> None:
    body = json.dumps({"metrics": {"0": '{"loss": NaN, "lr": 0.1}'}, "type": "metrics"}).encode()
    exchange(sandbox, request("POST", f"/v1/models/{model_id}", body))

    shown = json.loads(parts(exchange(sandbox, request("GET", f"/api/runs/{model_id}", key="")))[2])

    assert shown["metrics"] == {"0": {"loss": None, "lr": 0.1}}


def test_latency_is_waited_before_a_request_is_carried_out() -> None:
    with Sandbox(latency=0.2) as sandbox:
        started = time.monotonic()
        created(sandbox)

        assert time.monotonic() - started >= 0.2
