"""The sandbox's server: services on one port of this machine, which store what they receive and fail on request.

Promises: it listens on the loopback unless another address is given; after `stop` nothing more is stored and
nothing is listening; a later `start` on the same folder, by any process, restores everything. It has no TLS. It knows
no protocol: its services define paths, keys and shapes.
"""

from __future__ import annotations

import hmac
import logging
import shutil
import socket
import socketserver
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hubqueue.domain.errors import ConfigError
from hubqueue.sandbox.archive import Archive
from hubqueue.sandbox.connection import Connection
from hubqueue.sandbox.faults import Faults
from hubqueue.sandbox.guard import is_loopback
from hubqueue.sandbox.request import RequestRecord
from hubqueue.sandbox.response import PLAIN
from hubqueue.sandbox.routes import Route
from hubqueue.sandbox.service import Service

_STOP_GRACE = 5.0
_MOST_CONNECTIONS = 1000
_log = logging.getLogger("hubqueue.sandbox")


class Server:
    """Services over real sockets; see docs/sandbox.md.

    `data` is the folder for everything it stores (None: a temporary folder, deleted with this object). `port` 0 takes
    a free port at the first start and keeps it. `keys` are the API keys it accepts (empty: any non-empty key). `faults`
    are rules of `hubqueue.sandbox.faults`; `seed` seeds their random generator. `latency` (seconds) delays each request
    before it is carried out. Each of the `services` belongs to this server alone. Raises `ConfigError` for an invalid
    rule.
    """

    def __init__(
        self,
        services: Sequence[Service],
        data: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        keys: tuple[str, ...] = (),
        faults: Sequence[str] = (),
        latency: float = 0.0,
        honour_idempotency: bool = True,
        seed: int = 0,
    ) -> None:
        events = {event: kind for each in services for event, kind in each.events.items()}
        self._faults = Faults(faults, seed=seed, events=events)
        self._services = tuple(services)
        self._host = host
        self._port = port
        self._keys = tuple(key.encode() for key in keys)
        self._latency = latency
        self._honour_idempotency = honour_idempotency
        self._forget_data: Callable[[], Any] = lambda: None
        if data is None:
            data = Path(tempfile.mkdtemp(prefix="hubqueue-sandbox-"))
            self._forget_data = weakref.finalize(self, shutil.rmtree, data, ignore_errors=True)
        self._archive = Archive(Path(data), self._services)
        for service in self._services:
            service.attach(self._archive, self._accepts)
        self._listener: Listener | None = None
        self._stopped = threading.Event()

    def _accepts(self, key: str) -> bool:
        given = key.encode("utf-8", "replace")
        if not self._keys:
            return bool(given)
        return any(hmac.compare_digest(given, each) for each in self._keys)

    # --- start and stop

    def start(self) -> Self:
        """Listen, and serve from a background thread. Does nothing if it is already running.

        Raises `ConfigError` if the address is in use or the data folder cannot be used.
        """
        if self._listener is not None:
            return self
        self._archive.open()
        try:
            listener = Listener(
                self._host,
                self._port,
                self._archive,
                self._services,
                self._faults,
                latency=self._latency,
                honour_idempotency=self._honour_idempotency,
                example_key=self.example_key,
            )
        except OSError as error:
            self._archive.close()
            raise ConfigError(
                (f"cannot listen on {self._host} port {self._port}: {error.strerror or error}",),
                hint="give a free port, or 0 to take any",
            ) from error
        self._port = listener.server_address[1]
        self._listener = listener
        self._stopped.clear()
        serve = threading.Thread(target=listener.serve_forever, args=(0.05,), name="sandbox", daemon=True)
        serve.start()
        _log.info("the sandbox listens on %s and keeps its data in %s", self.url, self._archive.folder)
        return self

    def serve_forever(self) -> None:
        """Start unless it is running; return after a call of `stop`. KeyboardInterrupt stops it too."""
        self.start()
        try:
            self._stopped.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        """Close every connection and the port. What it stored can still be read. Does nothing if stopped."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.stop()
        self._archive.close()
        self._stopped.set()
        _log.info("the sandbox has stopped")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.stop()
        self._forget_data()

    @property
    def url(self) -> str:
        """The API root for a client. With `port=0` it is known after the first start."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - it is what a person asked for
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def port(self) -> int:
        """The port; 0 before the first start if no port was given."""
        return self._port

    @property
    def services(self) -> Sequence[Service]:
        """The services on its port."""
        return self._services

    @property
    def example_key(self) -> str:
        """The API key for examples: one that is accepted, or `KEY` if only certain keys are."""
        return "KEY" if self._keys else "sandbox-key"

    @property
    def data(self) -> Path:
        """The folder with everything it stores."""
        return self._archive.folder

    # --- injected faults

    def fail(self, rule: str) -> None:
        """Add a fault rule. Raises `ConfigError` for an invalid rule."""
        self._faults.add(rule)

    def heal(self) -> None:
        """Remove all rules. A silence that has begun continues."""
        self._faults.clear()

    # --- what it has received

    @property
    def requests(self) -> list[RequestRecord]:
        """Every request of the protocols (the last 100,000), in the order of their request lines. Copies."""
        return self._archive.requests()

    def wait_until(self, true: Callable[[], bool], *, timeout: float = 60.0) -> bool:
        """Wait for a condition, which is evaluated after each change. False after `timeout` (s)."""
        with self._archive.changed:
            return self._archive.changed.wait_for(true, timeout)


class Listener(ThreadingHTTPServer):
    """The listening socket, and a thread for each connection; `stop` ends them all."""

    daemon_threads = True
    # A burst of reconnecting clients must not meet a full queue.
    request_queue_size = 512

    def __init__(
        self,
        host: str,
        port: int,
        archive: Archive,
        services: Sequence[Service],
        faults: Faults,
        *,
        latency: float,
        honour_idempotency: bool,
        example_key: str,
    ) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.archive = archive
        # At another address the sandbox is reached under names that only its user knows.
        self.loopback_only = is_loopback(host)
        self.services = services
        self.faults = faults
        self.latency = latency
        self.honour_idempotency = honour_idempotency
        self.example_key = example_key
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__((host, port), Connection)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}"

    def server_bind(self) -> None:
        # The base class resolves its own name, which may wait for a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def route(self, method: str, path: str) -> Route:
        """The route of the service that has this path; if no service has it, the refusal of the first."""
        routes = [service.route(method, path) for service in self.services] or [Route(PLAIN)]
        return min(routes, key=lambda route: (route.take is None, route.status != 405))

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= _MOST_CONNECTIONS:
            _log.warning("more than %d connections at once: one is refused", _MOST_CONNECTIONS)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def opened(self, connection: socket.socket) -> None:
        """Register a connection that is being served. Raises OSError while the server stops."""
        with self._changed:
            if self.stopping.is_set():
                raise ConnectionAbortedError("stopping")
            self._open.add(connection)

    def forget(self, connection: socket.socket) -> None:
        """Stop tracking a connection: its handler closes it."""
        with self._changed:
            self._open.discard(connection)

    def ended(self, connection: socket.socket) -> None:
        """Note that the handler of a connection has returned."""
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop listening, end every connection, and wait (at most 5 s) until their handlers have returned."""
        self.shutdown()
        self.server_close()
        with self._changed:
            self.stopping.set()
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the client closed it first
            if not self._changed.wait_for(lambda: not self._open, timeout=_STOP_GRACE):
                _log.warning("%d connections are still being closed", len(self._open))

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):
            _log.error("a request could not be handled", exc_info=error)
