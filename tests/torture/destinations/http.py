"""The example server of the open protocol. No byte that it has stated to have may be sent again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from http_stage import free_port, http_environ, start_server
from stage import kill
from torture.destinations.tap import Seen
from torture.destinations.target import KIB, MIB, Batch, Site, Target, There, rates
from torture.destinations.training import Sizes

from hubqueue.destinations.http.upload import Uploads
from hubqueue.testing.conformance.service import Received

# In bytes: a smaller file is sent whole each time. And what the server may lose of a body that breaks off.
_SMALL, _LOST = 16 * KIB, 256 * KIB
_START = re.compile(r"bytes ([0-9]+)-")


class ServerSite(Site):
    """The runs of one round on the server."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self._folder = url, folder

    def environ(self, home: Path, url: str) -> dict[str, str]:
        return http_environ(home, url, **rates("lab"))

    def there(self, seen: Sequence[Seen]) -> There:
        found = There(runs={each: self._run(self._folder / each) for each in _runs(seen)})
        found.batches = {run: self._batches(self._folder / run) for run in found.runs}
        puts = [each for each in seen if each.method == "PUT" and each.size > _SMALL]
        found.sent, found.again = len(puts), sent_again(seen)
        folders = (self._folder / run for run in found.runs)
        found.left = [str(path) for folder in folders for path in folder.rglob("*.part")]
        return found

    def clear(self, seen: Sequence[Seen]) -> None:
        for run in _runs(seen):
            shutil.rmtree(self._folder / run)

    def _batches(self, run: Path) -> list[Batch]:
        files = sorted(run.glob("metrics/*.json"), key=lambda each: each.stat().st_mtime_ns)
        batches = (json.loads(each.read_bytes())["metrics"] for each in files)
        return [[(str(each["epoch"]), each["values"]) for each in batch] for batch in batches]

    def _run(self, run: Path) -> Received:
        manifests = [json.loads(each.read_bytes()) for each in run.glob("manifest/*.json")]
        state = json.loads((run / "run.json").read_bytes())["state"]
        return Received(
            metrics=[each for batch in self._batches(run) for each in batch],
            checkpoints=[
                {
                    each["path"]: (run / "files" / manifest["folder"] / each["path"]).read_bytes()
                    for each in manifest["files"]
                }
                for manifest in manifests
            ],
            ends=[] if state == "running" else [state],
        )


def _runs(seen: Sequence[Seen]) -> set[str]:
    """The ids of the runs that were begun."""
    begun = (each for each in seen if each.method == "POST" and each.target == "/runs" and each.is_done)
    return {json.loads(each.body)["id"] for each in begun}


def sent_again(seen: Sequence[Seen]) -> list[str]:
    """The bodies that begin before what the server had of their file."""
    again = []
    for number, call in enumerate(seen):
        if call.method != "PUT" or call.size <= _SMALL:
            continue
        found = _START.match(call.headers.get("content-range", ""))
        start, had, stated = int(found[1]) if found else 0, 0, False
        for earlier in seen[:number]:
            if earlier.target != call.target or not 0 < earlier.ended < call.began:
                continue
            if earlier.method == "HEAD" and earlier.is_done:
                had, stated = int(earlier.response.get("upload-offset", 0)), True
            elif earlier.method == "PUT":
                begun = _START.match(earlier.headers.get("content-range", ""))
                end = (int(begun[1]) if begun else 0) + earlier.sent
                had, stated = max(had, end if earlier.is_done else end - _LOST), False
        if start < had or (stated and start != had):
            again.append(f"{call.target}: from {start}, the server had {had}")
    return again


def _forget_offsets() -> None:
    """The defect of a control: the server is not asked how far it came."""
    Uploads._offset = lambda *_given: 0  # type: ignore[method-assign, assignment]


class OwnServer(Target):
    type = "http"
    sizes = Sizes(20 * KIB, (2 * MIB, 4 * MIB), folders=True)
    requests = 14
    uploads = r"^PUT .*/files/"
    defects: ClassVar = {"the server is not asked for the offset": ("again", _forget_offsets)}

    def __init__(self) -> None:
        self._url, self._folder = "", Path()

    def missing(self) -> str | None:
        try:
            import starlette  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            return f"{error.name} is not installed"
        return None

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        port = free_port()
        self._url, self._folder = f"http://127.0.0.1:{port}", folder / "runs"
        server = start_server(self._folder, port)
        try:
            yield
        finally:
            kill(server)

    @contextmanager
    def site(self, folder: Path) -> Iterator[Site]:
        yield ServerSite(self._url, self._folder)
