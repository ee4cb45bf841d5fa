"""A raw-socket server that says, byte for byte, what it is told to say next. One thread, many connections."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torture.answers import Answer

_LATE = 0.02


@dataclass(slots=True)
class _Line:
    """One connection: what has been read of the next request, and what is still to be said to the last one."""

    socket: socket.socket
    read: bytes = b""
    late: bytes = b""
    late_at: float = float("inf")


class ScriptedPeer:
    """Answers each request with what `next` holds at that moment; keeps only what it must not have heard.

    `said` is set when an answer has been said, and its connection left as it was to be. `requests` and `connections`
    count. `suspects` are the requests in which `secret` did not stand exactly once,
    in the field `x-api-key`.
    """

    def __init__(self, secret: bytes) -> None:
        self.next: Answer | None = None
        self.said = threading.Event()
        self.requests = self.connections = 0
        self.suspects: list[bytes] = []
        self._secret = secret
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._looks = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="scripted-peer", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._looks.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(10)
        for key in list(self._looks.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._looks.close()

    def _serve(self) -> None:
        waiting: list[_Line] = []
        while not self._ended.is_set():
            found = self._looks.select(0.005 if waiting else 0.1)
            for key, _ in found:
                if key.data is None:
                    connection, _ = self._listener.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.connections += 1
                    self._looks.register(connection, selectors.EVENT_READ, _Line(connection))
                    continue
                try:
                    self._hear(key.data)
                except OSError:
                    self._drop(key.data)
                if key.data.late:
                    waiting.append(key.data)
            now = time.monotonic()
            for line in waiting:
                if line.late and now >= line.late_at:
                    self._say_late(line)
            waiting = [line for line in waiting if line.late]

    def _hear(self, line: _Line) -> None:
        block = line.socket.recv(1 << 20)
        if not block:
            self._drop(line)
            return
        line.read += block
        head, end, body = line.read.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        request, line.read = line.read, b""
        self.requests += 1
        if request.count(self._secret) != 1 or b"\r\nx-api-key: " + self._secret not in request:
            self.suspects.append(request)
        self._say_late(line)
        assert self.next is not None, "a request that nobody sent"
        try:
            self._say(line, self.next)
        finally:
            self.said.set()

    def _say(self, line: _Line, answer: Answer) -> None:
        line.socket.sendall(answer.data)
        if answer.ending == "fin":
            line.socket.shutdown(socket.SHUT_WR)
        elif answer.ending == "reset":
            line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._drop(line)
        elif answer.late:
            line.late, line.late_at = answer.late, time.monotonic() + _LATE

    def _say_late(self, line: _Line) -> None:
        late, line.late = line.late, b""
        if late:
            with contextlib.suppress(OSError):
                line.socket.sendall(late)

    def _drop(self, line: _Line) -> None:
        line.late = b""
        with contextlib.suppress(KeyError, ValueError):
            self._looks.unregister(line.socket)
        line.socket.close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
