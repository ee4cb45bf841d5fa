"""A checkpoint: each file, from the offset that the server has, then the manifest.

The server never has to merge anything: a path belongs to one snapshot for ever, so its bytes are the same in every attempt,
of every worker, process and machine. The checkpoint exists when the server has accepted its manifest, for which it compares
the size and the SHA-256 of every file. Nothing about an upload is stored here: the server knows how far it came.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

from hubqueue.destinations.base import (
    Aborted,
    Attempt,
    Batch,
    Blocks,
    Outcome,
    RetryLater,
    Snapshot,
    SnapshotFile,
    files_of,
    position,
)
from hubqueue.destinations.http.server import Server, delivered, is_received
from hubqueue.destinations.layout.records import moment
from hubqueue.destinations.wire.api import ApiResponse
from hubqueue.destinations.wire.body import BLOCK, Body, BodyChanged, File

OFFSET = "Upload-Offset"
"""The header with the number of bytes that the server has of a file."""
# How many digits of the Idempotency-Key make the folder of a snapshot unique in its run.
_UNIQUE = 16
# In bytes: below it, to ask for the offset of a file costs as much as the file.
_SMALL = 16 * 1024
_STOPPED = Aborted("the worker stops")
_TYPE = {"Content-Type": "application/octet-stream"}
_NUMBER = re.compile(r"[0-9]{1,18}")

OpenBody = Callable[[Snapshot], Blocks]


class Uploads:
    """Sends checkpoints. Safe to use from several threads."""

    def __init__(self, server: Server, open_body: OpenBody) -> None:
        self._server, self._open_body = server, open_body

    def send(self, batch: Batch, attempt: Attempt) -> Outcome:
        """Send one checkpoint, or what the server lacks of it."""
        (entry,) = batch.entries
        snapshot = entry.snapshot
        assert snapshot is not None, "a checkpoint has a snapshot"
        at, payload = position(entry), json.loads(entry.payload)
        folder = f"{at.label}.{batch.idempotency_key.replace('-', '')[:_UNIQUE]}"
        # To ask for an offset costs a round trip, so a small file is sent whole the first time.
        asks_from = _SMALL if entry.attempts else BLOCK
        files, done = [], 0
        for each in self._files(snapshot):
            sha256 = each.snapshot.sha256 or hash_from(each, self._open_body, 0, attempt.stop)
            if sha256 is None:
                return _STOPPED
            start = self._offset(each, folder, batch, attempt) if each.size > asks_from else 0
            if not isinstance(start, int):
                return start
            sent = self._send_file(each, sha256, start, folder, batch, attempt.beyond(done))
            if sent is not None:
                return sent
            files.append({"path": each.path, "size": each.size, "sha256": sha256})
            done += each.size
        manifest: dict[str, Any] = {
            "name": at.label,
            "folder": folder,
            "is_folder": snapshot.is_folder,
            **at.given,
            **{each: payload[each] for each in ("is_best", "final", "map")},
            "saved_at": moment(entry.enqueued_at),
            "files": files,
        }
        if snapshot.is_folder:
            manifest["manifest_sha256"] = snapshot.sha256
        response = self._server.post(
            f"/runs/{batch.run.remote_id}/manifest",
            manifest,
            attempt.silent(),
            idempotency_key=batch.idempotency_key,
        )
        return delivered(response) if isinstance(response, ApiResponse) else response

    def _files(self, snapshot: Snapshot) -> tuple[SnapshotFile, ...]:
        if snapshot.is_folder:
            return files_of(snapshot, self._open_body)
        return (SnapshotFile(f"model{snapshot.extension}", snapshot),)

    def _send_file(
        self, file: SnapshotFile, sha256: str, start: int, folder: str, batch: Batch, attempt: Attempt
    ) -> Outcome | None:
        """Send a file from an offset on; None when the server has all of it."""
        if start == file.size > 0:
            return None
        if start:
            rest = hash_from(file, self._open_body, start, attempt.stop)
            if rest is None:
                return _STOPPED
            sha256 = rest
        with body_from(file, self._open_body, start, attempt.stop) as body:
            if body is None:
                return _STOPPED
            headers = dict(_TYPE)
            if start:
                headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
            response = self._server.ask(
                "PUT",
                _target(batch, folder, file),
                attempt.beyond(start),
                body=body,
                sha256=bytes.fromhex(sha256),
                headers=headers,
                idempotency_key=_key(batch, file),
            )
        if not isinstance(response, ApiResponse):
            return response
        if not is_received(response) or (response.json or {}).get("offset") != file.size:
            return self._server.unexpected(response)
        return None

    def _offset(self, file: SnapshotFile, folder: str, batch: Batch, attempt: Attempt) -> int | Outcome:
        """How many bytes the server has of a file."""
        target, key = _target(batch, folder, file), _key(batch, file)
        response = self._server.ask("HEAD", target, attempt.silent(), idempotency_key=key, judged=(404,))
        if isinstance(response, RetryLater) and response.foreign:
            return 0  # the response to HEAD has no body that says why; that to PUT has one
        if not isinstance(response, ApiResponse):
            return response
        found = response.http.headers.get(OFFSET, "")
        if response.status == 404 or not _NUMBER.fullmatch(found) or int(found) > file.size:
            return 0
        return int(found)


def _target(batch: Batch, folder: str, file: SnapshotFile) -> str:
    return f"/runs/{batch.run.remote_id}/files/{folder}/{quote(file.path)}"


def _key(batch: Batch, file: SnapshotFile) -> str:
    return f"{batch.idempotency_key}/{quote(file.path)}"


def hash_from(file: SnapshotFile, open_body: OpenBody, start: int, stop: threading.Event) -> str | None:
    """The SHA-256 in hex of a file from an offset on; None if `stop` was set meanwhile."""
    digest = hashlib.sha256()
    with closing(open_body(file.snapshot)) as blocks:
        for block in _blocks_from(blocks, start, stop):
            if stop.is_set():
                break
            digest.update(block)
    return None if stop.is_set() else digest.hexdigest()


@contextmanager
def body_from(
    file: SnapshotFile, open_body: OpenBody, start: int, stop: threading.Event
) -> Iterator[Body | None]:
    """A file from an offset on, as the body of one request; None if `stop` was set meanwhile.

    The file is read up to there before the request begins: that may take longer than a request may stall. It is read at
    all because the blocks of a snapshot prove themselves only together.
    """
    if not start:
        yield File(file.size, lambda: open_body(file.snapshot))
        return
    with closing(open_body(file.snapshot)) as blocks:
        rest = _blocks_from(blocks, start, stop)
        first = next(rest, None)
        yield None if first is None else _Rest(file.size - start, first, rest)


def _blocks_from(
    blocks: Blocks, start: int, stop: threading.Event
) -> Generator[bytes | memoryview, None, None]:
    """The blocks from an offset on; none if `stop` was set before that."""
    left = start
    for block in blocks:
        if left and stop.is_set():
            return
        if left < len(block):
            yield block[left:]
        left = max(0, left - len(block))


class _Rest:
    """The blocks that follow an offset: a body that can be read once."""

    def __init__(self, size: int, first: bytes | memoryview, blocks: Iterator[bytes | memoryview]) -> None:
        self._size, self._first, self._blocks = size, first, blocks

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Generator[bytes | memoryview, None, None]:
        left = self._size - len(self._first)
        yield self._first
        for block in self._blocks:
            left -= len(block)
            yield block
        if left:
            raise BodyChanged("the snapshot is not as long as it was")
