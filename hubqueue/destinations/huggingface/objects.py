"""The objects of a repository, for one attempt: what is read is of one commit, what is written waits for the next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.hf_api import RepoFile

from hubqueue.destinations.base import Attempt, Rejected, RetryLater
from hubqueue.destinations.huggingface.body import Rising, SourceFile
from hubqueue.destinations.huggingface.calls import BRANCH, Calls, Moved, git_hash
from hubqueue.destinations.layout.store import Source, Stored, StoreFailed, obey
from hubqueue.domain.redact import clean


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file that is uploaded, and not committed yet."""

    operation: CommitOperationAdd
    source: Source


Uploads = dict[tuple[str, str], Uploaded]
"""By name and SHA-256. They can be committed by another pass of the same attempt."""


class Objects:
    """The objects in the commit `head` (None: there is no repository), with the changes of this attempt."""

    def __init__(
        self,
        calls: Calls,
        head: str | None,
        attempt: Attempt,
        *,
        uploads: Uploads | None = None,
        remember: Mapping[str, str | int] | None = None,
    ) -> None:
        self.remember: Mapping[str, str | int] = remember or {}
        self._calls, self._head, self._attempt = calls, head, attempt
        self._uploads: Uploads = {} if uploads is None else uploads
        self._changes: dict[str, bytes | Uploaded | None] = {}  # None: deleted
        self._files: dict[str, RepoFile | None] = {}
        self._read: dict[str, bytes] = {}

    # --- what is there

    def read(self, name: str) -> bytes | None:
        """A small object; None if there is none."""
        if name in self._changes:
            changed = self._changes[name]
            assert not isinstance(changed, Uploaded), "a large object is not read before it is committed"
            return changed
        file = self._file(name)
        if file is None or self._head is None:
            return None
        if name not in self._read:
            self._read[name] = self._calls.read(file, self._head, self._attempt)
        return self._read[name]

    def stat(self, name: str, *, hashed: bool = False) -> Stored | None:
        """An object without its content; None if there is none. The Hub states the SHA-256 of large files only."""
        if name in self._changes:
            changed = self._changes[name]
            return None if changed is None else _stored(name, changed)
        file = self._file(name)
        return None if file is None else Stored(name, file.size, _sha256(file))

    def below(self, folder: str) -> Iterator[Stored]:
        """All objects below a folder, at any depth."""
        found = {each.path: each for each in self._tree(folder, recursive=True) if isinstance(each, RepoFile)}
        for name, file in found.items():
            if name not in self._changes:
                yield Stored(name, file.size, _sha256(file))
        for name, changed in self._changes.items():
            if changed is not None and name.startswith(_prefix(folder)):
                yield _stored(name, changed)

    def children(self, folder: str) -> list[str]:
        """The names directly below a folder, each without the folder."""
        start = len(_prefix(folder))
        found = {each.path[start:]: None for each in self._tree(folder, recursive=False)}
        for name, changed in self._changes.items():
            if not name.startswith(_prefix(folder)):
                continue
            child, _, further = name[start:].partition("/")
            if changed is not None:
                found[child] = None
            elif not further:
                found.pop(child, None)
        return list(found)

    def blocks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of an object from an offset, in blocks of at most 1 MiB."""
        file = self._file(name)
        if file is None or self._head is None:
            raise StoreFailed(RetryLater(f"{clean(name, limit=300)} is gone"))
        yield from self._calls.blocks(file, self._head, self._attempt, start)

    def url(self, folder: str) -> str | None:
        """The page of a folder."""
        settings = self._calls.settings
        return f"{settings.url}/{settings.repo_id}/tree/{BRANCH}/{quote(folder)}"

    # --- what changes

    def create(self, name: str, content: bytes) -> bool:
        """Store a small object, unless one of that name exists; whether it will be stored."""
        if self.stat(name) is not None:
            return False
        self._changes[name] = content
        return True

    def replace(self, name: str, content: bytes) -> None:
        """Store a small object, in place of one that exists."""
        if self.read(name) != content:
            self._changes[name] = content

    def delete(self, name: str) -> None:
        """Delete an object; nothing happens if there is none."""
        if self._file(name) is not None:
            self._changes[name] = None
        else:
            self._changes.pop(name, None)

    def discard(self, folder: str) -> None:
        """Delete everything below a folder."""
        for each in list(self.below(folder)):
            self.delete(each.name)

    def upload(self, name: str, source: Source, attempt: Attempt, progress: str | None) -> None:
        """Upload a large object. It becomes visible with the commit."""
        known = self._uploads.get((name, source.sha256))
        if known is None:
            file = SourceFile(source, lambda: obey(attempt))
            try:
                operation = _addition(name, cast("BinaryIO", file))
                self._calls.upload(operation, replace(attempt, on_bytes=Rising(attempt.on_bytes)))
            finally:
                file.close_body()
            known = self._uploads[name, source.sha256] = Uploaded(operation, source)
        attempt.on_bytes(source.size)
        self._changes[name] = known

    # --- the commit

    def commit(self, title: str, description: str) -> None:
        """Commit all changes. Nothing happens without a change. Raises `Moved` if another commit has come first."""
        if not self._changes:
            return
        obey(self._attempt)
        parent = self._head if self._head is not None else self._created()
        operations: list[Any] = []
        for name, changed in self._changes.items():
            if changed is None:
                operations.append(CommitOperationDelete(name, is_folder=False))
            elif isinstance(changed, Uploaded):
                operations.append(changed.operation)
            else:
                operation = _addition(name, changed)
                self._calls.upload(operation, self._attempt)
                operations.append(operation)
        made = self._calls.commit(
            operations, parent=parent, title=title, description=description, attempt=self._attempt
        )
        self._prove(made)

    def _created(self) -> str:
        """The first commit of the repository, which is created."""
        self._calls.create(self._attempt)
        head = self._calls.head(self._attempt)
        if head is None:
            raise StoreFailed(RetryLater(f"{self._calls.settings.repo_id} is not there after its creation"))
        if self._calls.stat(list(self._changes), head, self._attempt):
            raise Moved(RetryLater(f"{self._calls.settings.repo_id} was created meanwhile"))
        return head

    def _prove(self, commit: str) -> None:
        """Compare what the Hub lists in the commit with what was sent."""
        sent = {name: each for name, each in self._changes.items() if each is not None}
        found = self._calls.stat(list(sent), commit, self._attempt)
        for name, each in sent.items():
            if name not in found or not _is_same(found[name], each):
                raise StoreFailed(
                    RetryLater(
                        f"{clean(name, limit=300)} is not in the commit as it was sent; it will be sent again"
                    )
                )

    # --- the listing

    def _file(self, name: str) -> RepoFile | None:
        if self._head is None:
            return None
        if name not in self._files:
            self._files[name] = self._calls.stat([name], self._head, self._attempt).get(name)
        return self._files[name]

    def _tree(self, folder: str, *, recursive: bool) -> list[Any]:
        if self._head is None:
            return []
        return self._calls.tree(folder, self._head, self._attempt, recursive=recursive)


def _prefix(folder: str) -> str:
    return f"{folder}/" if folder else ""


def _addition(name: str, content: bytes | BinaryIO) -> CommitOperationAdd:
    """The operation that adds a file. Raises `StoreFailed` for a name that git reserves."""
    if any(part in (".git", ".cache") for part in name.split("/")):
        raise StoreFailed(Rejected(f"the Hub accepts no file with the name {clean(name, limit=300)}"))
    return CommitOperationAdd(name, content)


def _stored(name: str, changed: bytes | Uploaded) -> Stored:
    if isinstance(changed, Uploaded):
        return Stored(name, changed.source.size, changed.source.sha256)
    return Stored(name, len(changed))


def _sha256(file: RepoFile) -> str | None:
    return None if file.lfs is None else file.lfs.sha256


def _is_same(file: RepoFile, sent: bytes | Uploaded) -> bool:
    """Whether a file in the listing is what was sent. Of a small file the Hub states only the hash of git."""
    stored = _stored("", sent)
    if file.size != stored.size:
        return False
    if isinstance(sent, bytes) and file.lfs is None:
        return file.blob_id == git_hash(sent)
    return _sha256(file) in (None, stored.sha256)
