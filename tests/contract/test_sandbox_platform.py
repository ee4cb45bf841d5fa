"""The fake Platform on raw sockets: faults, repeated requests, restarts, wrong shapes, the page."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hubqueue.sandbox import Sandbox
from hubqueue.sandbox.faults import BEHAVIOURS

PATIENCE = 120.0
EVENTS = "/api/webhooks/training/metrics"
UPLOADS = "/api/webhooks/models/upload"


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(keys=("good-key",)) as sandbox:
        yield sandbox


@pytest.fixture
def model_id(sandbox: Sandbox) -> str:
    return begun(sandbox)


# --- a raw client


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    head = {
        "Host": "localhost",
        "Connection": "close",
        "Authorization": "Bearer good-key",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    head |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def event(name: str, model_id: str | None, data: dict[str, Any], **headers: str) -> bytes:
    address = {"modelId": model_id} if model_id else {"project": "coco", "name": "train"}
    return request("POST", EVENTS, json.dumps({"event": name, "data": data, **address}).encode(), **headers)


def epoch_end(model_id: str, epoch: int, **headers: str) -> bytes:
    data = {"epoch": epoch, "metrics": {"train/box_loss": epoch / 2}}
    return event("epoch_end", model_id, data, **headers)


def upload(model_id: str, **headers: str) -> bytes:
    return request(
        "POST",
        UPLOADS,
        json.dumps({"filename": "best.pt", "modelId": model_id, "runId": 1}).encode(),
        **headers,
    )


def put(url: str, content: bytes = b"weights") -> bytes:
    parts = urlsplit(url)
    own = {"Content_Type": "application/octet-stream", "Authorization": ""}
    return request("PUT", f"{parts.path}?{parts.query}", content, **own)


def exchange(sandbox: Sandbox, sent: bytes) -> bytes:
    """All bytes that the sandbox sends to one request, until it closes (or resets) the connection."""
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=PATIENCE) as client:
        client.sendall(sent)
        received = b""
        try:
            while block := client.recv(65536):
                received += block
        except ConnectionResetError:
            return received
    return received


def status(sandbox: Sandbox, sent: bytes) -> int:
    return int(exchange(sandbox, sent).split()[1])


def response(sandbox: Sandbox, sent: bytes) -> dict[str, Any]:
    head, _, body = exchange(sandbox, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"application/json" in head
    return dict(json.loads(body))


def begun(sandbox: Sandbox) -> str:
    return str(response(sandbox, event("training_started", None, {"epochs": 3}))["modelId"])


def url_for(sandbox: Sandbox, model_id: str) -> str:
    return str(response(sandbox, upload(model_id))["uploadUrl"])


# --- faults


def rule_of(what: str, kind: str) -> str:
    return f"{kind}:{what}:seconds=0.001" if what in ("silence", "slow-read", "drip") else f"{kind}:{what}"


@pytest.mark.parametrize("what", ["429", "503", *BEHAVIOURS])
def test_every_fault_stores_an_event_as_documented(sandbox: Sandbox, model_id: str, what: str) -> None:
    sandbox.fail(rule_of(what, "metrics"))

    exchange(sandbox, epoch_end(model_id, 0))
    exchange(sandbox, event("console_output", model_id, {"content": "x"}))

    record = sandbox.run(model_id)
    assert list(record.epochs) == ([0] if BEHAVIOURS.get(what, False) else [])
    assert record.events[-1].event == "console_output"
    assert [each.fault is None for each in sandbox.requests[-2:]] == [False, True]


@pytest.mark.parametrize("what", ["403", "503", *BEHAVIOURS])
def test_every_fault_stores_an_upload_as_documented(sandbox: Sandbox, model_id: str, what: str) -> None:
    url = url_for(sandbox, model_id)
    sandbox.fail(rule_of(what, "ckpt"))

    exchange(sandbox, put(url))

    assert len(sandbox.run(model_id).staged) == BEHAVIOURS.get(what, False)
    assert not list(sandbox.data.glob("incoming/*"))


def test_an_response_without_a_body_is_cut_in_its_head(sandbox: Sandbox, model_id: str) -> None:
    url = url_for(sandbox, model_id)
    sandbox.fail("ckpt:cut-body")

    received = exchange(sandbox, put(url))

    assert received.startswith(b"HTTP/1.1 200 ") and b"\r\n\r\n" not in received


def test_each_service_words_a_false_response_in_its_own_way(sandbox: Sandbox, model_id: str) -> None:
    url = url_for(sandbox, model_id)
    sandbox.fail("503:times=3")
    sandbox.fail("null:times=1")

    of_platform, of_hub, of_storage, null = (
        exchange(sandbox, each).partition(b"\r\n\r\n")[2]
        for each in (epoch_end(model_id, 0), request("POST", "/v1/auth"), put(url), epoch_end(model_id, 0))
    )

    assert list(json.loads(of_platform)) == ["error"] and "message" in json.loads(of_hub)
    assert of_storage.startswith(b"<?xml") and null == b"null"


def test_a_rule_can_name_an_event_or_a_path(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("503:event=checkpoint_saved")
    sandbox.fail("429:path=/storage/:retry-after=3")

    url = response(sandbox, upload(model_id))
    stored = exchange(sandbox, put(url["uploadUrl"]))
    saved = event("checkpoint_saved", model_id, {"runId": 1, "modelPath": url["gcsPath"]})

    assert stored.startswith(b"HTTP/1.1 429 ") and b"Retry-After: 3" in stored
    assert status(sandbox, saved) == 503 and status(sandbox, epoch_end(model_id, 0)) == 200


def test_a_bad_epoch_fails_only_its_own_event(sandbox: Sandbox, model_id: str) -> None:
    sandbox.fail("metrics:400:epoch=1")

    responses = [status(sandbox, epoch_end(model_id, epoch)) for epoch in range(3)]

    assert responses == [200, 400, 200] and list(sandbox.run(model_id).epochs) == [0, 2]


def test_a_cut_upload_stores_nothing_and_leaves_its_url_good(sandbox: Sandbox, model_id: str) -> None:
    url = url_for(sandbox, model_id)
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=PATIENCE) as client:
        client.sendall(put(url, b"x" * 3_000_000)[:-1])
    assert sandbox.wait_until(lambda: sandbox.requests[-1].method == "PUT" and sandbox.requests[-1].ended)

    assert sandbox.run(model_id).staged == [] and not list(sandbox.data.glob("incoming/*"))
    assert status(sandbox, put(url)) == 200


def test_of_two_uploads_to_one_url_the_first_to_end_is_stored(sandbox: Sandbox, model_id: str) -> None:
    sent = put(url_for(sandbox, model_id), b"x" * 100_000)
    address = ("127.0.0.1", sandbox.port)
    with (
        socket.create_connection(address, PATIENCE) as one,
        socket.create_connection(address, PATIENCE) as two,
    ):
        for client in (one, two):
            client.sendall(sent[:-1])
        assert sandbox.wait_until(lambda: sum(each.method == "PUT" for each in sandbox.requests) == 2)
        responses = []
        for client in (two, one):
            client.sendall(sent[-1:])
            responses.append(client.recv(65536).split()[1])

    assert responses == [b"200", b"403"] and len(sandbox.run(model_id).staged) == 1
    assert len(list(sandbox.data.rglob("*-best.pt"))) == 1 and not list(sandbox.data.glob("incoming/*"))


# --- what is refused


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[]", 400),
        (b'{"event": "epoch_end"', 400),
        (b'{"event": "epoch_begin", "modelId": "M", "data": {}}', 400),
        (b'{"event": "console_output", "modelId": "M"}', 400),
        (b'{"event": "console_output", "modelId": 7, "data": {}}', 400),
        (b'{"event": "console_output", "data": {}}', 400),
        (b'{"event": "training_started", "name": "train", "data": {}}', 400),
        (b'{"event": "epoch_end", "modelId": "M", "data": {"epoch": -1}}', 400),
        (b'{"event": "epoch_end", "modelId": "M", "data": {"epoch": true}}', 400),
        (b'{"event": "epoch_end", "modelId": "M", "data": {"epoch": 0, "metrics": {"a": NaN}}}', 400),
        (b'{"event": "epoch_end", "modelId": "M", "data": {"epoch": 0, "metrics": []}}', 400),
        (b'{"event": "checkpoint_saved", "modelId": "M", "data": {"modelPath": "gs://x"}}', 400),
        (b'{"event": "training_complete", "modelId": "M", "data": {"runId": "1"}}', 400),
        (b'{"event": "console_output", "project": "coco", "name": "unknown", "data": {}}', 404),
    ],
)
def test_an_invalid_event_is_refused_and_not_stored(
    sandbox: Sandbox, model_id: str, body: bytes, code: int
) -> None:
    received = exchange(sandbox, request("POST", EVENTS, body.replace(b'"M"', f'"{model_id}"'.encode())))

    assert received.split()[1] == str(code).encode()
    assert list(json.loads(received.partition(b"\r\n\r\n")[2])) == ["error"]
    assert len(sandbox.run(model_id).events) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"modelId": "M"},
        {"modelId": "M", "filename": "../best.pt"},
        {"modelId": "M", "filename": ""},
        {"modelId": "M", "filename": "best.pt", "runId": "1"},
        {"filename": "best.pt"},
    ],
)
def test_an_invalid_request_for_an_upload_url_is_refused(
    sandbox: Sandbox, model_id: str, body: dict[str, Any]
) -> None:
    asked = {**body, "modelId": model_id} if "modelId" in body else body

    assert status(sandbox, request("POST", UPLOADS, json.dumps(asked).encode())) == 400
    assert sandbox.run(model_id).uploads == []


def test_platform_accepts_only_a_bearer_key(sandbox: Sandbox, model_id: str) -> None:
    headers = {"Authorization": "", "x_api_key": "good-key"}

    assert status(sandbox, epoch_end(model_id, 0, **headers)) == 401
    assert status(sandbox, request("POST", "/v1/auth", **headers)) == 200


def test_an_event_without_a_model_id_finds_its_run_by_name(sandbox: Sandbox, model_id: str) -> None:
    assert response(sandbox, event("console_output", None, {"content": "x"}))["modelId"] == model_id


# --- repeated requests


def test_a_repeated_key_gets_the_same_response_and_stores_nothing_again(
    sandbox: Sandbox, model_id: str
) -> None:
    started = event("training_started", None, {}, Idempotency_Key="s")
    first, again = response(sandbox, started), response(sandbox, started)
    for _ in range(2):
        exchange(sandbox, epoch_end(model_id, 0, Idempotency_Key="e"))

    assert first == again and sandbox.runs == [model_id, first["modelId"]]
    assert len(sandbox.run(model_id).events) == 2 and sandbox.run(model_id).duplicates == []
    assert [each.replayed for each in sandbox.requests[-4:]] == [False, True, False, True]


def test_without_idempotency_a_repeated_request_is_a_visible_duplicate() -> None:
    with Sandbox(honour_idempotency=False, keys=("good-key",)) as sandbox:
        model_id = begun(sandbox)
        for _ in range(2):
            exchange(sandbox, epoch_end(model_id, 0, Idempotency_Key="e"))

        assert [each.event for each in sandbox.run(model_id).duplicates] == ["epoch_end"]


def test_an_upload_url_is_new_even_for_a_repeated_key(sandbox: Sandbox, model_id: str) -> None:
    first, again = (response(sandbox, upload(model_id, Idempotency_Key="u"))["uploadUrl"] for _ in range(2))

    assert first != again and status(sandbox, put(first)) == status(sandbox, put(again)) == 200


# --- restarts, secrets, the page


def test_a_restart_has_every_run_and_its_open_urls(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "data", keys=("good-key",)).start()
    model_id = begun(sandbox)
    exchange(sandbox, epoch_end(model_id, 4, Idempotency_Key="e"))
    promoted, still_open = response(sandbox, upload(model_id)), url_for(sandbox, model_id)
    exchange(sandbox, put(promoted["uploadUrl"]))
    exchange(sandbox, event("checkpoint_saved", model_id, {"runId": 1, "modelPath": promoted["gcsPath"]}))
    other = begun(sandbox)
    sandbox.cancel(other)
    before, requests = [sandbox.run(each) for each in sandbox.runs], sandbox.requests
    sandbox.stop()

    sandbox.start()
    with sandbox:
        assert [sandbox.run(each) for each in sandbox.runs] == before and sandbox.requests == requests
        exchange(sandbox, epoch_end(model_id, 4, Idempotency_Key="e"))
        assert sandbox.requests[-1].replayed and sandbox.run(other).state == "cancelled"
        assert status(sandbox, put(still_open)) == 200 and status(sandbox, put(promoted["uploadUrl"])) == 403
        assert response(sandbox, event("training_started", model_id, {}))["runId"] == 3


def test_keys_and_signatures_are_not_in_the_log_of_requests(sandbox: Sandbox, model_id: str) -> None:
    url = url_for(sandbox, model_id)
    exchange(sandbox, put(url))
    signature = url.partition("signature=")[2].encode()
    shown = exchange(sandbox, request("GET", "/api/requests", Authorization=""))
    shown += exchange(sandbox, request("GET", f"/api/runs/{model_id}", Authorization=""))

    kept = [path.read_bytes() for path in sandbox.data.rglob("*") if path.is_file()]

    assert not any(b"good-key" in each for each in [shown, *kept])
    assert signature not in shown + (sandbox.data / "requests.jsonl").read_bytes()
    assert signature not in repr(sandbox.run(model_id)).encode()


def page(sandbox: Sandbox, path: str) -> bytes:
    head, _, body = exchange(sandbox, request("GET", path, Authorization="")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return body


def test_runs_are_shown_and_nothing_of_them_becomes_code(sandbox: Sandbox, model_id: str) -> None:
    evil = {"event": "training_started", "data": {}, "project": "<script>", "name": "'\"><b>"}
    exchange(sandbox, request("POST", EVENTS, json.dumps(evil).encode()))
    url = response(sandbox, upload(model_id))
    exchange(sandbox, put(url["uploadUrl"], b"weights"))
    exchange(sandbox, event("checkpoint_saved", model_id, {"runId": 1, "modelPath": url["gcsPath"]}))
    exchange(sandbox, epoch_end(model_id, 11))
    sandbox.fail("503")

    shown, listed = page(sandbox, "/"), json.loads(page(sandbox, "/api/runs"))
    detail = json.loads(page(sandbox, f"/api/runs/{model_id}"))
    sandbox.heal()
    file = page(sandbox, f"/files/{model_id}/best.pt")

    assert shown == page(sandbox, "/") and b"coco" not in shown  # received data does not change the page
    assert [each["name"] for each in listed["runs"]] == ["coco/train", "<script>/'\"><b>"]
    assert detail["metrics"] == {"11": {"train/box_loss": 5.5}} and detail["state"] == "training"
    assert [each["epochs"] for each in listed["runs"]] == [1, 0]
    assert detail["files"][0]["bytes"] == 7 and [each["event"] for each in detail["log"]][-1] == "epoch_end"
    assert file == b"weights"


def test_a_person_can_cancel_a_run_from_the_page(sandbox: Sandbox, model_id: str) -> None:
    counted = len(sandbox.requests)
    assert json.loads(page(sandbox, f"/api/runs/{model_id}"))["can_cancel"] is True

    back = exchange(sandbox, request("POST", f"/api/runs/{model_id}/cancel", Authorization=""))
    unknown = status(sandbox, request("POST", "/api/runs/unknown/cancel", Authorization=""))

    assert back.startswith(b"HTTP/1.1 303 ") and b"Location: /\r\n" in back and unknown == 404
    assert json.loads(page(sandbox, f"/api/runs/{model_id}"))["can_cancel"] is False
    assert sandbox.run(model_id).state == "cancelled" and len(sandbox.requests) == counted
    assert response(sandbox, epoch_end(model_id, 0))["cancelled"] is True


@pytest.mark.parametrize("of", [Sandbox.run, Sandbox.cancel])
def test_an_unknown_run_is_a_key_error(sandbox: Sandbox, of: Callable[[Sandbox, str], object]) -> None:
    with pytest.raises(KeyError, match="unknown"):
        of(sandbox, "unknown")
