"""The artifacts of runs, as a store of the common layout: over the proxy of an MLflow server.

The first part of an object's name is MLflow's id of the run. The rest is its path in the artifacts of that run, so people see
`checkpoints/epoch-0012/…` there. The proxy's response to an upload proves little (3.x sends none), so each stored object is
looked up in a list, with its size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from hubqueue.destinations.base import Attempt, NotThere, Outcome, RetryLater, quiet
from hubqueue.destinations.layout.store import LARGEST, Objects, Source, Stored, StoreFailed
from hubqueue.destinations.mlflow.server import (
    ARTIFACTS,
    LARGE,
    Server,
    is_proxy_off,
    message_of,
)
from hubqueue.destinations.wire.api import ApiResponse
from hubqueue.destinations.wire.body import BLOCK, Body, Bytes, File
from hubqueue.destinations.wire.exchange import Broken
from hubqueue.destinations.wire.message import phrase_of
from hubqueue.destinations.wire.waits import asked_wait
from hubqueue.domain.errors import TRY_AGAIN
from hubqueue.domain.redact import clean

PROXY_OFF = "start it with --serve-artifacts"
# MLflow refuses `#` in a path, and decodes what looks like `%41`.
_UNSAFE = re.compile(r"[#%]|~(?=23|25|7e)")
_ESCAPED = re.compile(r"~(23|25|7e)")
_ANY = {"Accept": "*/*"}
_FILE = {"Content-Type": "application/octet-stream", "Accept": "*/*"}


class Artifacts:
    """The artifacts of runs, for one attempt or one reader. Used by one thread.

    `root_of` gives the path of a run's artifacts at the proxy, by MLflow's id of the run. Lists are read once, and again
    after a change: only one attempt at a time changes the artifacts of a run.
    """

    remember: Mapping[str, str | int] = {}

    def __init__(self, server: Server, root_of: Callable[[str], str], attempt: Attempt | None = None) -> None:
        self._server, self._root_of = server, root_of
        self._attempt = attempt or quiet()
        self._lists: dict[str, dict[str, int | None]] = {}

    def create(self, name: str, content: bytes) -> bool:
        if self.stat(name) is not None:
            return False
        self.replace(name, content)
        return True

    def replace(self, name: str, content: bytes) -> None:
        self._put(name, Bytes(content), self._attempt.silent())
        found = self.stat(name)
        if found is None or found.size != len(content):
            raise _changed(name)

    def read(self, name: str) -> bytes | None:
        found = self.stat(name)
        if found is None or found.size > LARGEST:  # no record of ours has that size
            return None
        most = max(found.size, 1)
        response = self._ask("GET", self._path(name), headers=_ANY, judged=(404,), most=most)
        if response.status == 404:
            return None
        if len(response.http.body) != found.size:
            raise _changed(name)
        return response.http.body

    def upload(self, name: str, source: Source, attempt: Attempt, progress: str | None) -> None:
        """The proxy cannot continue an upload, so it begins again. The caller compares its size."""
        self._put(name, File(source.size, source.open), attempt)

    def stat(self, name: str, *, hashed: bool = False) -> Stored | None:
        folder, _, last = name.rpartition("/")
        size = self._list(folder).get(last)
        return None if size is None else Stored(name, size)

    def below(self, folder: str) -> Iterator[Stored]:
        for name, size in self._list(folder).items():
            if size is None:
                yield from self.below(f"{folder}/{name}")
            else:
                yield Stored(f"{folder}/{name}", size)

    def children(self, folder: str) -> list[str]:
        return list(self._list(folder))

    def delete(self, name: str) -> None:
        if self.stat(name) is not None:
            self._delete(name)

    def discard(self, folder: str) -> None:
        if self.children(folder):
            self._delete(folder)

    def blocks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """A server 2.x ignores the range and sends the whole file: what is before `start` is dropped."""
        headers = {**_ANY, **({"Range": f"bytes={start}-"} if start else {})}
        response = self._server.api.download(self._path(name), headers=headers, judged=(404, 416))
        if isinstance(response, ApiResponse):
            if response.status == 416:
                return  # nothing is after `start`
            raise NotThere(f"{clean(name, limit=300)} is gone")
        if isinstance(response, Outcome):
            raise _failed(response)
        with closing(response):
            left = start if response.status == 200 else 0
            try:
                for block in response:
                    for at in range(left, len(block), BLOCK):
                        yield block[at : at + BLOCK]
                    left = max(0, left - len(block))
            except Broken as broken:
                raise _failed(broken.outcome) from broken

    def url(self, folder: str) -> str | None:
        return None

    def _put(self, name: str, body: Body, attempt: Attempt) -> None:
        self._forget(name)
        response = self._ask("PUT", self._path(name), body, attempt, headers=_FILE)
        # 2.x sends {}, 3.x nothing. The list has the proof.
        if response.http.body.strip() not in (b"", b"{}"):
            raise StoreFailed(self._server.api.unexpected(response))

    def _delete(self, name: str) -> None:
        self._lists.clear()
        # Some servers do not let this user delete: what is left does no harm.
        self._ask("DELETE", self._path(name), judged=(403, 404))

    def _forget(self, name: str) -> None:
        """The lists of all folders above an object are read again."""
        parts = name.split("/")
        for depth in range(len(parts)):
            self._lists.pop("/".join(parts[:depth]), None)

    def _list(self, folder: str) -> dict[str, int | None]:
        """What is directly in a folder, by its name: the size of a file, None for a folder."""
        if folder not in self._lists:
            path = f"{ARTIFACTS}?{urlencode({'path': self._target(folder)})}"
            response = self._ask("GET", path, most=LARGE)
            files = (response.json or {}).get("files", [])
            if response.json is None or not isinstance(files, list):
                raise StoreFailed(self._server.api.unexpected(response))
            self._lists[folder] = dict(filter(None, map(_listed, files)))
        return self._lists[folder]

    def _ask(
        self,
        method: str,
        path: str,
        body: Body | None = None,
        attempt: Attempt | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        judged: tuple[int, ...] = (),
        most: int = LARGE,
    ) -> ApiResponse:
        response = self._server.api.ask(
            method,
            path,
            body or Bytes(b""),
            attempt or self._attempt.silent(),
            headers=headers,
            judged=(*judged, 503),
            most=most,
        )
        if not isinstance(response, ApiResponse):
            raise _failed(response)
        if response.status == 503:
            what = f"the server of {self._server.name} stores no artifacts"
            if is_proxy_off(response.http):
                raise StoreFailed(RetryLater(f"{what}: {PROXY_OFF}"), hint=PROXY_OFF)
            reason = clean(f"{phrase_of(response.status)}: {message_of(response)}")
            raise _failed(RetryLater(reason, asked_wait(response.http.headers, now=datetime.now(UTC))))
        return response

    def _path(self, name: str) -> str:
        return f"{ARTIFACTS}/{quote(self._target(name))}"

    def _target(self, name: str) -> str:
        """The path of an object at the proxy."""
        run, _, rest = name.partition("/")
        return f"{self._root_of(run)}/{escaped(rest)}".rstrip("/")


class ArtifactsOfRuns:
    """The store of a reader."""

    def __init__(self, server: Server, root_of: Callable[[str], str]) -> None:
        self._server, self._root_of = server, root_of

    @contextmanager
    def sending(self, remembered: Mapping[str, str | int], attempt: Attempt) -> Iterator[Objects]:
        """The artifacts of the runs that `root_of` knows."""
        yield Artifacts(self._server, self._root_of, attempt)

    @contextmanager
    def reading(self) -> Iterator[Objects]:
        """The artifacts of all runs."""
        yield Artifacts(self._server, self._root_of)

    def check(self) -> None:
        """Nothing to check."""

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._server.close()


def escaped(path: str) -> str:
    """A path as the proxy accepts it. Different paths stay different."""
    return _UNSAFE.sub(lambda found: f"~{ord(found[0]):02x}", path)


def _listed(found: Any) -> tuple[str, int | None] | None:
    path, size = (found.get("path"), found.get("file_size", 0)) if isinstance(found, dict) else (None, 0)
    if not isinstance(path, str) or not path:
        return None
    name = _ESCAPED.sub(lambda part: chr(int(part[1], 16)), path.rpartition("/")[2])
    if found.get("is_dir") is True:
        return name, None
    # A whole number of 64 bits may be a text in JSON.
    return name, int(size) if isinstance(size, int) or (isinstance(size, str) and size.isdecimal()) else -1


def _changed(name: str) -> StoreFailed:
    what = clean(name, limit=300)
    return _failed(RetryLater(f"{what} is not as it was stored; it will be sent again"))


def _failed(outcome: Outcome) -> StoreFailed:
    return StoreFailed(outcome, hint=TRY_AGAIN)
