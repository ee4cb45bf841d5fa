"""A raw-socket server for tests of the wire: it reads a request, then a test controls the connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

GOOD = b'{"success": true, "message": "ok", "data": {"id": "abcdefghij0123456789", "agentId": "agent-1"}}'


def answer(body: bytes = GOOD, *, status: str = "200 OK", headers: str = "") -> bytes:
    """A complete HTTP response."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


class Peer:
    """Calls `act(connection, request)` for each request that it has read completely; stores the requests."""

    def __init__(self, act: Callable[[socket.socket, bytes], None], *, read_body: bool = True) -> None:
        self._act, self._read_body = act, read_body
        self.requests: list[bytes] = []
        self.connections = 0
        self.done = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.done.set()
        for each in (self._listener, *self._open):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                each.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            while request := self._read(connection):
                self.requests.append(request)
                self._act(connection, request)
        except OSError:
            return
        finally:
            connection.close()

    def _read(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            block = connection.recv(65536)
            if not block:
                return b""
            data += block
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            ),
            0,
        )
        while self._read_body and len(body) < length:
            block = connection.recv(1 << 20)
            if not block:
                return b""
            body += block
        return head + b"\r\n\r\n" + body
