"""Real MLflow servers, each version in an environment of its own, with SQLite, in a temporary folder, on loopback.

`make test-destinations` installs them. A server needs up to ten seconds to start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from stage import ROOT, wait_until

VERSIONS = ("2", "3")
_START = 120  # seconds


def environment(version: str) -> Path:
    """The folder of the environment that has this version. Skips the test if there is none."""
    found = ROOT / f".venv-mlflow-{version}"
    if not found.exists():
        pytest.skip(f"MLflow {version}.x is not installed: make test-destinations")
    return found


@dataclass
class MlflowServer:
    """A running server."""

    version: str
    url: str
    folder: Path
    headers: dict[str, str] = field(default_factory=dict)

    def log_in(self, user: str, password: str) -> None:
        """Make all further requests as this user."""
        text = b64encode(f"{user}:{password}".encode()).decode()
        self.headers["Authorization"] = f"Basic {text}"

    def may_edit(self, user: str, experiment: str) -> None:
        """Let a user add to an experiment, but not delete from it."""
        given = {"username": user, "permission": "EDIT"}
        if self.version == "2":
            self.post("experiments/permissions/create", {**given, "experiment_id": experiment})
        else:
            on = {"resource_type": "experiment", "resource_id": experiment}
            self._open("3.0/mlflow/users/permissions/grant", json.dumps(given | on).encode())

    def post(self, endpoint: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """The response of its API to a JSON object."""
        return self._open(f"2.0/mlflow/{endpoint}", json.dumps(payload).encode())

    def get(self, target: str) -> dict[str, Any]:
        """The response of its API, as `mlflow/runs/get?run_id=…`."""
        return self._open(f"2.0/{target}", None)

    def client(self, script: Path, given: object) -> Any:
        """Run a script in the environment of the server, with its own client: JSON in, and its last line is JSON."""
        done = subprocess.run(
            [environment(self.version) / "bin" / "python", script],
            input=json.dumps(given),
            env=_environ(MLFLOW_TRACKING_URI=self.url),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def _open(self, target: str, content: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/api/{target}", content)
        request.add_header("Content-Type", "application/json")
        for name, value in self.headers.items():
            request.add_header(name, value)
        with urllib.request.urlopen(request, timeout=60) as response:
            found: dict[str, Any] = json.loads(response.read())
            return found


@contextlib.contextmanager
def running(version: str, *options: str, **environ: str) -> Iterator[MlflowServer]:
    """A server of this version with further options of `mlflow server`."""
    with tempfile.TemporaryDirectory(prefix=f"mlflow-{version}-") as name, contextlib.ExitStack() as at_end:
        folder, port = Path(name), _free_port()
        url, log = f"http://127.0.0.1:{port}", at_end.enter_context((folder / "server.log").open("wb"))
        command = [
            environment(version) / "bin" / "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination"]
        process = subprocess.Popen(
            [*command, "--workers", "1", *store, folder / "artifacts", *options],
            cwd=folder,
            env=_environ(**environ),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        at_end.callback(_kill, process)
        wait_until(lambda: process.poll() is not None or _is_up(url), timeout=_START)
        assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
        yield MlflowServer(version, url, folder)


def _environ(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    return {
        **kept,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        # Jobs of 3.x, in processes of their own.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **more,
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the server and its processes: nothing of it is needed, and 3.x takes seconds for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Gateway:
    """A relay before a server, on a port of its own. It can refuse connections, and lose responses.

    `lost` is how many of the next responses to a path that ends with `lost_path` are lost, after the server has sent them.
    """

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._lock = threading.Lock()
        self.lost, self.lost_path = 0, ""
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._listener: socket.socket | None = None

    def open(self) -> None:
        """Accept connections."""
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request for each connection: the next one opens another."""
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            head = b""
            while b"\r\n\r\n" not in head and (block := client.recv(64 * 1024)):
                head += block
            first, _, rest = head.partition(b"\r\n")
            path = first.split(b" ")[1].decode().partition("?")[0] if first else ""
            with self._lock:
                is_lost = self.lost > 0 and path.endswith(self.lost_path)
                self.lost -= is_lost
            server.sendall(first + b"\r\nConnection: close\r\n" + rest)
            forward = threading.Thread(target=_pass, args=(client, server), daemon=True)
            forward.start()
            with contextlib.suppress(OSError):
                while block := server.recv(64 * 1024):
                    if not is_lost:
                        client.sendall(block)
                client.shutdown(socket.SHUT_RDWR)


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(64 * 1024):
            target.sendall(block)
