"""A hub that is never the bottleneck: the HUB's protocol over raw sockets, in a separate process.

It validates little (length, the frame of a metrics body), sends the responses of the protocol and discards bodies.
It records the times of each request and response on the monotonic clock, which all processes of a machine share.
`GET /bench/seen?count=N` waits until N requests got their response and returns them; `&clear=1` then clears the list.
"""

from __future__ import annotations

import http.client
import json
import re
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from benchmarks.context import ROOT, python

# Occurs once in the text of each epoch, with escaped or unescaped quotes.
MARK = b"metrics/scalar0"
MODEL = "BenchBenchBenchBench"
_PATIENCE = 120.0
_BUFFER = 1 << 20
_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_RESPONSE = (
    "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: keep-alive\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request: its kind (auth, model, metrics, upload, beat, put), the times of request and response, its body's size."""

    what: str
    came: float
    answered: float
    size: int
    epochs: int


@dataclass(slots=True)
class _Log:
    """The requests of the hub, shared by its threads."""

    seen: list[tuple[str, float, float, int, int]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def note(self, *seen: Any) -> None:
        with self.news:
            self.seen.append(seen)
            self.news.notify_all()

    def report(self, query: str) -> bytes:
        asked = parse_qs(urlsplit(query).query)
        what, count = asked.get("what", [""])[0], int(asked.get("count", ["0"])[0])
        with self.news:
            self.news.wait_for(lambda: sum(each[0] == what for each in self.seen) >= count, _PATIENCE)
            report = json.dumps(self.seen).encode()
            if "clear" in asked:
                self.seen.clear()
        return report


class Hub:
    """The parent's side: starts the process, has its address, queries its requests."""

    def __init__(self) -> None:
        self.url = ""
        self._port = 0

    def seen(self, what: str = "", count: int = 0, *, clear: bool = False) -> list[Seen]:
        """Every request since the last clearing, after `count` of a kind got their response."""
        asking = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE + 10)
        asking.request("GET", f"/bench/seen?what={what}&count={count}{'&clear=1' if clear else ''}")
        found = [Seen(*each) for each in json.loads(asking.getresponse().read())]
        asking.close()
        return found

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            python("-m", "benchmarks.receiver"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 30.0)
        if not ready:
            self._process.kill()
            raise SystemExit("error: the hub of the benchmarks does not start")
        self._port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    log = _Log()
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(listening.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listening, log), daemon=True).start()
    sys.stdin.read()  # ends with the process that started this one


def _accept(listening: socket.socket, log: _Log) -> None:
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(connection, log), daemon=True).start()


def _serve(connection: socket.socket, log: _Log) -> None:
    """Requests of one connection, until the client closes it."""
    buffer = memoryview(bytearray(_BUFFER))
    with connection:
        try:
            while _exchange(connection, buffer, log):
                pass
        except OSError:
            return  # the client disconnected


def _exchange(connection: socket.socket, buffer: memoryview, log: _Log) -> bool:
    """Respond to one request. Returns whether there was one."""
    got = connection.recv_into(buffer)
    came = time.monotonic()
    end = -1
    while got and (end := bytes(buffer[:got]).find(b"\r\n\r\n")) < 0:
        more = connection.recv_into(buffer[got:])
        if not more:
            return False
        got += more
    if not got:
        return False
    head = bytes(buffer[:end])
    method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    if path.startswith("/bench/"):
        _respond(connection, log.report(path))
        return True
    found = _LENGTH.search(head)
    size = int(found[1]) if found else 0
    if b"100-continue" in head.lower():
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body, left = bytes(buffer[end + 4 : got]), size - (got - end - 4)
    what = _kind(method, path)
    if what == "metrics":
        parts = [body]
        while left > 0 and (more := connection.recv_into(buffer[: min(left, _BUFFER)])):
            parts.append(bytes(buffer[:more]))
            left -= more
        body = b"".join(parts)
    else:
        while left > 0 and (more := connection.recv_into(buffer[: min(left, _BUFFER)])):
            left -= more
    if left > 0:
        return False  # cut
    framed = what != "metrics" or (body.startswith(b'{"') and body.endswith(b"}"))
    _respond(connection, _word(what), "200 OK" if framed else "400 Bad Request")
    log.note(what, came, time.monotonic(), size, body.count(MARK) if what == "metrics" and framed else 0)
    return True


def _kind(method: str, path: str) -> str:
    if method == "PUT":
        return "put"
    if path.endswith("/upload"):
        return "upload"
    if "/heartbeat/" in path:
        return "beat"
    if path.endswith("/auth"):
        return "auth"
    return "model" if method == "GET" or path.endswith("/models") else "metrics"


def _word(what: str) -> bytes:
    data = {"beat": {"agentId": "agent"}}.get(what, {"id": MODEL})
    return json.dumps({"success": True, "message": "ok", "data": data}).encode()


def _respond(connection: socket.socket, body: bytes, status: str = "200 OK") -> None:
    connection.sendall(_RESPONSE.format(status, len(body)).encode() + body)


if __name__ == "__main__":
    main()
