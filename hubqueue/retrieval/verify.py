"""`hubqueue.verify`: whether a destination still has what was delivered to it, byte for byte.

Three things are compared: what the outbox of this home has recorded (as long as it keeps the entries), the manifest of
the destination, and the bytes. The bytes are not read if the destination states a hash itself, unless `read` says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Position, position
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.errors import NotThere, NotWhole
from hubqueue.domain.lifecycle import State
from hubqueue.domain.quantities import plural
from hubqueue.domain.redact import clean
from hubqueue.domain.snapshots.manifest import manifest_text
from hubqueue.domain.snapshots.snapshot import FOLDER
from hubqueue.domain.snapshots.stored import StoredCheckpoint, StoredFile
from hubqueue.retrieval.choosing import ALL, choose, parse
from hubqueue.retrieval.download import Progress
from hubqueue.retrieval.naming import find, local_id
from hubqueue.retrieval.paths import problem_of
from hubqueue.retrieval.source import AnyPath, Source, opened, outbox_of

if TYPE_CHECKING:
    from hubqueue.outbox.outbox import Outbox

_MOST_ENTRIES = 1_000_000


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs: of a file of a checkpoint, or of the whole of it (`path` is empty), in a few words."""

    checkpoint: str
    path: str
    what: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.checkpoint, self.path, self.what)))


@dataclass(frozen=True, slots=True)
class Verified:
    """A checkpoint that was compared. `size` is in bytes.

    `read`: its bytes were read; otherwise the destination stated their hashes. `recorded`: it was also compared with the
    outbox of this home.
    """

    name: str
    files: int
    size: int
    read: bool
    recorded: bool
    differences: tuple[Difference, ...]

    def __bool__(self) -> bool:
        return not self.differences


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`: true if nothing differs.

    `run` is the run's name at the destination, `missing` what was delivered and is not there.
    """

    destination: str
    run: str
    checkpoints: tuple[Verified, ...]
    missing: tuple[Difference, ...] = ()

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All that differs, in the order of the checkpoints, then what is missing."""
        return (*(found for each in self.checkpoints for found in each.differences), *self.missing)

    def __bool__(self) -> bool:
        return not self.differences


@dataclass(frozen=True, slots=True)
class _Saved:
    """A delivered checkpoint, as this home has recorded it."""

    at: Position
    size: int
    sha256: str | None
    is_folder: bool


def verify(
    destination: str,
    *,
    run: str,
    which: str = ALL,
    read: bool = False,
    home: AnyPath | None = None,
    config: AnyPath | None = None,
    progress: Progress = lambda _here, _before, _total: None,
) -> Verification:
    """Compare the checkpoints of a run at a destination with what was saved. The result is true if nothing differs.

    `run` is the run's name at the destination, or its id or name in the outbox of `home`. `which` is all, latest, best,
    final, epoch:N or step:N. With `read` all bytes are read; without, only those for which the destination states no
    hash. `progress` receives the bytes compared so far, 0, and those of all chosen checkpoints.

    Raises `NotThere` for a run or a checkpoint that the destination does not have, `DestinationUnavailable`,
    `ConfigError`, `InvalidArgument`. What differs is in the result.
    """
    wanted = parse(which, all=True)
    with ExitStack() as at_end:
        source = at_end.enter_context(opened(destination, home, config))
        outbox = at_end.enter_context(outbox_of(home, config))
        name, checkpoints = find(source, run, lambda: outbox)
        run_id = local_id(source, outbox, name)
        saved = [] if outbox is None or run_id is None else list(_saved(outbox, run_id))
        missing: tuple[Difference, ...] = ()
        if wanted.word == ALL:
            chosen: Sequence[StoredCheckpoint] = checkpoints
            missing = tuple(_missing(source, saved, checkpoints))
        else:
            chosen = (choose(checkpoints, wanted, run=clean(name, limit=80)),)
        total = sum(each.size for each in chosen)
        comparison = _Comparison(source, saved, read, lambda done: progress(done, 0, total))
        return Verification(source.target.name, name, tuple(map(comparison.of, chosen)), missing)


class _Comparison:
    """Compares one checkpoint after the other."""

    def __init__(
        self, source: Source, saved: Sequence[_Saved], read: bool, progress: Callable[[int], object]
    ) -> None:
        self._source, self._saved, self._read, self._progress = source, saved, read, progress
        self._done = 0

    def of(self, checkpoint: StoredCheckpoint) -> Verified:
        name = checkpoint.name
        recorded = [each for each in self._saved if _is_of(each, checkpoint)]
        problem = problem_of(checkpoint)
        if problem is not None:
            wrong = (Difference(name, "", problem),)
            return Verified(name, len(checkpoint.files), 0, False, bool(recorded), wrong)
        found = []
        if recorded and not any(_is_same(each, checkpoint) for each in recorded):
            found.append(Difference(name, "", "it is not what this home has recorded as delivered"))
        was_read, hashes = False, list[str | None]()
        for file in checkpoint.files:
            what, by_reading, sha256 = self._judge(checkpoint, file)
            was_read |= by_reading
            hashes.append(sha256)
            if what is not None:
                found.append(Difference(name, file.path, what))
        if recorded and not found and not any(_is_same(each, checkpoint, hashes) for each in recorded):
            found.append(Difference(name, "", "it is not what this home has recorded as delivered"))
        return Verified(name, len(checkpoint.files), checkpoint.size, was_read, bool(recorded), tuple(found))

    def _judge(self, checkpoint: StoredCheckpoint, file: StoredFile) -> tuple[str | None, bool, str | None]:
        """What differs in a file, whether its bytes were read, and its hash."""
        stated = self._source.stated(checkpoint, file)
        if stated is None:
            return "it is not there", False, None
        if stated.size != file.size:
            return f"it has {plural(stated.size, 'byte')}, not {file.size}", False, None
        if self._read or stated.sha256 is None:
            what, sha256 = self._read_through(checkpoint, file)
            return what, True, sha256
        self._note(file.size)
        is_same = file.sha256 in (None, stated.sha256)
        what = None if is_same else "its SHA-256 is not that of the file that was saved"
        return what, False, stated.sha256

    def _read_through(self, checkpoint: StoredCheckpoint, file: StoredFile) -> tuple[str | None, str | None]:
        """What differs in the bytes of a file, and their hash."""
        digest = hashlib.sha256()
        try:
            for block in self._source.blocks(checkpoint, file):
                digest.update(block)
                self._note(len(block))
        except NotWhole as error:
            return str(error).partition(" is not whole: ")[2], None
        except NotThere:
            return "it is not there", None
        is_same = file.sha256 in (None, digest.hexdigest())
        return None if is_same else "its bytes are not those that were saved", digest.hexdigest()

    def _note(self, count: int) -> None:
        self._done += count
        self._progress(self._done)


def _saved(outbox: Outbox, run_id: str) -> Iterator[_Saved]:
    """The checkpoints of a run that were delivered, the newest first, as long as the outbox keeps them."""
    rows = outbox.stats.entries(state=State.DELIVERED, run_id=run_id, kind=Kind.CKPT, limit=_MOST_ENTRIES)
    for row in rows:
        at = position(Draft(Kind.CKPT, row["key"], 0, outbox.stats.payload(row["id"]) or ""))
        if row["snapshot"] is not None and at.given:  # else its payload is damaged
            is_folder = row["snapshot"].endswith(FOLDER)
            yield _Saved(at, row["snapshot_size"], row["snapshot_sha256"], is_folder)


def _missing(
    source: Source, saved: Sequence[_Saved], checkpoints: Sequence[StoredCheckpoint]
) -> Iterator[Difference]:
    """What was delivered and is not there, the oldest first.

    Of a destination that removes older checkpoints, only the newest one can be expected.
    """
    removes = declaration(source.target.type).removes_older(source.target)
    for each in reversed(saved[:1] if removes else saved):
        of_it = [there for there in checkpoints if _is_of(each, there)]
        is_there = any(_is_same(each, there) for there in of_it)
        # One that is not what any entry says is reported as such, and may be this one.
        is_altered = any(not any(_is_same(other, there) for other in saved) for there in of_it)
        if not (is_there or is_altered):
            yield Difference(str(each.at), "", "it was delivered, and is not there")


def _is_of(saved: _Saved, checkpoint: StoredCheckpoint) -> bool:
    """Whether a delivered checkpoint has the epoch and the step of one at the destination."""
    pairs = ((saved.at.epoch, checkpoint.epoch), (saved.at.step, checkpoint.step))
    return all(ours is None or theirs is None or ours == theirs for ours, theirs in pairs) and any(
        ours is not None and ours == theirs for ours, theirs in pairs
    )


def _is_same(saved: _Saved, checkpoint: StoredCheckpoint, hashes: Sequence[str | None] | None = None) -> bool:
    """Whether a checkpoint of a destination is what was delivered, by the hashes in its manifest, or by those of its files.

    Without a hash, the sizes must do.
    """
    if (saved.is_folder, saved.size) != (checkpoint.is_folder, checkpoint.size) or problem_of(checkpoint):
        return False
    if hashes is None:
        hashes = [each.sha256 for each in checkpoint.files]
    listed = [
        (each.path, each.size, sha256)
        for each, sha256 in zip(checkpoint.files, hashes, strict=True)
        if sha256 is not None
    ]
    if len(listed) < len(hashes):
        theirs = checkpoint.manifest_sha256
    elif checkpoint.is_folder:
        theirs = hashlib.sha256(manifest_text(sorted(listed))).hexdigest()
    else:
        ((_, _, theirs),) = listed
    return saved.sha256 is None or theirs is None or saved.sha256 == theirs
