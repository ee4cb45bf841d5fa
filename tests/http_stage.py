"""A run at a server of one's own: the example server over a real socket, an outbox, a worker that a test steps.

Every request and response is compared with docs/http-protocol.yaml.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import template
import uvicorn
from protocol import Exchange, problems
from stage import PATIENCE, ROOT, ZERO, Process, environ_of, save_snapshot, wait_until
from stepping import Stepping

from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, metrics_draft
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.intake import open_run
from hubqueue.testing import FakeClock
from hubqueue.worker.closing import close_run
from hubqueue.worker.events import Fact
from hubqueue.worker.worker import Worker

TOKEN, KEY = "token-of-the-http-tests", "signing-key-of-the-http-tests"
SERVER = ROOT / "examples" / "server.py"
Message = MutableMapping[str, Any]


class Recorder:
    """The application of the example, with a record of what it received and sent.

    `responses` replaces the next responses to a method, or to a method and the last part of the path: a status, and a JSON
    object (None: an HTML page). With `cut_at`,
    the connection of the next PUT breaks after this number of bytes of its body. The responses to the next `lost`
    requests are lost after they were carried out. `instead` may respond for the application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self.exchanges: list[Exchange] = []
        self.responses: dict[str, list[tuple[int, dict[str, Any] | None]]] = {}
        self.cut_at: int | None = None
        self.lost = 0
        self.instead: Callable[[Exchange, Any, Any, Any], Awaitable[bool]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        query = scope["query_string"].decode()
        target = scope["raw_path"].decode() + (f"?{query}" if query else "")
        made = Exchange(scope["method"], target, _headers(scope["headers"]))
        for name in (scope["method"], f"{scope['method']} {scope['path'].rpartition('/')[2]}"):
            if ready := self.responses.get(name):
                await _respond(send, *ready.pop(0))
                return
        if self.instead is not None and await self.instead(made, scope, receive, send):
            return
        await self.carry_out(made, scope, receive, send)

    async def carry_out(self, made: Exchange, scope: Any, receive: Any, send: Any) -> None:
        """Let the application respond, and record both."""
        left = None
        if scope["method"] == "PUT":
            left, self.cut_at = self.cut_at, None

        async def received() -> Message:
            nonlocal left
            message: Message = await receive()
            made.is_cut |= message["type"] == "http.disconnect"
            body = message.get("body", b"")
            made.received += len(body)
            if scope["method"] != "PUT":
                made.body += body
            if left is not None:
                left -= len(body)
                if left <= 0:
                    made.is_cut = True
                    return {"type": "http.disconnect"}
            return message

        is_lost, self.lost = self.lost > 0, max(0, self.lost - 1)

        async def sent(message: Message) -> None:
            made.is_cut |= is_lost
            if made.is_cut:  # the client gets a page of a gateway instead
                more = {"status": 503} if "status" in message else {"body": b" " * len(message["body"])}
                message = {**message, **more}
            if message["type"] == "http.response.start":
                made.status, made.response_headers = message["status"], _headers(message["headers"])
            if len(made.response) < 1 << 20:
                made.response += message.get("body", b"")
            await send(message)

        self.exchanges.append(made)
        await self._app(scope, received, sent)


def _headers(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode().lower(): value.decode("latin-1") for name, value in pairs}


async def _respond(send: Any, status: int, found: dict[str, Any] | None) -> None:
    body = b"<html>a gateway</html>" if found is None else json.dumps(found).encode()
    kind = b"text/html" if found is None else b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Server:
    """The example server in a thread of this process. It can be stopped and started again at the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environ = {"RUNS_FOLDER": str(folder), "RUNS_TOKEN": TOKEN, "RUNS_KEY": KEY}
        before = {name: os.environ.get(name) for name in environ}
        os.environ.update(environ)
        try:
            spec = importlib.util.spec_from_file_location("example_server", SERVER)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self.recorder = Recorder(module.app)
        self.port = 0
        self._running: tuple[uvicorn.Server, threading.Thread] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def exchanges(self) -> list[Exchange]:
        return self.recorder.exchanges

    def start(self) -> None:
        """Listen; nothing if it does already."""
        if self._running is not None:
            return
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.recorder,  # type: ignore[arg-type]
            loop="asyncio",
            http="h11",
            lifespan="off",
            ws="none",
            log_level="critical",
            timeout_graceful_shutdown=1,
        )
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
        self._running = running, thread
        thread.start()

    def stop(self) -> None:
        """Close all connections, and listen no more."""
        if self._running is not None:
            running, thread = self._running
            self._running, running.should_exit = None, True
            thread.join(PATIENCE)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None:
            assert problems(self.exchanges) == []


@dataclass
class Stage(Stepping):
    """A home with one run, and the worker that sends for it."""

    most_steps: ClassVar[int] = 40

    outbox: Outbox
    clock: FakeClock
    folder: Path
    facts: list[Fact] = field(default_factory=list)
    run_id: str = ""

    def __post_init__(self) -> None:
        self.worker = Worker(self.outbox, emit=self.facts.append)

    def start(self, model: str = "resnet50.pt", **args: object) -> str:
        target = self.outbox.config.destination("lab")
        named = declaration("http").identify(model, target)
        self.run_id, _ = open_run(self.outbox, named, args, target)
        return self.run_id

    def log(self, *epochs: int) -> None:
        for epoch in epochs:
            self.outbox.entries.enqueue(self.run_id, metrics_draft(f'{{"loss": {epoch}.5}}', epoch))

    def save(self, content: bytes | Mapping[str, bytes], epoch: int = 0, *, final: bool = False) -> None:
        """Save a checkpoint: a file, or a folder of files."""
        path = self.folder / f"saved-{epoch}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            for name, each in content.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(each)
        made = Checkpoint(path, epoch, is_best=True, map=0.5, final=final)
        save_snapshot(self.outbox, self.run_id, made, folders=True)

    def end(self, state: RunState = RunState.FINISHED) -> None:
        close_run(self.outbox, self.run_id, state, results={"accuracy": 0.9})


def http_environ(home: Path, url: str, **settings: str) -> dict[str, str]:
    """The environment of a process whose runs go to a server, with short limits unless `settings` overrides them."""
    own = {
        "HUBQUEUE_DEFAULT_DESTINATION": "lab",
        "HUBQUEUE_DESTINATIONS__LAB__TYPE": "http",
        "HUBQUEUE_DESTINATIONS__LAB__URL": url,
        "HUBQUEUE_KEY_LAB": TOKEN,
        "HUBQUEUE_SIGNING_KEY_LAB": KEY,
    }
    return environ_of(home, **{**own, **settings})


@contextmanager
def staged(url: str, folder: Path, clock: FakeClock, **settings: str) -> Iterator[Stage]:
    """A stage that sends to a server."""
    folder.mkdir(exist_ok=True)
    if not (folder / "home").exists():
        template.lay(folder / "home")
    environ = http_environ(folder / "home", url, **settings)
    with open_outbox(folder / "home", environ={**os.environ, **environ}, clock=clock) as outbox:
        stage = Stage(outbox, clock, folder)
        assert stage.worker.start()
        try:
            yield stage
        finally:
            stage.worker.stop(ZERO)


def start_server(folder: Path, port: int) -> Process:
    """The example server in a process, by the command of its first lines."""
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "examples.server:app",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    environ = {**os.environ, "RUNS_FOLDER": str(folder), "RUNS_TOKEN": TOKEN, "RUNS_KEY": KEY}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, text=True, stderr=subprocess.PIPE)
    wait_until(lambda: process.poll() is not None or _answers(port))
    assert process.poll() is None, process.communicate()[1]
    return process


def _answers(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


class Valve:
    """A relay before a server: each connection passes `most` bytes to it, then waits. `passed` counts all of them."""

    def __init__(self, port: int, most: int) -> None:
        self._port, self._most, self._is_open = port, most, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self.passed = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def open(self) -> None:
        """Break the connections that wait, and let new ones pass everything."""
        self._is_open.set()
        for each in self._connections:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            self._connections += (client, server)
            threading.Thread(target=self._pass, args=(client, server), daemon=True).start()
            threading.Thread(target=self._return, args=(server, client), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        left = self._most
        with client, server, suppress(OSError):
            while block := client.recv(64 * 1024 if self._is_open.is_set() else min(left, 64 * 1024)):
                server.sendall(block)
                self.passed += len(block)
                left -= len(block)
                if left <= 0 and not self._is_open.is_set():
                    self._is_open.wait()
                    return

    def _return(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while block := server.recv(64 * 1024):
                client.sendall(block)
        client.close()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        self.open()
