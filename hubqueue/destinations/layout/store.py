"""What the layout needs of a store of objects: a folder, a bucket.

A name of an object is relative to the store, with `/` between its parts; each part is safe (`names.py`). A store
promises that an object is visible whole or not at all, and durable when the call returns. It raises `StoreFailed` and
nothing else about the store; what the source of an upload raises passes through. The worker sends at most one batch of a
lane at a time, so two uploads of one run never have the same name, except for a worker that was suspended and has lost
its lease. Its late writes must leave every object whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Protocol

from hubqueue.destinations.base import Aborted, Attempt, Outcome, SeekableBlocks
from hubqueue.domain.outcome import ADVICE

LARGEST = 64 * 1024 * 1024
"""The largest small object, in bytes: the manifest of a folder with hundreds of thousands of files."""


class StoreFailed(Exception):
    """A store did not do what was asked. `outcome` is what the attempt produced; `hint` is for a person who reads from it.

    The advice in the reason of a hold is the hint, if there is no other.
    """

    def __init__(self, outcome: Outcome, *, hint: str | None = None) -> None:
        reason, _, advice = getattr(outcome, "reason", "").partition(ADVICE)
        super().__init__(reason)
        self.outcome, self.hint = outcome, hint or advice or None


@dataclass(frozen=True, slots=True)
class Stored:
    """An object: its size in bytes, and its SHA-256 in hex if the store itself states one."""

    name: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A body to upload: its size in bytes, its SHA-256 in hex, and how it is opened. It may be opened several times."""

    size: int
    sha256: str
    open: Callable[[], SeekableBlocks]

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """Its bytes from `start` up to `stop` (None: to the end), in blocks of at most 1 MiB.

        Each block is valid until the next one is requested. The bytes before `start` are read as well: the last block of
        the whole is withheld unless all of them are what was enqueued.
        """
        stop, at = self.size if stop is None else min(stop, self.size), 0
        with closing(self.open()) as opened:
            for block in opened:
                view = memoryview(block)
                first, last = max(start - at, 0), min(stop - at, len(view))
                at += len(view)
                if first < last:
                    yield view[first:last]
                if at >= stop:
                    return


class ObjectStorage(Protocol):
    """What keeps objects below one prefix. Safe to use from several threads."""

    def sending(
        self, remembered: Mapping[str, str | int], attempt: Attempt
    ) -> AbstractContextManager[Objects]:
        """Its objects, for one attempt. Its `stop` ends every call that takes long.

        `remembered` is `RunRef.remembered`: raises `StoreFailed` if this is not the store with which the run began.
        """
        ...

    def reading(self) -> AbstractContextManager[Objects]:
        """Its objects, for a reader: changes nothing."""
        ...

    def check(self) -> None:
        """Find out whether objects can be written. Leaves none behind."""
        ...

    def close(self) -> None:
        """Close connections that are kept alive."""
        ...


class Objects(Protocol):
    """The objects of a store, for one attempt or one reader. Used by one thread.

    `remember` is what the store must find in `remembered` at the next attempts of a run that is registered now.
    """

    @property
    def remember(self) -> Mapping[str, str | int]: ...

    def create(self, name: str, content: bytes) -> bool:
        """Store a small object, unless one of that name exists; whether it was stored. One that exists never changes."""
        ...

    def replace(self, name: str, content: bytes) -> None:
        """Store a small object, in place of one that exists."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small object; None if there is none."""
        ...

    def upload(self, name: str, source: Source, attempt: Attempt, progress: str | None) -> None:
        """Store a large object, in place of one that exists. It becomes visible with its last byte, if it has the hash.

        An earlier attempt may have stored a part of it: `progress` is what it has passed to `attempt.on_progress` (None:
        nothing). Between two blocks raises `StoreFailed(Aborted(…))` when `attempt.stop` is set; `attempt.on_bytes`
        receives how many bytes of this object are stored so far. Needs constant memory.
        """
        ...

    def stat(self, name: str, *, hashed: bool = False) -> Stored | None:
        """An object without its content; None if there is none. With `hashed` also its SHA-256, if the store keeps one."""
        ...

    def below(self, folder: str) -> Iterator[Stored]:
        """All objects below a folder, at any depth, in any order."""
        ...

    def children(self, folder: str) -> list[str]:
        """The names directly below a folder ("": the store), each without the folder: of objects, and of folders with objects."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens if there is none."""
        ...

    def discard(self, folder: str) -> None:
        """Delete everything below a folder, unfinished uploads as well. May be repeated after a kill."""
        ...

    def blocks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object from an offset, in blocks of at most 1 MiB."""
        ...

    def url(self, folder: str) -> str | None:
        """How a person finds a folder; None if the store has no addresses."""
        ...


def obey(attempt: Attempt) -> None:
    """Raise `StoreFailed` when the worker stops the attempt. Call it between two blocks."""
    if attempt.stop.is_set():
        raise StoreFailed(Aborted("the worker stops"))
