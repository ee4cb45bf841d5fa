"""What a folder or a bucket has, by its objects alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from layout_received import received_in
from torture.destinations.target import Batch, There
from torture.destinations.training import digest_of

_KINDS = {"latest": "last", "best": "best", "final": "final"}


def there_in(objects: Mapping[str, bytes]) -> There:
    """What is in objects by name."""
    found = There(runs=received_in(objects))
    found.left += [name for name in objects if "/uploading-" in name or name.endswith(".part")]
    for name, content in objects.items():
        if name.endswith("/manifest.json"):
            found.wrong += broken(name, content, objects)
    newest: dict[str, dict[str, str]] = {}
    for run in found.runs:
        for named, kind in _KINDS.items():
            pointer = objects.get(f"{run}/{named}.json")
            if pointer is not None:
                newest.setdefault(run, {})[kind] = _digest(run, json.loads(pointer)["manifest"], objects)
    found.newest = newest
    found.batches = {run: list(_batches(run, objects)) for run in found.runs}
    return found


def _batches(run: str, objects: Mapping[str, bytes]) -> Iterator[Batch]:
    for name, content in objects.items():
        if name.startswith(f"{run}/metrics/"):
            lines = [json.loads(line) for line in content.splitlines()]
            yield [(str(each["epoch"]), each["metrics"]) for each in lines]


def broken(name: str, manifest: bytes, objects: Mapping[str, bytes]) -> list[str]:
    """The files of a manifest that are not there as it says."""
    folder = name.rpartition("/")[0]
    wrong = []
    for each in json.loads(manifest)["files"]:
        stored = objects.get(f"{folder}/{each.get('stored', each['path'])}")
        if stored is None or hashlib.sha256(stored).hexdigest() != each["sha256"]:
            wrong.append(f"{folder} has a manifest, and {each['path']} is not as it says")
    return wrong


class Pointers:
    """The records that name what is newest, as they are replaced."""

    def __init__(self) -> None:
        self._saved: dict[str, str] = {}

    def note(self, name: str, content: bytes) -> list[str]:
        """Note the content of one. Returns what is wrong with it."""
        if name.rpartition("/")[2].removesuffix(".json") not in _KINDS or "/checkpoints/" in name:
            return []
        saved, before = json.loads(content)["saved_at"], self._saved.get(name, "")
        self._saved[name] = saved
        return [f"{name} has gone back from {before} to {saved}"] if saved < before else []


def _digest(run: str, manifest: str, objects: Mapping[str, bytes]) -> str:
    """The digest of the checkpoint that a pointer names; empty if it is not there."""
    content = objects.get(f"{run}/{manifest}")
    if content is None:
        return ""
    folder = f"{run}/{manifest}".rpartition("/")[0]
    listed = [(each["path"], each.get("stored", each["path"])) for each in json.loads(content)["files"]]
    return digest_of({path: objects.get(f"{folder}/{stored}", b"") for path, stored in listed})
