"""Connections that report to the watch of an exchange: the sockets under `requests`.

The watch knows the live socket, when the request leaves, and how much of it has left. The dialogue with a proxy before
that is not part of the request. `framing.py` reads the response.

Promises that no logger and no exception of these libraries sees a key or the query of a signed URL, at any level: they
know only the path of the request, and the connection appends the query. `debuglevel` of `http.client`, which prints the
head of every request, has no effect on these connections.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from hubqueue.destinations.wire.framing import WholeResponse
from hubqueue.destinations.wire.watchdog import Watch

# In seconds: how long a socket may take for what it has already accepted. Only the watch knows whether bytes move.
SLOWEST_DRAIN = 3600.0
# A response may come after an hour: the peer's machine is asked every minute, and networks forget no silent connection.
_KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
_KEEPALIVE += [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 30), ("TCP_KEEPCNT", 6))
    if hasattr(socket, name)
]


class _Current(threading.local):
    """The exchange that this thread is running."""

    watch: Watch | None = None
    on_start: Callable[[], None] | None = None
    target: str | None = None  # path and query, if there is a query


CURRENT = _Current()


class Watched:
    """The common part of both connection classes."""

    sock: Any
    piece: int
    debuglevel = 0
    doomed = False  # not to be kept: it may lead to the wrong host

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
            # The head of the request, in one piece. From here on the watch limits the sending: the socket's own
            # timeout is the connect timeout, and would end a slow upload.
            start, CURRENT.on_start = CURRENT.on_start, None
            watch.opened(self.sock, ready=True)
            start()
            self.sock.settimeout(max(4 * watch.window, SLOWEST_DRAIN))
            watch.sending()
            super().send(data)  # type: ignore[misc]
            if not watch.size:
                watch.awaiting_response()
            return
        left = memoryview(data)
        while left:
            count = self.sock.send(left[: self.piece])
            watch.sent(count)
            left = left[count:]


class _Plain(Watched, HTTPConnection):
    piece = 1 << 20  # the socket takes as much as its buffer has room for
    response_class = WholeResponse


class _Secure(Watched, HTTPSConnection):
    piece = 128 * 1024  # sent as a whole, so small enough to see the progress of a slow peer in time
    response_class = WholeResponse


class _Choosy:
    """Closes a doomed connection when it is returned: the next request resolves the name and connects again."""

    def _put_conn(self, connection: Any) -> None:
        if connection is not None and connection.doomed:
            connection.close()
            connection = None
        super()._put_conn(connection)  # type: ignore[misc]


class _PlainPool(_Choosy, HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(_Choosy, HTTPSConnectionPool):
    ConnectionCls = _Secure


_OPTIONS = [*HTTPConnection.default_socket_options, *_KEEPALIVE]
_POOLS = {"http": _PlainPool, "https": _SecurePool}


class WatchedAdapter(HTTPAdapter):
    """An adapter of `requests` with these connections. It does not retry: the outbox does."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, socket_options=_OPTIONS)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def request_url(self, request: Any, proxies: Any) -> str:
        """The path (for a proxy: the address) without its query, which the connection appends."""
        target = super().request_url(request, proxies)
        shown, query, _ = target.partition("?")
        CURRENT.target = target if query else None
        return shown

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options, socket_options=_OPTIONS)
        manager.pool_classes_by_scheme = _POOLS
        return manager
