"""A stranger's package, made from the page that shows how, and the small service that it sends to."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import zygote
from stage import ROOT, Process, environ_of, hubqueue, python

from hubqueue.config import registry

PAGE = ROOT / "docs" / "destinations.md"
ID, SECRET = "id-of-the-collector", "secret-of-the-collector"


def install(folder: Path) -> Path:
    """Put the package of the page into a folder, as pip would; the folder."""
    page = PAGE.read_text()
    for name, code in re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    (project,) = re.findall(r"^```toml\n(\[project\..*?)^```", page, re.MULTILINE | re.DOTALL)
    (points,) = tomllib.loads(project)["project"]["entry-points"].items()
    group, names = points
    info = folder / "hubqueue_collector-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hubqueue-collector\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in names.items())
    )
    return folder


@contextmanager
def in_this_process(folder: Path) -> Iterator[Path]:
    """An installed package, for this process and those that it starts."""
    sys.path.insert(0, str(folder))
    forget_types()
    try:
        yield folder
    finally:
        uninstall(folder)


def uninstall(folder: Path) -> None:
    """Remove the package from this process."""
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    forget_types()


def forget_types() -> None:
    """Look for the package again, and import it again."""
    importlib.invalidate_caches()
    registry.declaration.cache_clear()
    registry._entry_points.cache_clear()
    for name in [each for each in sys.modules if each.startswith("hubqueue_collector")]:
        del sys.modules[name]


def page_tests() -> str:
    """The tests of the package, as the page shows them."""
    (code,) = re.findall(
        r"^```python\n# test_collector.py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return str(code)


def break_package(folder: Path, line: str = "import a_library_that_is_not_there") -> None:
    """Let the package fail when it is imported."""
    module = folder / "hubqueue_collector" / "__init__.py"
    module.write_text(f"{line}\n{module.read_text()}")


def configure(home: Path, url: str, *more: str) -> None:
    """The table of the page in the home's configuration, with another address."""
    (text,) = re.findall(r"^```toml\n# config.toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    text = text.replace("https://collector.example.org", url)
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "config.toml").write_text("\n".join([*more, text]))


def plugin_environ(home: Path, folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a process that has the package, and whose runs go to `lab`."""
    path = {"PYTHONPATH": f"{ROOT}:{folder}", "HUBQUEUE_DEFAULT_DESTINATION": "lab"}
    return environ_of(home, **{**path, **settings})


def plugin_python(code: str, environ: Mapping[str, str], *arguments: str) -> Process:
    """As `python`, in the environment of `plugin_environ`. A fork gets its path as a new process would."""
    if not zygote.suits(_without_path(environ)):
        return python(code, environ, *arguments)
    return zygote.Forked(
        environ, *arguments, code=_path(environ) + code, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def plugin_hubqueue(environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `hubqueue`, in the environment of `plugin_environ`."""
    if not zygote.suits(_without_path(environ)):
        return hubqueue(environ, *arguments)
    command = (
        _path(environ) + "import runpy; runpy.run_module('hubqueue', run_name='__main__', alter_sys=True)"
    )
    process = zygote.Forked(
        environ,
        *arguments,
        code=command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(240)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(["hubqueue", *arguments], process.wait(), out or "", err or "")


def _without_path(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name != "PYTHONPATH"}


def _path(environ: Mapping[str, str]) -> str:
    return f"import sys; sys.path[1:1] = {environ['PYTHONPATH'].split(os.pathsep)}\n"


class Collector:
    """The service of the page, on loopback. `status` is what it responds instead, and `says` its message.

    With `fails_after`, the request after that many files of a checkpoint gets a 503; `failed` counts such requests. With
    `waits_at`, the one after that many sets `reached` and waits for `go_on`.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.status: int | None = None
        self.says = ""
        self.fails_after: int | None = None
        self.failed = 0
        self.waits_at: int | None = None
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.key = (ID, SECRET)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def taken(self) -> dict[str, Any]:
        """What was delivered: by the path below the run, the body (JSON where it is some)."""
        found: dict[str, Any] = {}
        for path, _, body in self.requests:
            below = path.partition("/runs/")[2].partition("/")[2] or "start"
            found[unquote(below)] = body if below.startswith("checkpoints/") else json.loads(body)
        return found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if len(body) < int(self.headers["Content-Length"]):
                    return  # the client gave up
                shown = (self.headers["X-Id"], self.headers["X-Secret"])
                status = collector.status or (200 if shown == collector.key else 401)
                if collector.fails_after is not None and "/checkpoints/" in self.path:
                    collector.fails_after -= 1
                    if collector.fails_after < 0:
                        status, collector.fails_after = 503, None
                        collector.failed += 1
                if collector.waits_at is not None and "/checkpoints/" in self.path:
                    collector.waits_at -= 1
                    if collector.waits_at < 0:
                        collector.waits_at = None
                        collector.reached.set()
                        collector.go_on.wait(60)
                        return
                if status == 200 and "/runs/" in self.path:
                    collector.requests.append((self.path, dict(self.headers), body))
                said = {"received": True} if status == 200 else {"message": collector.says}
                answer = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        return Handler

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
