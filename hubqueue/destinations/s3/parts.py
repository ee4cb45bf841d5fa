"""The parts of an upload: how a file is cut, what the outbox keeps of it, and the bytes of one part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Self

from hubqueue.destinations.layout.store import Source
from hubqueue.destinations.s3.marks import in_base64
from hubqueue.destinations.wire.body import BLOCK, BodyChanged

MOST_PARTS = 10_000
# Characters of base64 that are kept of the hash of a part: 72 bits, since the server has the whole one.
SHORT = 12


@dataclass(frozen=True, slots=True)
class Part:
    """One part: its number, from 1, where it begins, its size in bytes, its SHA-256."""

    number: int
    start: int
    size: int
    digest: bytes

    @property
    def short(self) -> str:
        """What the outbox keeps of the hash."""
        return in_base64(self.digest)[:SHORT]


@dataclass(slots=True)
class Begun:
    """An upload that was begun, in the form in which the outbox keeps it.

    `hashes` begins with the parts that were sent, or were about to be sent, in order. A part is noted before it is sent:
    what the server lists of this upload is one that was noted.
    """

    name: str
    sha256: str
    upload: str
    part_size: int
    hashes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """For the outbox."""
        kept = {"name": self.name, "sha256": self.sha256, "upload": self.upload, "part_size": self.part_size}
        return json.dumps({**kept, "hashes": "".join(self.hashes)})

    @classmethod
    def of(cls, text: str | None, name: str, source: Source) -> Self | None:
        """The upload of this object with this content in a text; None for anything else."""
        try:
            found: dict[str, Any] = json.loads(text or "{}")
            if (found["name"], found["sha256"]) != (name, source.sha256):
                return None
            joined = str(found["hashes"])
            hashes = [joined[at : at + SHORT] for at in range(0, len(joined), SHORT)]
            begun = cls(name, source.sha256, str(found["upload"]), int(found["part_size"]), hashes)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return begun if begun.part_size > 0 else None


def part_size_for(size: int, wanted: int) -> int:
    """The size of a part, in bytes: the wanted one, or as many MiB as a file needs to have at most 10,000 parts."""
    least = -(-size // MOST_PARTS)
    return wanted if least <= wanted else -(-least // BLOCK) * BLOCK


def parts_of(source: Source, part_size: int, between: Callable[[], None]) -> Iterator[Part]:
    """The parts of a file in order, each when its hash is known; the last one only if the whole file has its hash.

    Reads the file once, ahead of what is sent. `between` is called between two blocks.
    """
    number, start, left = 1, 0, min(part_size, source.size)
    hashing = hashlib.sha256()
    for view in source.blocks():
        between()
        block = view
        while block:
            piece, block = block[:left], block[left:]
            hashing.update(piece)
            left -= len(piece)
            if left == 0:
                size = min(part_size, source.size - start)
                yield Part(number, start, size, hashing.digest())
                number, start, hashing = number + 1, start + size, hashlib.sha256()
                left = min(part_size, source.size - start)


class PartBody:
    """The bytes of one part, read again for each request.

    With `proves`, the last block is withheld unless all have the part's hash: a server that does not compare it must not get
    other bytes.
    """

    def __init__(self, source: Source, part: Part, *, proves: bool = True) -> None:
        self._source, self._part, self._proves = source, part, proves

    def __len__(self) -> int:
        return self._part.size

    def __iter__(self) -> Generator[bytes | memoryview, None, None]:
        left, hashing = self._part.size, hashlib.sha256()
        with closing(self._source.open()) as opened:
            for block in opened.section(self._part.start, self._part.size):
                if self._proves:
                    hashing.update(block)
                left -= len(block)
                if self._proves and left == 0 and hashing.digest() != self._part.digest:
                    raise BodyChanged("the snapshot changed while it was sent")
                yield block
