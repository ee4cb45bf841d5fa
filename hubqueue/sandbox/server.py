"""The sandbox itself: HUB and Platform on one port of this machine, which keep what they get and misbehave when told.

Promises: it listens on the loopback unless another address is given; after `stop` nothing more is stored and
nothing is listening; a later `start` on the same folder, by whatever process, has everything again. Refuses:
TLS, and anything that the real ones need accounts, datasets or GPUs for.
"""

from __future__ import annotations

import logging
import shutil
import socket
import socketserver
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hubqueue.domain.errors import ConfigError
from hubqueue.sandbox.archive import Archive
from hubqueue.sandbox.budget import Budget
from hubqueue.sandbox.connection import Connection
from hubqueue.sandbox.faults import Faults
from hubqueue.sandbox.guard import is_loopback
from hubqueue.sandbox.hub import Hub
from hubqueue.sandbox.model import Model
from hubqueue.sandbox.platform import Platform
from hubqueue.sandbox.records import BeatRecord, CheckpointRecord, RequestRecord, RunRecord
from hubqueue.sandbox.routes import Route, Service
from hubqueue.sandbox.tracking import copied

_STOP_GRACE = 5.0
_MOST_CONNECTIONS = 1000
_log = logging.getLogger("hubqueue.sandbox")


class Sandbox:
    """A local hub over real sockets; see docs/sandbox.md.

    `data` is where it keeps everything (None: a temporary folder that goes with this object). `port` 0 takes
    a free one at the first start and stays with it. `keys` are the API keys it accepts (none: any that is not
    empty). `faults` are rules of `hubqueue.sandbox.faults`, their dice thrown from `seed`. `latency` is in
    seconds, waited before each request is carried out. Platform's upload URLs can be used for `url_lifetime`
    seconds; the budgets are for each of its keys (None: any number). Raises `ConfigError` for a rule that means
    nothing.
    """

    def __init__(
        self,
        data: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        keys: tuple[str, ...] = (),
        faults: Sequence[str] = (),
        latency: float = 0.0,
        honour_idempotency: bool = True,
        seed: int = 0,
        url_lifetime: float = 900.0,
        requests_per_minute: int | None = None,
        uploads_per_minute: int | None = None,
    ) -> None:
        self._faults = Faults(faults, seed=seed)
        self._host = host
        self._port = port
        self._latency = latency
        self._forget_data: Callable[[], Any] = lambda: None
        if data is None:
            data = Path(tempfile.mkdtemp(prefix="hubqueue-sandbox-"))
            self._forget_data = weakref.finalize(self, shutil.rmtree, data, ignore_errors=True)
        self._archive = Archive(data)
        self._services = (
            Hub(self._archive, tuple(keys), honour_idempotency=honour_idempotency),
            Platform(
                self._archive,
                tuple(keys),
                honour_idempotency=honour_idempotency,
                url_lifetime=timedelta(seconds=url_lifetime),
                requests=Budget(requests_per_minute),
                uploads=Budget(uploads_per_minute),
            ),
        )
        self._server: HubServer | None = None
        self._stopped = threading.Event()

    # --- its life

    def start(self) -> Self:
        """Listen, and serve from a background thread. Does nothing when it is already running.

        Raises `ConfigError` when the address is taken or the data folder cannot be used.
        """
        if self._server is not None:
            return self
        self._archive.open()
        try:
            server = HubServer(
                self._host, self._port, self._archive, self._services, self._faults, self._latency
            )
        except OSError as error:
            self._archive.close()
            raise ConfigError(
                (f"cannot listen on {self._host} port {self._port}: {error.strerror or error}",),
                hint="give a free port, or 0 to take any",
            ) from error
        self._port = server.server_address[1]
        self._server = server
        self._stopped.clear()
        serve = threading.Thread(target=server.serve_forever, args=(0.05,), name="sandbox", daemon=True)
        serve.start()
        _log.info("the sandbox listens on %s and keeps its data in %s", self.url, self._archive.folder)
        return self

    def serve_forever(self) -> None:
        """Start unless it is running; return when somebody calls `stop`. KeyboardInterrupt stops it too."""
        self.start()
        try:
            self._stopped.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        """Close every connection and the port; what was kept can still be read. Does nothing when stopped."""
        server, self._server = self._server, None
        if server is None:
            return
        server.stop()
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
        """The API root to give to a client. With `port=0` it is known after the first start."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - it is what a person asked for
        return f"http://[{host}]:{self._port}" if ":" in host else f"http://{host}:{self._port}"

    @property
    def port(self) -> int:
        """The port; 0 until the first start when none was given."""
        return self._port

    @property
    def data(self) -> Path:
        """The folder with everything it keeps."""
        return self._archive.folder

    # --- misbehaving

    def fail(self, rule: str) -> None:
        """From now on, misbehave by this rule too. Raises `ConfigError` for a rule that means nothing."""
        self._faults.add(rule)

    def heal(self) -> None:
        """Take every rule away. A silence that has begun goes on."""
        self._faults.clear()

    # --- what it has

    @property
    def models(self) -> list[str]:
        """The ids of the models, oldest first."""
        return [model.id for model in self._archive.models()]

    def model(self, model_id: str) -> dict[str, Any]:
        """The model object as a client reads it. Raises KeyError for an unknown id."""
        return self._known(model_id).document(self.url)

    def metrics(self, model_id: str) -> dict[int, dict[str, Any]]:
        """The stored metrics, parsed, by epoch. Raises KeyError for an unknown id."""
        with self._archive.changed:
            return self._known(model_id).read_metrics()

    def metrics_texts(self, model_id: str) -> dict[str, str]:
        """The stored metrics exactly as they were sent, by epoch as it was sent."""
        with self._archive.changed:
            return dict(self._known(model_id).metrics)

    def checkpoints(self, model_id: str) -> list[CheckpointRecord]:
        """Every stored upload, in the order they were stored."""
        with self._archive.changed:
            return list(self._known(model_id).checkpoints)

    def beats(self, model_id: str) -> list[BeatRecord]:
        """Every heartbeat, in the order they were stored."""
        with self._archive.changed:
            return list(self._known(model_id).beats)

    @property
    def runs(self) -> list[str]:
        """The model ids of the trainings on Platform, oldest first."""
        return [run.model_id for run in self._archive.runs()]

    def run(self, model_id: str) -> RunRecord:
        """A training on Platform, with all that it sent. A copy. Raises KeyError for an unknown id."""
        with self._archive.changed:
            run = self._archive.run(model_id)
            if run is None:
                raise KeyError(model_id)
            return copied(run)

    def cancel(self, model_id: str) -> None:
        """Cancel a training on Platform: every answer to it says so from now on. KeyError for an unknown id."""
        if not self._archive.cancel(model_id):
            raise KeyError(model_id)

    @property
    def requests(self) -> list[RequestRecord]:
        """Every request of the protocol (the last 100,000), by request line. Copies: they do not change."""
        return self._archive.requests()

    def wait_until(self, true: Callable[[], bool], *, timeout: float = 60.0) -> bool:
        """Wait for a condition on what it has, asked after each change. False when `timeout` (s) is over."""
        with self._archive.changed:
            return self._archive.changed.wait_for(true, timeout)

    def _known(self, model_id: str) -> Model:
        model = self._archive.model(model_id)
        if model is None:
            raise KeyError(model_id)
        return model


class HubServer(ThreadingHTTPServer):
    """The listening socket, a thread for each connection, and the way to end them all."""

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
        latency: float,
    ) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.archive = archive
        # Whoever asks for another address wants to be reached under names that only they know.
        self.loopback_only = is_loopback(host)
        self._services = services
        self.faults = faults
        self.latency = latency
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__((host, port), Connection)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}"

    def server_bind(self) -> None:
        # The base class looks its own name up, which may ask a name server and wait for it.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def route(self, method: str, path: str) -> Route:
        """The route of a request in whichever service has its path; the first one's refusal when none has."""
        routes = [service.route(method, path) for service in self._services]
        return min(routes, key=lambda route: (route.take is None, route.status != 405))

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= _MOST_CONNECTIONS:
            _log.warning("more than %d connections at once: one is refused", _MOST_CONNECTIONS)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def opened(self, connection: socket.socket) -> None:
        """A connection is being served. Refused with OSError while the server stops."""
        with self._changed:
            if self.stopping.is_set():
                raise ConnectionAbortedError("stopping")
            self._open.add(connection)

    def forget(self, connection: socket.socket) -> None:
        """Leave a connection to its handler: it is about to be closed in its own way."""
        with self._changed:
            self._open.discard(connection)

    def ended(self, connection: socket.socket) -> None:
        """The handler of a connection has returned."""
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop listening, end every connection, and wait (5 s at most) until their handlers have returned."""
        self.shutdown()
        self.server_close()
        with self._changed:
            self.stopping.set()
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the client was quicker
            if not self._changed.wait_for(lambda: not self._open, timeout=_STOP_GRACE):
                _log.warning("%d connections are still being closed", len(self._open))

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):
            _log.error("a request could not be handled", exc_info=error)
