"""A proxy between the workers of a round and a server, in a process of its own.

It records each request, and kills a worker at the n-th one: before the server has any of it, in the middle of its body, when
the server has carried it out and the response is lost, or when the worker has the response.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import signal
import socket
import sys
import threading
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any, NoReturn
from urllib.parse import urlsplit

WHEN = ("before a request", "within a request", "before a response", "after a response")
# In bytes. Larger bodies are not kept.
_KEPT = 64 * 1024
_BLOCK = 256 * 1024
_OF_CONNECTION = ("connection", "transfer-encoding", "content-length", "keep-alive")


@dataclass(slots=True)
class Seen:
    """One request. `began` and `ended` number what happens at the tap: a smaller number was earlier.

    `size` is its Content-Length, `sent` how much of its body was passed on, both in bytes. `status` is 0 without a response
    of the server. `body` is that of a small request. Names of headers are in lower case.
    """

    method: str
    target: str
    began: int
    headers: dict[str, str] = field(default_factory=dict)
    size: int = 0
    sent: int = 0
    body: str = ""
    status: int = 0
    response: dict[str, str] = field(default_factory=dict)
    ended: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the server has carried it out, and the response says so."""
        return 200 <= self.status < 300


class Tap:
    """Forks the proxy. Used by one thread of a process without other threads."""

    def __init__(self, upstream: str) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if not self._pid:
            ours.close()
            _serve(upstream, theirs)
        theirs.close()
        self._link = ours.makefile("rw")
        ours.close()
        self.url: str = json.loads(self._link.readline())

    def arm(self, pid: int, number: int, when: str, only: str = "") -> None:
        """Kill this process at the n-th request from now on, of those whose method and target match a pattern."""
        self._ask({"pid": pid, "number": number, "when": when, "only": only})

    def disarm(self) -> None:
        """Kill nobody. To be called while the process of `arm` is not reaped, so that its id belongs to no other."""
        self._ask({"pid": 0, "number": 0, "when": "", "only": ""})

    def seen(self) -> list[Seen]:
        """All requests, in the order of their arrival."""
        return [Seen(**each) for each in self._ask({})]

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._link.close()

    def _ask(self, wanted: dict[str, Any]) -> Any:
        print(json.dumps(wanted), file=self._link, flush=True)
        return json.loads(self._link.readline())


# In the process of the proxy.


@dataclass(slots=True)
class _State:
    """Which process is killed at which request, and what was seen."""

    upstream: str
    seen: list[Seen] = field(default_factory=list)
    numbers: count[int] = field(default_factory=lambda: count(1))
    lock: threading.Lock = field(default_factory=threading.Lock)
    pid: int = 0
    left: int = 0
    when: str = ""
    only: str = ""

    def note(self, seen: Seen) -> str:
        """Note a request. Returns when the process is to be killed; empty for never."""
        with self.lock:
            self.seen.append(seen)
            if not re.search(self.only, f"{seen.method} {seen.target}"):
                return ""
            self.left -= 1
            return self.when if self.left == 0 and self.pid else ""

    def kill(self) -> None:
        with self.lock:
            pid, self.pid = self.pid, 0
            if pid:
                os.kill(pid, signal.SIGKILL)

    def number(self) -> int:
        with self.lock:
            return next(self.numbers)

    def obey(self, wanted: dict[str, Any]) -> Any:
        with self.lock:
            if not wanted:
                return [asdict(each) for each in self.seen]
            self.pid, self.left = wanted["pid"], wanted["number"]
            self.when, self.only = wanted["when"], wanted["only"]
            return None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The connections of a killed process are reset."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _serve(upstream: str, link: socket.socket) -> NoReturn:
    try:
        state = _State(urlsplit(upstream).netloc)
        server = _Server(("127.0.0.1", 0), _handler(state))
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        with link.makefile("rw") as lines:
            print(json.dumps(f"http://127.0.0.1:{server.server_address[1]}"), file=lines, flush=True)
            for line in lines:
                print(json.dumps(state.obey(json.loads(line))), file=lines, flush=True)
    finally:
        os._exit(0)


def _handler(state: _State) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            seen = Seen(self.command, self.path, state.number())
            seen.headers = {name.lower(): value for name, value in self.headers.items()}
            seen.size = int(self.headers.get("Content-Length", 0))
            try:
                if not _pass(self, seen, state):
                    self.close_connection = True
            except (OSError, http.client.HTTPException):
                self.close_connection = True
            finally:
                seen.ended = state.number()

        do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = do_GET  # noqa: N815 - the names of http.server

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _pass(request: http.server.BaseHTTPRequestHandler, seen: Seen, state: _State) -> bool:
    """Pass a request on, and its response back. Returns whether the connection can be used again."""
    when = state.note(seen)
    if when == "before a request":
        state.kill()
        return False
    onward = http.client.HTTPConnection(state.upstream, timeout=60)
    try:
        onward.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() != "connection":
                onward.putheader(name, value)
        onward.endheaders()
        enough = seen.size // 2 if when == "within a request" else seen.size
        whole = _send_body(request, onward, seen, enough)
        if when == "within a request":
            state.kill()
            return False
        if not whole:
            return False
        response = onward.getresponse()
        content = response.read()
        seen.response = {name.lower(): value for name, value in response.getheaders()}
        seen.status = response.status
    finally:
        onward.close()
    if when == "before a response":
        state.kill()
        return False
    _respond(request, seen, dict(response.getheaders()), content)
    if when == "after a response":
        state.kill()
    return True


def _send_body(
    request: http.server.BaseHTTPRequestHandler, onward: http.client.HTTPConnection, seen: Seen, enough: int
) -> bool:
    """Pass on so many bytes of the body. Returns whether they came."""
    kept = bytearray()
    while seen.sent < enough:
        block = request.rfile.read1(min(_BLOCK, enough - seen.sent))  # type: ignore[attr-defined]
        if not block:
            return False
        onward.send(block)
        seen.sent += len(block)
        if seen.size <= _KEPT:
            kept += block
    seen.body = kept.decode("latin-1")
    return True


def _respond(
    request: http.server.BaseHTTPRequestHandler, seen: Seen, headers: dict[str, str], content: bytes
) -> None:
    request.send_response_only(seen.status)
    for name, value in headers.items():
        if name.lower() not in _OF_CONNECTION:
            request.send_header(name, value)
    length = headers.get("Content-Length") if request.command == "HEAD" else None
    request.send_header("Content-Length", length or str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
