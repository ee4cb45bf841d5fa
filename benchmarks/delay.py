"""A proxy that delays each request by a fixed time, and counts the bytes of bodies on their way to the server.

Bodies are spliced from socket to socket by the kernel, so the proxy is not what limits an upload.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
_MOST_HEAD = 64 * 1024
_PIPE = 1 << 20


class Delay:
    """Listens on a loopback port before the server at `url`. `seconds` is the delay of a request, `passed` is in bytes."""

    def __init__(self, url: str, seconds: float = 0.0) -> None:
        target = urlsplit(url)
        self._target, self._seconds = (target.hostname or "", target.port or 80), seconds
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._lock, self._pause = threading.Lock(), threading.Event()
        self.passed = 0

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._target) as server:
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_return, args=(server, client), daemon=True).start()
            with _Pipe() as pipe, suppress(OSError):
                while self._request(client, server, pipe):
                    pass
                server.shutdown(socket.SHUT_WR)

    def _request(self, client: socket.socket, server: socket.socket, pipe: _Pipe) -> bool:
        """Pass one request on. Returns whether there was one, whole."""
        start = b""
        while b"\r\n\r\n" not in start:
            more = client.recv(_MOST_HEAD)
            if not more or len(start) > _MOST_HEAD:
                return False
            start += more
        head, _, body = start.partition(b"\r\n\r\n")
        found = _LENGTH.search(head)
        left = int(found[1]) if found else 0
        assert len(body) <= left, "a client waits for each response"
        self._pause.wait(self._seconds)
        server.sendall(start)
        self._count(len(body))
        left -= len(body)
        while left:
            count = pipe.move(client, server, min(left, _PIPE))
            if not count:
                return False
            self._count(count)
            left -= count
        return True

    def _count(self, count: int) -> None:
        with self._lock:
            self.passed += count

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()


class _Pipe:
    """The kernel's buffer between two sockets."""

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._read)
        os.close(self._write)

    def move(self, source: socket.socket, target: socket.socket, most: int) -> int:
        """Move some bytes, at most `most`; 0 at the end."""
        count = left = os.splice(source.fileno(), self._write, most)
        while left:
            left -= os.splice(self._read, target.fileno(), left)
        return count


def _return(server: socket.socket, client: socket.socket) -> None:
    with suppress(OSError):
        while block := server.recv(_MOST_HEAD):
            client.sendall(block)
        client.shutdown(socket.SHUT_WR)
