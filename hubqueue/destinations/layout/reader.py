"""Reads what a store has, for `pull` and `verify`. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from hubqueue.destinations.base import (
    DestinationUnavailable,
    NotThere,
    StoredCheckpoint,
    StoredFile,
    StoredRun,
)
from hubqueue.destinations.layout import names
from hubqueue.destinations.layout.records import Manifest, Pointer, newest
from hubqueue.destinations.layout.retention import manifests_of
from hubqueue.destinations.layout.store import Objects, ObjectStorage, StoreFailed
from hubqueue.domain.errors import TRY_AGAIN
from hubqueue.domain.plain import json_object
from hubqueue.domain.redact import clean


class LayoutReader:
    """Reads one store. Used by one thread."""

    def __init__(self, store: ObjectStorage) -> None:
        self._store, self._at_end = store, ExitStack()
        self._opened: Objects | None = None

    def runs(self) -> Iterator[StoredRun]:
        """All runs, the newest last."""
        with _translated():
            found = []
            for name in self._objects.children(""):
                record = json_object(self._objects.read(f"{name}/{names.RUN}"))
                if record is not None:
                    texts = [str(record.get(key) or "") for key in ("id", "model", "state", "started_at")]
                    found.append((texts[3], name, StoredRun(name, texts[0] or None, texts[1], texts[2])))
        yield from (each[2] for each in sorted(found, key=lambda each: each[:2]))

    def checkpoints(self, run: str) -> tuple[StoredCheckpoint, ...]:
        """The checkpoints of the run with this name that are whole, in the order of their epochs and steps.

        One whose manifest is damaged, or of a newer version, has no files.
        """
        with _translated():
            if not names.is_run_name(run) or self._objects.read(f"{run}/{names.RUN}") is None:
                raise NotThere(f"there is no run {clean(run, limit=100)!r}")
        return self.whole(run)

    def whole(self, run: str) -> tuple[StoredCheckpoint, ...]:
        """The whole checkpoints of a run that is known to exist: its `run.json` is not read."""
        with _translated():
            parent = f"{run}/{names.CHECKPOINTS}"
            manifests, damaged = dict[str, list[Manifest]](), list[str]()
            for name in sorted(self._objects.children(parent), key=names.order):
                if found := manifests_of(self._objects, f"{parent}/{name}"):
                    manifests[name] = found
                elif names.is_checkpoint(name) and self._is_there(f"{parent}/{name}/{names.MANIFEST}.json"):
                    damaged.append(name)
            marked = {kind: self._newest(run, kind, manifests, damaged) for kind in names.POINTERS}
        found_here = [_checkpoint(run, name, found) for name, found in manifests.items()]
        # Without files: nothing can be pulled of it, and `verify` finds that.
        found_here += [StoredCheckpoint(name, (), *names.position_of(name)) for name in damaged]
        return tuple(
            replace(
                each,
                is_latest=each.name == (marked["last"] or marked["final"]),
                is_best=each.name == marked["best"],
                is_final=each.name == marked["final"],
            )
            for each in sorted(found_here, key=lambda each: names.order(each.name))
        )

    def blocks(self, checkpoint: StoredCheckpoint, file: StoredFile, *, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from an offset, in blocks of at most 1 MiB."""
        with _translated():
            if self._objects.stat(file.ref) is None:
                raise NotThere(f"{clean(file.ref, limit=300)} is gone")
            yield from self._objects.blocks(file.ref, start)

    def hashed(self, checkpoint: StoredCheckpoint, file: StoredFile) -> StoredFile | None:
        """The size of a file now, and its hash if the store keeps one; None if it is gone."""
        with _translated():
            found = self._objects.stat(file.ref, hashed=True)
        return None if found is None else replace(file, size=found.size, sha256=found.sha256)

    def close(self) -> None:
        """Close connections and files."""
        self._opened = None
        self._at_end.close()
        self._store.close()

    @property
    def _objects(self) -> Objects:
        if self._opened is None:
            self._opened = self._at_end.enter_context(self._store.reading())
        return self._opened

    def _is_there(self, name: str) -> bool:
        return self._objects.stat(name) is not None

    def _newest(
        self, run: str, kind: str, manifests: dict[str, list[Manifest]], damaged: list[str]
    ) -> str | None:
        """The newest checkpoint of a kind: the named one, or one that was whole when a kill came before it was named."""
        named = Pointer.of(self._objects.read(f"{run}/{names.POINTERS[kind]}.json"))
        found = named if named is not None and named.checkpoint in (*manifests, *damaged) else None
        return newest(
            (each.pointer(name) for name, of_one in manifests.items() for each in of_one), kind, found
        )


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what a store raises into what a reader raises."""
    try:
        yield
    except StoreFailed as failed:
        raise DestinationUnavailable(str(failed), hint=failed.hint or TRY_AGAIN) from failed


def _checkpoint(run: str, name: str, manifests: list[Manifest]) -> StoredCheckpoint:
    first = manifests[0]
    folder = f"{run}/{names.CHECKPOINTS}/{name}"
    return StoredCheckpoint(
        name=name,
        files=tuple(
            StoredFile(each.path, each.size, each.sha256, f"{folder}/{each.stored}") for each in first.files
        ),
        epoch=first.position.epoch,
        step=first.position.step,
        is_folder=first.is_folder,
        map=max(each.map for each in manifests),
        manifest_sha256=first.manifest_sha256,
    )
