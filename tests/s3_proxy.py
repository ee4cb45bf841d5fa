"""A proxy before a server that speaks S3: it delays requests, refuses, cuts and holds them, and records them."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit


@dataclass(slots=True)
class Seen:
    """One request: `what` names it as the API does, `part` is its number if it is one. `status` is 0 without a response.

    The key of a list is its prefix. `body` is there while the faults are chosen.
    """

    what: str
    key: str
    part: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    size: int = 0
    status: int = 0
    body: bytes = b""


@dataclass(slots=True)
class Fault:
    """What happens to the next `times` requests that `matches`.

    `before` responds without asking the server: a status with its code. `cut` ends the connection after the server has
    responded, `drop` before it is asked. `hold` waits before the server is asked, `hold_after` before its response is
    sent: it sets `reached`, and continues after `go_on`.
    """

    matches: Callable[[Seen], bool]
    before: tuple[int, str] | None = None
    drop: bool = False
    cut: bool = False
    hold: bool = False
    hold_after: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    times: int = 1
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.reached.set()
        self.go_on.wait(120)


class S3Proxy:
    """Listens on a loopback port. `seen` has every request in the order of their arrival; `latency` is in seconds.

    While it `is_down` it closes each connection without a response.
    """

    def __init__(self, url: str, *, latency: float = 0.0) -> None:
        self._target, self.latency = urlsplit(url).netloc, latency
        self.seen: list[Seen] = []
        self.faults: list[Fault] = []
        self.at_once, self.most_at_once = 0, 0
        self.connections, self.is_down = 0, False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault(self, what: str, *, part: int = 0, times: int = 1, **options: object) -> Fault:
        """Let something happen to the next requests of a kind (`UploadPart`), of one part if it is given."""
        made = Fault(
            lambda seen: seen.what == what and part in (0, seen.part),
            times=times,
            **options,  # type: ignore[arg-type]
        )
        self.faults.append(made)
        return made

    def calls(self, what: str) -> list[Seen]:
        """The requests of a kind."""
        return [each for each in self.seen if each.what == what]

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                proxy.connections += 1
                super().setup()

            def do_GET(self) -> None:
                proxy._serve(self)

            do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815 - the names of http.server

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _serve(self, request: http.server.BaseHTTPRequestHandler) -> None:
        seen = _named(request.command, request.path, dict(request.headers.items()))
        with self._lock:
            self.seen.append(seen)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._closing.wait(self.latency)
            length = int(request.headers.get("Content-Length", 0))
            body = seen.body = request.rfile.read(length)
            seen.size = len(body)
            if len(body) < length or self.is_down:
                request.close_connection = True
                return
            fault = self._fault_of(seen)
            seen.body = b""
            self._answer(request, seen, fault, body)
        except OSError:
            request.close_connection = True
        finally:
            with self._lock:
                self.at_once -= 1

    def _fault_of(self, seen: Seen) -> Fault | None:
        with self._lock:
            fault = next((each for each in self.faults if each.times > 0 and each.matches(seen)), None)
            if fault is not None:
                fault.times -= 1
            return fault

    def _answer(
        self,
        request: http.server.BaseHTTPRequestHandler,
        seen: Seen,
        fault: Fault | None,
        body: bytes,
    ) -> None:
        if fault is not None and fault.hold:
            fault.wait()
        if fault is not None and fault.drop:
            request.close_connection = True
            return
        if fault is not None and fault.before is not None:
            status, code = fault.before
            xml = (
                f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            )
            self._respond(request, seen, status, fault.headers, xml if fault.body is None else fault.body)
            return
        onward = http.client.HTTPConnection(self._target, timeout=60)
        try:
            onward.request(request.command, request.path, body, dict(request.headers.items()))
            response = onward.getresponse()
            content = response.read()
            headers = dict(response.getheaders())
        finally:
            onward.close()
        if fault is not None and fault.hold_after:
            fault.wait()
        if fault is not None and fault.cut:
            request.close_connection = True
            return
        self._respond(request, seen, response.status, headers, content)

    def _respond(
        self,
        request: http.server.BaseHTTPRequestHandler,
        seen: Seen,
        status: int,
        headers: dict[str, str],
        content: bytes,
    ) -> None:
        seen.status = status
        request.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                request.send_header(name, value)
        length = headers.get("Content-Length") if request.command == "HEAD" else None
        request.send_header("Content-Length", length or str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        for each in self.faults:
            each.go_on.set()
        self._server.shutdown()
        self._server.server_close()


def _named(method: str, path: str, headers: dict[str, str]) -> Seen:
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    key = parts.path.lstrip("/").partition("/")[2]
    part = int(query.get("partNumber", ["0"])[0])
    kinds = {
        "PUT": "UploadPart" if part else "PutObject",
        "POST": "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload",
        "DELETE": "AbortMultipartUpload" if "uploadId" in query else "DeleteObject",
        "HEAD": "HeadObject",
    }
    listed = "ListMultipartUploads" if "uploads" in query else "ListParts" if "uploadId" in query else ""
    reading = listed or ("ListObjectsV2" if "list-type" in query else "GetObject")
    return Seen(kinds.get(method, reading), key or query.get("prefix", [""])[0], part, headers)
