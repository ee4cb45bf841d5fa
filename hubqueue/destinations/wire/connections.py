"""Connections that tell what they do: the sockets under `requests`.

The watch of an exchange knows the live socket, when the request leaves, and how much of it has left. What is said
to a proxy before that is no part of the request. What comes back is read by `framing.py`.

Promises that no logger and no exception of these libraries gets to see a key or the query of a signed URL, whatever
level it has: they know the request by its path, and only the connection puts the query to it. `debuglevel` of
`http.client`, which prints the head of every request, does not reach these connections.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from hubqueue.destinations.wire.framing import WholeAnswer
from hubqueue.destinations.wire.watchdog import Watch


class _Current(threading.local):
    """The exchange that this thread is carrying out."""

    watch: Watch | None = None
    on_start: Callable[[], None] | None = None
    target: str | None = None  # the path and query to ask for, where the path alone is not all of it


CURRENT = _Current()


class _Telling:
    """What both connection classes add."""

    sock: Any
    piece: int
    debuglevel = 0

    def _new_conn(self) -> socket.socket:
        connection: socket.socket = super()._new_conn()  # type: ignore[misc]
        if CURRENT.watch is not None:
            CURRENT.watch.opened(connection, ready=False)
        return connection

    def _tunnel(self) -> None:
        watch, start = CURRENT.watch, CURRENT.on_start
        CURRENT.watch = CURRENT.on_start = None
        try:
            super()._tunnel()  # type: ignore[misc]
        finally:
            CURRENT.watch, CURRENT.on_start = watch, start

    def putrequest(self, method: str, url: str, *args: Any, **options: Any) -> None:
        target, CURRENT.target = CURRENT.target, None
        super().putrequest(method, target or url, *args, **options)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        watch = CURRENT.watch
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        if watch is None:
            super().send(data)  # type: ignore[misc]
            return
        if CURRENT.on_start is not None:
            # The head of the request, in one piece. From here on the watch bounds the sending: the socket's own
            # timeout is that of the connect, and would end a slow upload.
            start, CURRENT.on_start = CURRENT.on_start, None
            watch.opened(self.sock, ready=True)
            start()
            self.sock.settimeout(4 * watch.window)
            watch.sending()
            super().send(data)  # type: ignore[misc]
            if not watch.size:
                watch.answering()
            return
        left = memoryview(data)
        while left:
            count = self.sock.send(left[: self.piece])
            watch.sent(count)
            left = left[count:]


class _Plain(_Telling, HTTPConnection):
    piece = 1 << 20  # as much as there is room for is taken
    response_class = WholeAnswer


class _Secure(_Telling, HTTPSConnection):
    piece = 128 * 1024  # taken whole, so small enough that a slow peer's progress is seen in time
    response_class = WholeAnswer


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


_POOLS = {"http": _PlainPool, "https": _SecurePool}


class TellingAdapter(HTTPAdapter):
    """An adapter of `requests` with these connections. Nothing is retried here: that is the outbox's to do."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def request_url(self, request: Any, proxies: Any) -> str:
        """The path (for a proxy: the address) without its query, which the connection puts to it."""
        target = super().request_url(request, proxies)
        shown, query, _ = target.partition("?")
        CURRENT.target = target if query else None
        return shown

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager
