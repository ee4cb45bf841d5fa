"""Which checkpoints of a run are kept.

Promises that one is deleted only when a newer one is whole, and never seen in part.
"""

from __future__ import annotations

from dataclasses import dataclass

from hubqueue.destinations.layout import names
from hubqueue.destinations.layout.records import Manifest, Pointer, Uploading
from hubqueue.destinations.layout.store import Objects


@dataclass(frozen=True, slots=True)
class Keeping:
    """How many of the newest last and best checkpoints are kept; 0 keeps all. Final ones are always kept."""

    last: int = 0
    best: int = 0


KEEP_ALL = Keeping()


def retire(objects: Objects, run: str, keeping: Keeping) -> None:
    """Delete the checkpoints that are not to be kept: first the manifests, so that none is ever seen in part.

    Called when a newer one is whole. What a kill left without a manifest is deleted as well, unless it is being uploaded.
    """
    parent = f"{run}/{names.CHECKPOINTS}"
    by_kind: dict[str, list[tuple[str, str]]] = {}
    unfinished = set()
    for checkpoint in objects.children(parent):
        manifests = manifests_of(objects, f"{parent}/{checkpoint}")
        for each in manifests:
            by_kind.setdefault(each.kind, []).append((each.saved_at, checkpoint))
        if not manifests and _is_unfinished(objects, parent, checkpoint):
            unfinished.add(checkpoint)
    known, kept = set(unfinished), _named(objects, run)
    for kind, found in by_kind.items():
        known |= {checkpoint for _, checkpoint in found}
        most = {"last": keeping.last, "best": keeping.best}.get(kind, 0) or len(found)
        kept |= {checkpoint for _, checkpoint in sorted(found)[-most:]}
    for checkpoint in sorted(known - kept):
        folder = f"{parent}/{checkpoint}"
        for kind in ("", *(f".{each}" for each in names.POINTERS)):
            objects.delete(f"{folder}/{names.MANIFEST}{kind}.json")
        objects.discard(folder)


def _named(objects: Objects, run: str) -> set[str]:
    """The checkpoints that are the newest of a kind, and those that are being uploaded."""
    newest = (Pointer.of(objects.read(f"{run}/{name}.json")) for name in names.POINTERS.values())
    begun = (Uploading.of(objects.read(f"{run}/{names.UPLOADING}-{kind}.json")) for kind in names.POINTERS)
    return {each.checkpoint for each in (*newest, *begun) if each is not None}


def _is_unfinished(objects: Objects, parent: str, checkpoint: str) -> bool:
    """Whether it has no manifest at all: one of a newer version is not for us to delete."""
    is_ours = names.is_checkpoint(checkpoint)
    return is_ours and objects.read(f"{parent}/{checkpoint}/{names.MANIFEST}.json") is None


def manifests_of(objects: Objects, folder: str) -> list[Manifest]:
    """The valid manifests in the folder of a checkpoint, the first one first; none where it is not whole."""
    there = set(objects.children(folder))
    wanted = [f"{names.MANIFEST}.json", *(f"{names.MANIFEST}.{kind}.json" for kind in names.POINTERS)]
    found = [Manifest.of(objects.read(f"{folder}/{each}")) for each in wanted if each in there]
    return [each for each in found if each is not None] if wanted[0] in there and found[0] is not None else []
