"""A raw-socket server that sends scripted responses, byte for byte. One thread, many connections."""

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
class _Connection:
    """One connection: the bytes read of the next request, and the late bytes of the last response."""

    socket: socket.socket
    read: bytes = b""
    late: bytes = b""
    late_at: float = float("inf")


class ScriptedPeer:
    """Responds to each request with the current `next`.

    `sent` is set after a response was sent and its connection left in the scripted state. `requests` and `connections`
    count. `suspects` are the requests that did not have `secret` exactly once, in the field `x-api-key`.
    """

    def __init__(self, secret: bytes) -> None:
        self.next: Answer | None = None
        self.sent = threading.Event()
        self.requests = self.connections = 0
        self.suspects: list[bytes] = []
        self._secret = secret
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="scripted-peer", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(10)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _serve(self) -> None:
        waiting: list[_Connection] = []
        while not self._ended.is_set():
            found = self._selector.select(0.005 if waiting else 0.1)
            for key, _ in found:
                if key.data is None:
                    connection, _ = self._listener.accept()
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.connections += 1
                    self._selector.register(connection, selectors.EVENT_READ, _Connection(connection))
                    continue
                try:
                    self._receive(key.data)
                except OSError:
                    self._drop(key.data)
                if key.data.late:
                    waiting.append(key.data)
            now = time.monotonic()
            for link in waiting:
                if link.late and now >= link.late_at:
                    self._send_late(link)
            waiting = [link for link in waiting if link.late]

    def _receive(self, link: _Connection) -> None:
        block = link.socket.recv(1 << 20)
        if not block:
            self._drop(link)
            return
        link.read += block
        head, end, body = link.read.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        request, link.read = link.read, b""
        self.requests += 1
        if request.count(self._secret) != 1 or b"\r\nx-api-key: " + self._secret not in request:
            self.suspects.append(request)
        self._send_late(link)
        assert self.next is not None, "an unexpected request"
        try:
            self._send(link, self.next)
        finally:
            self.sent.set()

    def _send(self, link: _Connection, answer: Answer) -> None:
        link.socket.sendall(answer.data)
        if answer.ending == "fin":
            link.socket.shutdown(socket.SHUT_WR)
        elif answer.ending == "reset":
            link.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._drop(link)
        elif answer.late:
            link.late, link.late_at = answer.late, time.monotonic() + _LATE

    def _send_late(self, link: _Connection) -> None:
        late, link.late = link.late, b""
        if late:
            with contextlib.suppress(OSError):
                link.socket.sendall(late)

    def _drop(self, link: _Connection) -> None:
        link.late = b""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.socket)
        link.socket.close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
