"""A hub that is never the bottleneck: the HUB's protocol over raw sockets, in a process of its own.

It validates lightly (length, the frame of a metrics body), answers what the protocol asks for, throws bodies away
and notes when each request came and was answered, on the monotonic clock, which all processes of a machine share.
`GET /bench/seen?count=N` waits until N requests were answered and tells them; it forgets them with `&clear=1`.
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

from benchmarks.place import ROOT, python

# In the text of each epoch once, whether its quotes are escaped or not.
MARK = b"metrics/scalar0"
MODEL = "BenchBenchBenchBench"
_PATIENCE = 120.0
_BUFFER = 1 << 20
_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_ANSWER = (
    "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: keep-alive\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One request: what (auth, model, metrics, upload, beat, put), when it came and was answered, its body's size."""

    what: str
    came: float
    answered: float
    size: int
    epochs: int


@dataclass(slots=True)
class _Log:
    """What the hub has seen, shared by its threads."""

    seen: list[tuple[str, float, float, int, int]] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def note(self, *seen: Any) -> None:
        with self.news:
            self.seen.append(seen)
            self.news.notify_all()

    def tell(self, question: str) -> bytes:
        asked = parse_qs(urlsplit(question).query)
        what, count = asked.get("what", [""])[0], int(asked.get("count", ["0"])[0])
        with self.news:
            self.news.wait_for(lambda: sum(each[0] == what for each in self.seen) >= count, _PATIENCE)
            told = json.dumps(self.seen).encode()
            if "clear" in asked:
                self.seen.clear()
        return told


class Hub:
    """The parent's end: starts the process, knows its address, asks what it has seen."""

    def __init__(self) -> None:
        self.url = ""
        self._port = 0

    def seen(self, what: str = "", count: int = 0, *, clear: bool = False) -> list[Seen]:
        """Every request since the last clearing, once `count` of a kind were answered."""
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
            return  # the client went away


def _exchange(connection: socket.socket, buffer: memoryview, log: _Log) -> bool:
    """One request and its answer; whether there was one."""
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
        _answer(connection, log.tell(path))
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
    _answer(connection, _word(what), "200 OK" if framed else "400 Bad Request")
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


def _answer(connection: socket.socket, body: bytes, status: str = "200 OK") -> None:
    connection.sendall(_ANSWER.format(status, len(body)).encode() + body)


if __name__ == "__main__":
    main()
