"""A small training for a store with the layout of folders and buckets: its batches, and its snapshots in memory."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hubqueue.destinations.base import Attempt, Batch, Entry, Kind, RunRef, RunState, Snapshot, quiet
from hubqueue.destinations.folder.settings import FolderSettings
from hubqueue.destinations.folder.store import Folder
from hubqueue.destinations.layout import drafts
from hubqueue.destinations.layout.reader import LayoutReader
from hubqueue.destinations.layout.retention import KEEP_ALL, Keeping
from hubqueue.destinations.layout.transport import LayoutTransport
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.outcome import Delivered, Outcome
from hubqueue.domain.snapshots.manifest import file_name, manifest_text

BLOCK = 1 << 20
# 2026-12-01 00:00:00 UTC, in microseconds.
START = 1_796_083_200_000_000
BEGUN = START


class Blocks:
    """The blocks of a snapshot in memory. `on_block` is called before each one."""

    def __init__(self, content: bytes, on_block: Any) -> None:
        self._content, self._on_block = content, on_block

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), BLOCK):
            self._on_block(start)
            yield self._content[start : start + BLOCK]

    def close(self) -> None: ...


class Training:
    """One run. Each call makes a batch with a later moment; `sent` makes the transport send it."""

    def __init__(
        self, transport: LayoutTransport | None = None, *, id: str = "a1b2c3d4e5f6", **named: Any
    ) -> None:
        self.run = RunRef(id, "box", named.pop("model", "yolov8n.pt"), named.pop("remote_id", None), **named)
        self.snapshots: dict[str, bytes] = {}
        self.transport = transport
        self.at = START
        self.on_block: Any = lambda _start: None
        self.bytes: list[int] = []
        self.progress: dict[str, str | None] = {}

    def open_body(self, snapshot: Snapshot) -> Blocks:
        is_manifest = snapshot.is_folder
        return Blocks(self.snapshots[snapshot.name], (lambda _: None) if is_manifest else self.on_block)

    def start(self, args: Mapping[str, object] | None = None, **more: Any) -> Batch:
        draft = drafts.registration(Identifier(filename=self.run.model), args or {}, continues=False)
        payload = json.loads(draft.payload) | {"host": "trainer", "versions": {"hubqueue": "1.0"}} | more
        return self._batch(Kind.REGISTRATION, [("registration", json.dumps(payload), None)])

    def metrics(self, *keys: str, value: float = 0.5) -> Batch:
        return self._batch(Kind.METRICS, [(key, json.dumps({"loss": value}), None) for key in keys])

    def checkpoint(
        self,
        content: bytes | Mapping[str, bytes],
        *,
        epoch: int | None = None,
        step: int | None = None,
        kind: str = "last",
        map: float = 0.0,
        hashed: bool = True,
    ) -> Batch:
        payload = {"epoch": epoch, "is_best": kind == "best", "map": map, "final": kind == "final"}
        payload |= {} if step is None else {"step": step}
        return self._batch(Kind.CKPT, [(kind, json.dumps(payload), self._taken(content, hashed=hashed))])

    def end(self, state: RunState = RunState.FINISHED, **more: Any) -> Batch:
        draft = drafts.completion(state, results=more.get("results"), error=more.get("error"))
        return self._batch(Kind.COMPLETION, [("completion", draft.payload, None)])

    def send(self, batch: Batch, attempt: Attempt | None = None) -> Outcome:
        """Send a batch as the worker does: with what is remembered of the run, and the progress of earlier attempts."""
        assert self.transport is not None
        entries = tuple(
            each._replace(progress=self.progress.get(batch.idempotency_key)) for each in batch.entries
        )
        batch = Batch(self.run, batch.kind, entries, batch.idempotency_key)
        attempt = attempt or quiet()
        key = batch.idempotency_key
        found = self.transport.send(
            batch,
            Attempt(
                attempt.on_start,
                self.bytes.append,
                attempt.stop,
                lambda text: self.progress.update({key: text}),
            ),
        )
        if isinstance(found, Delivered) and found.remote.id:
            remembered = {**self.run.remembered, **found.remote.remember}
            self.run = RunRef(
                self.run.id, "box", self.run.model, found.remote.id, remembered, name=self.run.name
            )
        return found

    def sent(self, batch: Batch) -> Batch:
        """The same, and it must be delivered."""
        found = self.send(batch)
        assert isinstance(found, Delivered), found
        return batch

    def _batch(self, kind: Kind, contents: list[tuple[str, str, Snapshot | None]]) -> Batch:
        entries = []
        for key, payload, snapshot in contents:
            self.at += 1_000_000
            entries.append(Entry(self.at, key, payload, 0, self.at, snapshot, key == "final"))
        key = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.run.id}/{self.at}")
        return Batch(self.run, kind, tuple(entries), str(key))

    def _taken(self, content: bytes | Mapping[str, bytes], *, hashed: bool) -> Snapshot:
        name = f"snapshot-{len(self.snapshots)}"
        if isinstance(content, bytes):
            self.snapshots[f"{name}.ckpt"] = content
            sha256 = hashlib.sha256(content).hexdigest() if hashed else None
            return Snapshot(f"{name}.ckpt", len(content), 1, sha256)
        name, files = f"{name}.folder", []
        for number, (path, body) in enumerate(content.items()):
            self.snapshots[f"{name}/{file_name(number)}"] = body
            files.append((path, len(body), hashlib.sha256(body).hexdigest()))
        text = self.snapshots[name] = manifest_text(files)
        size = sum(map(len, content.values()))
        return Snapshot(name, size, 1, hashlib.sha256(text).hexdigest())


class Box:
    """A folder as a destination, with a training that sends to it."""

    def __init__(
        self, path: Path, *, home: Path | None = None, keeping: Keeping = KEEP_ALL, fsync: bool = False
    ) -> None:
        self.path = path
        self.settings = FolderSettings("box", path=path, fsync=fsync, home=home)
        self.keeping = keeping

    def training(self, **named: Any) -> Training:
        made = Training(**named)
        made.transport = LayoutTransport(Folder(self.settings), made.open_body, keeping=self.keeping)
        return made

    def reader(self) -> LayoutReader:
        return LayoutReader(Folder(self.settings))

    @property
    def tree(self) -> dict[str, bytes]:
        """Every file, by its path, except the marker."""
        files = sorted(each for each in self.path.rglob("*") if each.is_file())
        found = {str(each.relative_to(self.path)): each.read_bytes() for each in files}
        found.pop(".hubqueue", None)
        return found

    def json(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(**json.loads((self.path / name).read_bytes()))


def random_bytes(size: int, seed: int = 0) -> bytes:
    """The same bytes for the same seed."""
    return hashlib.shake_128(str(seed).encode()).digest(size)
