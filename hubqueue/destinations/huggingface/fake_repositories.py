"""The repositories of the fake Hub: commits, the files in them, and the objects in the storage of large files.

The hashes are those of the real Hub: of a text the hash of git, of a large file its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hubqueue.sandbox.archive import Fact
from hubqueue.sandbox.routes import now_text

_TEXT_LIMIT = 10 << 20
_EPOCH = re.compile(r"/checkpoints/epoch-0*(\d+)")


@dataclass(frozen=True, slots=True)
class FakeFile:
    """A file in a commit: `content` of a text, `oid` (its SHA-256) of a large one."""

    path: str
    size: int
    blob: str
    content: str | None = None
    oid: str | None = None

    @property
    def document(self) -> dict[str, Any]:
        """As the Hub lists it."""
        lfs = {} if self.oid is None else {"lfs": {"oid": self.oid, "size": self.size, "pointerSize": 134}}
        return {"type": "file", "path": self.path, "size": self.size, "oid": self.blob, **lfs}


@dataclass(frozen=True, slots=True)
class FakeCommit:
    """A commit: its id, its message, and the files of the repository in it, by path."""

    id: str
    title: str
    description: str
    at: datetime
    files: dict[str, FakeFile]


@dataclass(slots=True)
class FakeRepository:
    """A repository with its commits, the oldest first; `objects` are the large files that the storage has, by SHA-256."""

    id: str
    private: bool
    commits: list[FakeCommit] = field(default_factory=list)
    objects: dict[str, Path] = field(default_factory=dict)

    @property
    def head(self) -> FakeCommit:
        """The newest commit."""
        return self.commits[-1]

    def at(self, revision: str) -> FakeCommit | None:
        """A commit by its id, or the newest one by the name of the branch."""
        if revision == "main":
            return self.head
        return next((each for each in self.commits if each.id == revision), None)

    def content(self, file: FakeFile) -> bytes:
        """The bytes of a file."""
        return (
            (file.content or "").encode("latin-1")
            if file.oid is None
            else self.objects[file.oid].read_bytes()
        )


def text_file(path: str, content: bytes) -> FakeFile:
    """A text as git keeps it. The content is kept as text, a character for each byte."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - that is git's
    return FakeFile(path, len(content), blob, content=content.decode("latin-1"))


def large_file(path: str, oid: str, size: int) -> FakeFile:
    """A file whose bytes are in the storage; git has a pointer to them."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
    return FakeFile(path, size, text_file(path, pointer).blob, oid=oid)


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file in the storage of large files."""
    return (
        size > _TEXT_LIMIT
        or b"\0" in sample
        or not _is_text(sample)
        or path.endswith((".pt", ".bin", ".safetensors"))
    )


def commit_fact(
    what: str, repo: str, title: str, description: str, files: Sequence[FakeFile], deleted: Sequence[str]
) -> Fact:
    """The fact of a commit, or of a repository with its first commit."""
    listed = [
        {"path": each.path, "size": each.size, "blob": each.blob, "content": each.content, "oid": each.oid}
        for each in files
    ]
    made = {"fact": what, "repo": repo, "title": title, "description": description, "at": now_text()}
    return {**made, "id": secrets.token_hex(20), "files": listed, "deleted": list(deleted)}


def applied(repository: FakeRepository, fact: Fact) -> FakeCommit:
    """The commit that a fact makes of the newest one."""
    files = dict(repository.head.files) if repository.commits else {}
    for path in fact["deleted"]:
        files.pop(path, None)
    files |= {each["path"]: FakeFile(**each) for each in fact["files"]}
    return FakeCommit(
        fact["id"], fact["title"], fact["description"], datetime.fromisoformat(fact["at"]), files
    )


def epochs_in(files: list[FakeFile]) -> tuple[int, ...]:
    """The epochs of the metrics and the checkpoints in these files."""
    found = []
    for each in files:
        if matched := _EPOCH.search(each.path):
            found.append(int(matched[1]))
        elif "/metrics/" in each.path:
            lines = map(json.loads, (each.content or "").splitlines())
            found += [line["epoch"] for line in lines if isinstance(line.get("epoch"), int)]
    return tuple(dict.fromkeys(found))


def folders_in(files: dict[str, FakeFile], folder: str) -> set[str]:
    """The folders directly below a folder."""
    start = f"{folder}/" if folder else ""
    inner = (path[len(start) :] for path in files if path.startswith(start))
    return {start + path.partition("/")[0] for path in inner if "/" in path}


def _is_text(sample: bytes) -> bool:
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start > len(sample) - 4  # the sample may end within a character
    return True
