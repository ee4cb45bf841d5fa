"""A checkpoint: its files, then its manifest, then what names it as the newest of its kind.

Promises that a checkpoint with a manifest is whole and never changes. Another checkpoint with the same epoch or step
gets a folder of its own (`epoch-0012.2`), unless it has the same files: then only its kind is added
(`manifest.best.json`), and what somebody has deleted or changed of them is stored again. A folder without a manifest is
not a checkpoint. `uploading-KIND.json` names the one that is being uploaded; what a newer checkpoint of this kind, or the
end of the run, finds there is deleted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import count

from hubqueue.destinations.base import (
    Attempt,
    Batch,
    Delivered,
    Entry,
    Outcome,
    RetryLater,
    SeekableBlocks,
    Snapshot,
    SnapshotFile,
    files_of,
    position,
)
from hubqueue.destinations.layout import names
from hubqueue.destinations.layout.records import File, Manifest, Pointer, Uploading, moment, same_files
from hubqueue.destinations.layout.retention import KEEP_ALL, Keeping, retire
from hubqueue.destinations.layout.store import Objects, Source, obey
from hubqueue.domain.redact import clean

# Between two notes about finished files: each note is a transaction of the outbox.
_NOTE_EVERY = 5.0  # seconds


class Checkpoints:
    """Sends checkpoints. Safe to use from several threads."""

    def __init__(self, open_body: Callable[[Snapshot], SeekableBlocks], keeping: Keeping) -> None:
        self._open_body, self._keeping = open_body, keeping

    def send(self, objects: Objects, batch: Batch, attempt: Attempt) -> Outcome:
        """Send one checkpoint, or what is missing of it."""
        (entry,), run = batch.entries, batch.run.remote_id or ""
        progress = _Progress(entry, attempt)
        manifest = self._manifest(batch, attempt, progress)
        record = f"{run}/{names.UPLOADING}-{manifest.kind}.json"
        unfinished = _unfinished(objects, run)
        before = unfinished.get(manifest.kind)
        if before is not None and before.key != manifest.key:
            _give_up(objects, run, before)  # superseded, or cancelled: it will not be sent any more
        checkpoint, there = _find(objects, run, manifest, unfinished.values())
        folder = f"{run}/{names.CHECKPOINTS}/{checkpoint}"
        if there is None:
            uploading = Uploading(checkpoint, manifest.key)
            if before != uploading:
                objects.replace(record, uploading.text)
        if there is None or there.key != manifest.key or _missing(objects, folder, there) is not None:
            self._upload(objects, folder, entry, there or manifest, attempt, progress, restores=bool(there))
            missing = _missing(objects, folder, there or manifest)
            if missing is not None:
                progress.forget()
                return RetryLater(
                    f"{clean(missing, limit=300)} is not as it was stored; it will be sent again"
                )
        if there is not None:
            self._note_again(objects, folder, manifest)
        elif not objects.create(f"{folder}/{names.MANIFEST}.json", manifest.text):
            return RetryLater(f"another checkpoint is now in {clean(folder, limit=300)}")
        _point(objects, run, manifest.pointer(checkpoint))
        objects.delete(record)
        if self._keeping != KEEP_ALL:
            retire(objects, run, self._keeping)
        return Delivered()

    @staticmethod
    def _note_again(objects: Objects, folder: str, manifest: Manifest) -> None:
        """Complete what an earlier attempt has stored, or add the kind of another checkpoint with the same files."""
        first = f"{folder}/{names.MANIFEST}.json"
        found = Manifest.of(objects.read(first))
        if found is not None and found.key == manifest.key:
            objects.create(first, manifest.text)  # a kill may have left traces of it
        elif found is not None and found.kind != manifest.kind:
            objects.create(f"{folder}/{names.MANIFEST}.{manifest.kind}.json", manifest.text)

    def sweep(self, objects: Objects, run: str) -> None:
        """Delete what is left of checkpoints that were cancelled. Call it when no checkpoint of the run waits."""
        for kind, each in _unfinished(objects, run).items():
            _give_up(objects, run, each)
            objects.delete(f"{run}/{names.UPLOADING}-{kind}.json")

    def _manifest(self, batch: Batch, attempt: Attempt, progress: _Progress) -> Manifest:
        (entry,) = batch.entries
        snapshot, payload = entry.snapshot, json.loads(entry.payload)
        assert snapshot is not None, "a checkpoint has a snapshot"
        if snapshot.is_folder:
            found = [(each.path, each.snapshot) for each in files_of(snapshot, self._open_body)]
        else:
            name = names.file_name(payload.get("file"), f"checkpoint{snapshot.extension}")
            found = [(name, snapshot)]
        stored = names.stored_paths(path for path, _ in found)
        files = tuple(
            File(path, stored[path], each.size, each.sha256 or self._hashed(each, attempt, progress))
            for path, each in found
        )
        return Manifest(
            run=batch.run.id,
            key=batch.idempotency_key,
            kind="final" if payload.get("final") else "best" if payload.get("is_best") else "last",
            position=position(entry),
            map=float(payload.get("map") or 0.0),
            saved_at=moment(entry.enqueued_at),
            files=files,
            is_folder=snapshot.is_folder,
            manifest_sha256=snapshot.sha256 if snapshot.is_folder else None,
        )

    def _hashed(self, snapshot: Snapshot, attempt: Attempt, progress: _Progress) -> str:
        """The hash of a snapshot that was made without reading it; an earlier attempt may have noted it."""
        if progress.sha256 is None:
            hashing = hashlib.sha256()
            with closing(self._open_body(snapshot)) as body:
                for block in body:
                    obey(attempt)
                    hashing.update(block)
            progress.note_hash(hashing.hexdigest())
        assert progress.sha256 is not None
        return progress.sha256

    def _upload(
        self,
        objects: Objects,
        folder: str,
        entry: Entry,
        manifest: Manifest,
        attempt: Attempt,
        progress: _Progress,
        *,
        restores: bool,
    ) -> None:
        """Upload the files that earlier attempts have not finished in this folder.

        With `restores` the checkpoint is whole: only what somebody has deleted or changed since then is sent.
        """
        assert entry.snapshot is not None
        parts: Sequence[SnapshotFile] = files_of(entry.snapshot, self._open_body)
        sent, first = 0, progress.files_done(folder)
        for number, file in enumerate(manifest.files):
            snapshot = parts[number].snapshot if parts else entry.snapshot
            name = f"{folder}/{file.stored}"
            if number >= first and not (restores and _is_stated(objects, name, file)):
                obey(attempt)
                source = Source(file.size, file.sha256, partial(self._open_body, snapshot))
                noting = partial(progress.note, folder, number)
                uploading = replace(attempt.beyond(sent), on_progress=noting)
                text = progress.of_file(folder, number)
                objects.upload(name, source, uploading, text)
                progress.finished(folder, number + 1)
            sent += file.size
            attempt.on_bytes(sent)


class _Progress:
    """How far earlier attempts came with an entry: the finished files in a folder, and the store's text about the next one."""

    def __init__(self, entry: Entry, attempt: Attempt) -> None:
        found = json.loads(entry.progress) if entry.progress else {}
        self._attempt, self._noted_at = attempt, time.monotonic()
        self._folder, self._done, self._text = (
            found.get("folder"),
            int(found.get("done", 0)),
            found.get("store"),
        )
        self.sha256: str | None = found.get("sha256")

    def files_done(self, folder: str) -> int:
        return self._done if folder == self._folder else 0

    def of_file(self, folder: str, number: int) -> str | None:
        return self._text if (folder, number) == (self._folder, self._done) else None

    def note_hash(self, sha256: str) -> None:
        self.sha256 = sha256
        self._write()

    def note(self, folder: str, done: int, text: str | None) -> None:
        """What the store must find when it continues with the next file."""
        self._folder, self._done, self._text = folder, done, text
        self._write()

    def finished(self, folder: str, done: int) -> None:
        """A file is stored. Noted now and then: what is stored twice is only slower."""
        noted = self._text is not None
        self._folder, self._done, self._text = folder, done, None
        if noted or time.monotonic() > self._noted_at + _NOTE_EVERY:
            self._write()

    def forget(self) -> None:
        self._folder, self._done, self._text = None, 0, None
        self._write()

    def _write(self) -> None:
        known = {"folder": self._folder, "done": self._done, "store": self._text, "sha256": self.sha256}
        self._attempt.on_progress(json.dumps({name: value for name, value in known.items() if value}))
        self._noted_at = time.monotonic()


def _unfinished(objects: Objects, run: str) -> dict[str, Uploading]:
    """By their kind, the checkpoints that are being uploaded. Usually there is none, so one list is less than three reads."""
    there = {f"{run}/{each}" for each in objects.children(run)}
    records = {kind: f"{run}/{names.UPLOADING}-{kind}.json" for kind in names.POINTERS}
    found = {kind: Uploading.of(objects.read(name)) for kind, name in records.items() if name in there}
    return {kind: each for kind, each in found.items() if each is not None}


def _find(
    objects: Objects, run: str, manifest: Manifest, unfinished: Iterable[Uploading]
) -> tuple[str, Manifest | None]:
    """The folder for a checkpoint, and its manifest if it is there already, whole."""
    uploading = {each.checkpoint: each.key for each in unfinished}
    for attempt in count(1):
        checkpoint = names.checkpoint_name(manifest.position, attempt)
        folder = f"{run}/{names.CHECKPOINTS}/{checkpoint}"
        content = objects.read(f"{folder}/{names.MANIFEST}.json")
        if content is None:
            if uploading.get(checkpoint) == manifest.key or (
                checkpoint not in uploading and not objects.children(folder)
            ):
                return checkpoint, None
            continue  # of another kind that is not whole yet, or of another program
        found = Manifest.of(content)
        if found is not None and found.run == manifest.run and same_files(found, manifest):
            return checkpoint, found
    raise AssertionError("numbers do not end")


def _is_stated(objects: Objects, name: str, file: File) -> bool:
    """Whether the store itself states that it has a file with this hash."""
    found = objects.stat(name)
    return found is not None and (found.size, found.sha256) == (file.size, file.sha256)


def _missing(objects: Objects, folder: str, manifest: Manifest) -> str | None:
    """The first file of a checkpoint that is not stored with its size; None if all are."""
    sizes = {each.name: each.size for each in objects.below(folder)}
    for each in manifest.files:
        if sizes.get(f"{folder}/{each.stored}") != each.size:
            return f"{folder}/{each.stored}"
    return None


def _point(objects: Objects, run: str, pointer: Pointer) -> None:
    """Name a checkpoint as the newest of its kind, unless a newer one is named. A best one may be the latest as well."""
    for kind in ("best", "last") if pointer.kind == "best" else (pointer.kind,):
        name = f"{run}/{names.POINTERS[kind]}.json"
        if pointer.is_newer(Pointer.of(objects.read(name))):
            objects.replace(name, pointer.text)


def _give_up(objects: Objects, run: str, uploading: Uploading) -> None:
    """Delete what is stored of a checkpoint that will not be sent any more, unless it is whole."""
    folder = f"{run}/{names.CHECKPOINTS}/{uploading.checkpoint}"
    is_ours = names.is_checkpoint(uploading.checkpoint)
    if is_ours and objects.read(f"{folder}/{names.MANIFEST}.json") is None:
        objects.discard(folder)
