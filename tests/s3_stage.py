"""A file to upload to a bucket, an attempt that notes what it reports, and the outcome."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from seaweed import ACCESS_KEY, SECRET_KEY

from hubqueue.config.declaration import Key
from hubqueue.destinations.base import Outcome, quiet
from hubqueue.destinations.layout.store import Source, StoreFailed
from hubqueue.destinations.s3.store import Bucket
from hubqueue.domain.snapshots.snapshot import Snapshot
from hubqueue.outbox.spool.body import SnapshotBody

PART = 5 * 1024 * 1024
NAME = "a run é+/checkpoints/epoch-0001/last.pt"
KEY = Key(ACCESS_KEY, {"secret_access_key": SECRET_KEY})


class Notes:
    """What an attempt reports."""

    def __init__(self) -> None:
        self.progress: list[str | None] = []
        self.sent: list[int] = []
        self.attempt = replace(quiet(), on_progress=self.progress.append, on_bytes=self.sent.append)

    @property
    def last(self) -> str | None:
        return self.progress[-1] if self.progress else None


def three_parts() -> bytes:
    """Three parts, the last one small. No part is like another one."""
    return b"".join(hashlib.sha256(b"%d" % at).digest() * 32_768 for at in range(11)) + b"the end"


def source_of(path: Path, content: bytes) -> Source:
    path.write_bytes(content)
    snapshot = Snapshot(path.name, len(content), 0, hashlib.sha256(content).hexdigest())
    return Source(len(content), snapshot.sha256 or "", lambda: SnapshotBody(path.open("rb"), snapshot))


def upload(bucket: Bucket, source: Source, notes: Notes, progress: str | None = None) -> Outcome | None:
    """The outcome of the failure; None after a success."""
    try:
        with bucket.sending({}, notes.attempt) as objects:
            objects.upload(NAME, source, notes.attempt, progress)
    except StoreFailed as failed:
        return failed.outcome
    return None


def stored(bucket: Bucket, name: str = NAME) -> bytes | None:
    with bucket.reading() as objects:
        return b"".join(objects.blocks(name)) if objects.stat(name) else None


def open_uploads(client: Any, bucket: str) -> list[Any]:
    return list(client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))
