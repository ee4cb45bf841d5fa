"""The names of the layout: safe on every file system, the same for every attempt.

A part of a name has no control characters, none of those that FAT and Windows forbid, no dot or blank at its end, and at
most 120 bytes of UTF-8: names with other bytes, and encrypted file systems, allow 143. It is in Unicode's composed form. Two
names never differ by case alone. A name that must be changed for that is listed in the manifest beside the true one.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping

from hubqueue.destinations.base import Position

RUN, UPLOADING = "run.json", "uploading"
METRICS, CHECKPOINTS, MANIFEST = "metrics", "checkpoints", "manifest"
POINTERS = {"last": "latest", "best": "best", "final": "final"}
"""By the kind of a checkpoint, the object that names the newest one."""
_MOST_BYTES = 120
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
# Devices on Windows, with any extension.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_SUFFIX = re.compile(r"(\.[A-Za-z0-9]{1,12}){1,2}$")
_UNFINISHED = re.compile(r"\..*\.part", re.DOTALL | re.IGNORECASE)
_CHECKPOINT = re.compile(r"(epoch|step)-(-?[0-9]+)(?:\.([0-9]+))?")


def safe(part: str) -> str:
    """One part of a name. Never empty, never `.` or `..`, and never the name of an unfinished file."""
    text = unicodedata.normalize("NFC", part.encode("utf-8", "replace").decode())
    text = "".join(each if each.isprintable() else "_" for each in _FORBIDDEN.sub("_", text))
    text = _shortened(text.rstrip(". ") or "_")
    if _DEVICES.fullmatch(text):
        return f"_{text}"
    return f"_{text[1:]}" if _UNFINISHED.fullmatch(text) else text


def run_name(shown_name: str, run_id: str) -> tuple[str, str]:
    """The names of a run's folder: the usual one, and the one to use if that belongs to another run.

    No name begins with a dot: a folder keeps what is its own under such names.
    """
    usual = re.sub(r"^[.\s]+", "_", safe(shown_name))
    return usual, f"{usual}-{run_id}"


def is_run_name(name: str | None) -> bool:
    """Whether this may be the name of a run's folder: one part, as `run_name` makes it."""
    if not name or name != name.strip("."):
        return False
    return re.search(r"[/\\\x00-\x1f]", name) is None


def metrics_name(numbers: Iterable[int], key: str) -> str:
    """The name of an object with metrics of these epochs or steps; `key` makes it unique."""
    first, *others = sorted(numbers)
    return f"{METRICS}/{first:08d}-{[first, *others][-1]:08d}.{key}.jsonl"


def checkpoint_name(position: Position, attempt: int) -> str:
    """The name of a checkpoint's folder. `attempt` counts the checkpoints with this epoch or step, from 1."""
    return position.label if attempt == 1 else f"{position.label}.{attempt}"


def is_checkpoint(name: str) -> bool:
    """Whether a folder has the name of a checkpoint."""
    return _CHECKPOINT.fullmatch(name) is not None


def order(checkpoint: str) -> tuple[int, int, str]:
    """Sorts the names of checkpoints by their number."""
    found = _CHECKPOINT.fullmatch(checkpoint)
    return (int(found[2]), int(found[3] or 1), checkpoint) if found else (-1, 0, checkpoint)


def position_of(checkpoint: str) -> Position:
    """The epoch or the step that the name of a checkpoint states."""
    found = _CHECKPOINT.fullmatch(checkpoint)
    return Position() if found is None else Position(**{found[1]: int(found[2])})


def stored_paths(paths: Iterable[str]) -> Mapping[str, str]:
    """By the path of each file of a checkpoint, its path in the checkpoint's folder.

    They are the same, unless a part of one is not safe, or differs from another by case alone, or is the manifest's.
    """
    reserved = [MANIFEST, *(f"{MANIFEST}.{kind}" for kind in POINTERS)]
    taken, stored = {f"{each}.json" for each in reserved}, {}
    known: dict[str, str] = {"": ""}  # by each folder or file as it is named by the training, its path here
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            whole, parent = "/".join(parts[:depth]), known["/".join(parts[: depth - 1])]
            if whole not in known:
                known[whole] = _free(f"{parent}/" if parent else "", safe(parts[depth - 1]), taken)
        stored[path] = known[path]
    return stored


def _free(folder: str, part: str, taken: set[str]) -> str:
    name, number = part, 1
    while (found := unicodedata.normalize("NFC", f"{folder}{name}".casefold())) in taken:
        number += 1
        suffix = _SUFFIX.search(part)
        at = suffix.start() if suffix and suffix.start() else len(part)
        name = f"{part[:at]}~{number}{part[at:]}"
    taken.add(found)
    return folder + name


def _shortened(text: str) -> str:
    if len(text.encode()) <= _MOST_BYTES:
        return text
    suffix = _SUFFIX.search(text)
    end = f"~{hashlib.sha256(text.encode()).hexdigest()[:8]}{suffix[0] if suffix else ''}"
    start = text.encode()[: _MOST_BYTES - len(end.encode())].decode("utf-8", "ignore")
    return start.rstrip(". ") + end
