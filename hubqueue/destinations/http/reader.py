"""Reads what a server of one's own has: its runs, their checkpoints, and the bytes of their files.

A file is fetched in ranges, each of which is one complete response, so a cut connection costs one range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from hubqueue.config.settings import DestinationSettings
from hubqueue.destinations.base import (
    DestinationUnavailable,
    Key,
    NotThere,
    Outcome,
    Position,
    StoredCheckpoint,
    StoredFile,
    StoredRun,
    quiet,
)
from hubqueue.destinations.http.server import Server
from hubqueue.destinations.http.signature import sha256_of
from hubqueue.destinations.http.upload import OFFSET
from hubqueue.destinations.layout.records import Pointer, newest
from hubqueue.destinations.wire.api import ApiResponse
from hubqueue.destinations.wire.body import BLOCK
from hubqueue.domain.errors import TRY_AGAIN
from hubqueue.domain.outcome import Aborted, Delivered
from hubqueue.domain.plain import LARGEST_EXACT
from hubqueue.domain.redact import clean

# In bytes: one range of a file, and one page of a list.
_RANGE, _PAGE = 4 * BLOCK, 16 * BLOCK
_MOST_PAGES = 10_000
# A server may need long to compute the hash of a large file: the wait for a response is doubled this many times.
_PATIENCE = 4


class HttpReader:
    """Reads from one server. Used by one thread."""

    def __init__(self, settings: DestinationSettings, keys: Callable[[], tuple[Key, ...]]) -> None:
        self._name, self._server = settings.name, Server(settings, keys)

    def runs(self) -> Iterable[StoredRun]:
        """All runs, the newest last."""
        return [stored_run(each) for each in self._pages("/runs", "runs")]

    def checkpoints(self, run: str) -> tuple[StoredCheckpoint, ...]:
        """The checkpoints of the newest run with this name or id."""
        known = [each for each in self._pages("/runs", "runs") if run in (each.get("id"), each.get("name"))]
        if not known:
            raise NotThere(f"{self._name} has no run {clean(run, limit=80)}")
        run_id = _text(known[-1], "id")
        return stored_checkpoints(run_id, self._pages(f"/runs/{quote(run_id)}", "checkpoints"))

    def blocks(self, checkpoint: StoredCheckpoint, file: StoredFile, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from an offset, in blocks of at most 1 MiB."""
        while start < file.size:
            end = min(start + _RANGE, file.size)
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept": "*/*"}
            response = self._ask("GET", file.ref, headers=headers, judged=(404, 416))
            if response.status in (404, 416):
                raise NotThere(f"{self._name} has no whole {checkpoint.name}/{file.path} any more")
            body = response.http.body
            if response.status != 206 or len(body) != end - start:
                if response.status != 200 or len(body) != file.size:
                    raise DestinationUnavailable(
                        f"{self._name} sent another part of {checkpoint.name}/{file.path} than was asked for",
                        hint="its server must support Range: docs/http.md",
                    )
                body = body[start:end]
            for at in range(0, len(body), BLOCK):
                yield body[at : at + BLOCK]
            start = end

    def hashed(self, _checkpoint: StoredCheckpoint, file: StoredFile) -> StoredFile | None:
        """The size and the SHA-256 that the server computes of a file now; None if it is gone."""
        response = self._ask("HEAD", file.ref, headers={"Want-Repr-Digest": "sha-256=10"}, judged=(404,))
        size = response.http.headers.get(OFFSET, "")
        if response.status == 404 or not size.isdecimal():
            return None
        digest = sha256_of(response.http.headers.get("Repr-Digest", ""))
        return StoredFile(file.path, int(size), digest, file.ref)

    def close(self) -> None:
        self._server.close()

    def _pages(self, target: str, name: str) -> Iterator[Mapping[str, Any]]:
        """The objects of a list, page by page."""
        after = ""
        for _ in range(_MOST_PAGES):
            response = self._ask("GET", target + (f"?after={quote(after, safe='')}" if after else ""))
            page = (response.json or {}).get(name)
            if not isinstance(page, list):
                raise self._unavailable(self._server.unexpected(response))
            yield from (each for each in page if isinstance(each, dict))
            following = (response.json or {}).get("next")
            if not isinstance(following, str) or following in ("", after):
                return
            after = following

    def _ask(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        judged: tuple[int, ...] = (404,),
    ) -> ApiResponse:
        most = _RANGE if headers else _PAGE
        attempt = replace(quiet(), patience=_PATIENCE)
        response = self._server.ask(method, target, attempt, headers=headers, judged=judged, most=most)
        if not isinstance(response, ApiResponse):
            raise self._unavailable(response)
        return response

    def _unavailable(self, outcome: Outcome) -> DestinationUnavailable:
        reason = "" if isinstance(outcome, Delivered | Aborted) else outcome.reason
        return DestinationUnavailable(f"{self._name}: {reason}", hint=TRY_AGAIN)


def stored_run(found: Mapping[str, Any]) -> StoredRun:
    """A run, as the server lists it."""
    name = _text(found, "name") or _text(found, "id")
    return StoredRun(name, _text(found, "id"), _text(found, "model"), _text(found, "state"))


def stored_checkpoints(run_id: str, manifests: Iterable[Mapping[str, Any]]) -> tuple[StoredCheckpoint, ...]:
    """The checkpoints of a run by their manifests, in the order of their epochs and steps.

    Several may have one epoch, such as the last and the best one: each has a folder of its own, and those that were saved
    later get a number (`epoch-0012.2`). Which is the newest of its kind is decided as in a folder.
    """
    saved = sorted(manifests, key=lambda each: _text(each, "saved_at"))
    # A repeat replaces the first one.
    of_folder = {(_text(each, "name"), _text(each, "folder")): each for each in saved}
    known, seen = dict[str, Mapping[str, Any]](), Counter[str]()
    for each in sorted(of_folder.values(), key=lambda each: _text(each, "saved_at")):
        name = _text(each, "name")
        seen[name] += 1
        known[name if seen[name] == 1 else f"{name}.{seen[name]}"] = each
    pointers = [_pointer(name, each) for name, each in known.items()]
    best, final = newest(pointers, "best"), newest(pointers, "final")
    latest = newest(pointers, "last") or final
    made = [
        replace(
            _checkpoint(run_id, name, each),
            is_latest=name == latest,
            is_best=name == best,
            is_final=name == final,
        )
        for name, each in known.items()
    ]
    return tuple(sorted(made, key=lambda each: (each.epoch or 0, each.step or 0)))


def _pointer(name: str, manifest: Mapping[str, Any]) -> Pointer:
    kind = "final" if manifest.get("final") is True else "best" if manifest.get("is_best") is True else "last"
    at = Position(_number(manifest, "epoch"), _number(manifest, "step"))
    return Pointer(name, kind, at, 0.0, _text(manifest, "saved_at"))


def _checkpoint(run_id: str, name: str, manifest: Mapping[str, Any]) -> StoredCheckpoint:
    folder, score = _text(manifest, "folder"), manifest.get("map")
    files = tuple(
        StoredFile(
            _text(each, "path"),
            -1 if (size := _number(each, "size")) is None else size,
            _text(each, "sha256") or None,
            f"/runs/{quote(run_id)}/files/{quote(folder)}/{quote(_text(each, 'path'))}",
        )
        for each in manifest.get("files", ())
    )
    return StoredCheckpoint(
        name,
        files,
        epoch=_number(manifest, "epoch"),
        step=_number(manifest, "step"),
        is_folder=manifest.get("is_folder") is True,
        map=float(score) if isinstance(score, int | float) else 0.0,
        manifest_sha256=_text(manifest, "manifest_sha256") or None,
    )


def _text(found: Mapping[str, Any], name: str) -> str:
    """A text of an object; empty if it has none of this name."""
    value = found.get(name)
    return value if isinstance(value, str) else ""


def _number(found: Mapping[str, Any], name: str) -> int | None:
    """A whole number of an object; None if it has none of this name."""
    value = found.get(name)
    return value if type(value) is int and 0 <= value <= LARGEST_EXACT else None
