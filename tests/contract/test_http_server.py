"""The example server alone: what it refuses, and how short it is."""

from __future__ import annotations

import ast
import hashlib
import http.client
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from http_stage import KEY, SERVER, TOKEN, Server

from hubqueue.destinations.http.signature import EMPTY, digest_field, signature

KEYS = "6fa459ea-ee8a-3ca4-894e-db77e160355e"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server") / "runs")
    running.recorder.exchanges.clear()
    with running:
        start = {"id": "run-1", "name": "n", "model": "m", "args": {}}
        assert ask(running, "POST", "/runs", json.dumps(start).encode())[0] == 200
        yield running
        running.exchanges.clear()  # these requests are wrong on purpose


def ask(
    server: Server,
    method: str,
    target: str,
    body: bytes = b"",
    *,
    at: float = 0,
    key: str = KEY,
    signed: Mapping[str, str] | None = None,
    **replaced: str | None,
) -> tuple[int, bytes]:
    """The status and the body of the response. `signed` is what the signature covers instead of what is sent."""
    headers: dict[str, str | None] = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Digest": digest_field(hashlib.sha256(body).digest()),
        "Idempotency-Key": KEYS,
        **{name.replace("_", "-"): value for name, value in replaced.items()},
    }
    covered = {
        "method": method,
        "target": target,
        "digest": headers["Content-Digest"] or "",
        "content_range": headers.get("Content-Range") or "",
        "idempotency_key": headers["Idempotency-Key"] or "",
        **(signed or {}),
    }
    headers.setdefault("Hubqueue-Signature", signature(key, at=int(time.time() + at), **covered))
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.request(
        method, target, body, {name: each for name, each in headers.items() if each is not None}
    )
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


@pytest.mark.parametrize(
    "wrong",
    [
        {"Authorization": "Bearer another-token"},
        {"Authorization": None},
        {"Authorization": "Bearer ümläut"},
        {"Hubqueue_Signature": None},
        {"Hubqueue_Signature": "t=,v1="},
        {"key": "another-key"},
        {"signed": {"method": "GET"}},
        {"signed": {"target": "/runs/run-1/files/a/another"}},
        {"signed": {"digest": digest_field(EMPTY)}},
        {"signed": {"content_range": "bytes 0-1/2"}},
        {"signed": {"idempotency_key": "another"}},
    ],
    ids=str,
)
def test_a_request_that_its_sender_did_not_sign_is_refused(server: Server, wrong: dict[str, str]) -> None:
    status, body = ask(server, "PUT", "/runs/run-1/files/a/b", b"content", **wrong)  # type: ignore[arg-type]

    assert (status, "message" in json.loads(body)) == (401, True)
    assert not (server.folder / "run-1" / "files" / "a").exists()


@pytest.mark.parametrize(("at", "status"), [(-310, 412), (310, 412), (-250, 200), (250, 200)])
def test_a_request_counts_for_five_minutes(server: Server, at: float, status: int) -> None:
    assert ask(server, "GET", "/runs", at=at)[0] == status


def test_another_body_than_that_of_the_digest_is_refused(server: Server) -> None:
    digest = digest_field(EMPTY)

    assert ask(server, "POST", "/runs/run-1/end", b'{"state": "failed"}', Content_Digest=digest)[0] == 409
    assert ask(server, "PUT", "/runs/run-1/files/d/e", b"content", Content_Digest=digest)[0] == 409
    assert json.loads((server.folder / "run-1" / "run.json").read_bytes())["state"] == "running"


@pytest.mark.parametrize("path", ["../run.json", "a/../../../x", "%2e%2e/run.json", "a/..%2F..%2Frun.json"])
def test_no_path_leads_out_of_the_run(server: Server, path: str) -> None:
    before = sorted(server.folder.rglob("*.json"))

    assert ask(server, "PUT", f"/runs/run-1/files/{path}", b"{}")[0] in (400, 404)
    assert ask(server, "GET", f"/runs/run-1/files/{path}")[0] in (400, 404)
    assert sorted(server.folder.rglob("*.json")) == before


@pytest.mark.parametrize("run", ["..", "run-2", "%2e%2e", "run-1%2F..", "ru*"])
def test_an_unknown_run_is_not_found(server: Server, run: str) -> None:
    assert ask(server, "POST", f"/runs/{run}/metrics", b"{}")[0] == 404


@pytest.mark.parametrize(
    ("content_range", "status"), [("bytes 5-9/10", 409), ("bytes x-9/10", 416), ("bytes */10", 416)]
)
def test_a_range_that_does_not_fit_is_refused(server: Server, content_range: str, status: int) -> None:
    assert ask(server, "PUT", "/runs/run-1/files/f/g", b"12345", Content_Range=content_range)[0] == status


def test_no_manifest_reaches_a_file_of_the_machine(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(b"1")
    manifest = {"folder": "f", "files": [{"path": str(path), "size": 1, "sha256": "0" * 64}]}

    assert ask(server, "POST", "/runs/run-1/manifest", json.dumps(manifest).encode())[0] == 400
    assert path.exists()


def test_content_that_is_none_is_refused_for_ever(server: Server) -> None:
    assert ask(server, "POST", "/runs/run-1/manifest", b"{}")[0] == 400
    assert ask(server, "POST", "/runs", b"[1")[0] == 400


def test_it_is_short() -> None:
    """About 100 lines, besides imports, blank lines, comments and documentation."""
    text = Path(SERVER).read_text(encoding="utf-8")
    tree = ast.parse(text)
    apart = {
        number
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for number in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    lines = [
        line
        for number, line in enumerate(text.splitlines(), 1)
        if number not in apart and line.strip() and not line.strip().startswith("#")
    ]

    assert len(lines) <= 103
