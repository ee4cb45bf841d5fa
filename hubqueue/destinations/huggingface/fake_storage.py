"""The storage of the fake Hub for large files: LFS, in one request or in parts, by signed addresses."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from math import ceil
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from hubqueue.destinations.huggingface.fake_repositories import FakeRepository
from hubqueue.sandbox.archive import Archive, Fact, opened_privately
from hubqueue.sandbox.request import BLOCK, Request
from hubqueue.sandbox.response import Headers, Refused, Response, as_json
from hubqueue.sandbox.routes import Prepared, responding

_OID = re.compile(r"[0-9a-f]{64}")


class Hub(Protocol):
    """What the storage needs of the fake Hub."""

    repositories: dict[str, FakeRepository]

    @property
    def archive(self) -> Archive: ...


class FakeStorage:
    """The objects of all repositories. Unfinished parts are in memory as paths, and lost with the process."""

    def __init__(self, hub: Hub, part_size: int) -> None:
        self._hub, self._part_size = hub, part_size
        self._secret = secrets.token_bytes(16)
        self._parts: dict[str, dict[int, tuple[str, Path]]] = {}  # by repository and SHA-256: hash and file
        self._sizes: dict[str, int] = {}

    def address(self, root: str, repo: str, oid: str, part: str = "") -> str:
        """A signed address of an object, or of a part of it."""
        path = f"/lfs/{repo}/{oid}" + (f"/{part}" if part else "")
        return f"{root}{path}?X-Amz-Signature={self._signature(path)}"

    def batch(self, request: Request, repo: str) -> Prepared:
        """Where to upload the objects of a list. One that is there needs no upload."""
        request.headers.replace_header("content-type", "application/json")
        repository, body = self._hub.repositories[unquote(repo)], request.json_object()
        found = []
        for each in body.get("objects", []):
            oid, size = each.get("oid"), each.get("size")
            if not isinstance(oid, str) or not _OID.fullmatch(oid) or not isinstance(size, int):
                raise Refused(422, "an object needs oid and size")
            self._sizes[f"{repository.id} {oid}"] = size
            actions = (
                {}
                if oid in repository.objects
                else {"actions": self._actions(request, repository.id, oid, size)}
            )
            found.append({"oid": oid, "size": size, **actions})
        in_parts = any("chunk_size" in str(each.get("actions")) for each in found)
        return responding(as_json(200, {"transfer": "multipart" if in_parts else "basic", "objects": found}))

    def take(self, request: Request, repo: str) -> Prepared:
        """An object in one request."""
        oid = request.path.rpartition("/")[2]
        arriving, digest = self._received(request)
        if digest != oid or request.body.length != self._sizes.get(f"{repo} {oid}"):
            arriving.unlink(missing_ok=True)
            raise Refused(400, "the file has another SHA-256 or size than was announced")
        return self._kept(repo, oid, arriving)

    def take_part(self, request: Request, repo: str) -> Prepared:
        """A part of an object. Its ETag is its hash."""
        oid, number = request.path.rsplit("/", 2)[1:]
        arriving, digest = self._received(request)

        def commit() -> tuple[Response, bool]:
            self._parts.setdefault(f"{repo} {oid}", {})[int(number)] = (digest, arriving)
            return Response(200, headers=(("ETag", f'"{digest}"'),)), False

        return Prepared(commit, lambda: arriving.unlink(missing_ok=True))

    def complete(self, request: Request, repo: str) -> Prepared:
        """Make an object of its parts."""
        request.headers.replace_header("content-type", "application/json")
        self._check(request)
        oid, body = request.path.rsplit("/", 2)[1], request.json_object()
        parts, listed = self._parts.get(f"{repo} {oid}", {}), body.get("parts", [])
        if [each.get("etag", "").strip('"') for each in listed] != [parts[each][0] for each in sorted(parts)]:
            raise Refused(400, "these are not the parts that were uploaded")
        whole, hashing = self._hub.archive.incoming(), hashlib.sha256()
        with open(whole, "wb", opener=opened_privately) as file:
            for number in sorted(parts):
                content = parts[number][1].read_bytes()
                hashing.update(content)
                file.write(content)
        if hashing.hexdigest() != oid:
            whole.unlink()
            raise Refused(400, "the file has another SHA-256 than was announced")
        return self._kept(repo, oid, whole, {"success": True})

    def serve(self, request: Request, repo: str) -> Prepared:
        """The bytes of an object, or a range of them."""
        request.body.drain()
        self._check(request)
        path = self._hub.repositories[unquote(repo)].objects.get(request.path.rpartition("/")[2])
        if path is None:
            raise Refused(404, "there is no such object")
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        size, kind = path.stat().st_size, "application/octet-stream"
        if found is None or int(found[1]) >= size:
            return responding(Response(200, content_type=kind, file=path))
        first, last = int(found[1]), min(int(found[2]), size - 1)
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        headers: Headers = (("Content-Range", f"bytes {first}-{last}/{size}"),)
        return responding(Response(206, content, kind, headers))

    def _actions(self, request: Request, repo: str, oid: str, size: int) -> dict[str, Any]:
        if size <= self._part_size:
            return {"upload": {"href": self.address(request.root, repo, oid)}}
        count = ceil(size / self._part_size)
        parts = {str(each): self.address(request.root, repo, oid, str(each)) for each in range(1, count + 1)}
        header = {"chunk_size": str(self._part_size), **parts}
        return {"upload": {"href": self.address(request.root, repo, oid, "complete"), "header": header}}

    def _received(self, request: Request) -> tuple[Path, str]:
        """The file of an upload that has arrived, and its SHA-256."""
        self._check(request)
        request.need_length()
        arriving, hashing = self._hub.archive.incoming(), hashlib.sha256()
        try:
            with open(arriving, "wb", opener=opened_privately) as file:
                while block := request.body.read(BLOCK):
                    file.write(block)
                    hashing.update(block)
        except BaseException:
            arriving.unlink(missing_ok=True)
            raise
        return arriving, hashing.hexdigest()

    def _kept(self, repo: str, oid: str, arriving: Path, answer: dict[str, Any] | None = None) -> Prepared:
        repository, archive = self._hub.repositories[unquote(repo)], self._hub.archive
        response = Response(200) if answer is None else as_json(200, answer)

        def make() -> tuple[Fact, Response]:
            folder, number = repository.id.replace("/", "--"), len(repository.objects) + 1
            file = archive.store(arriving, folder, number, oid[:16])
            return {"fact": "large file", "repo": repository.id, "oid": oid, "file": file}, response

        return Prepared(lambda: archive.keep(None, make), lambda: arriving.unlink(missing_ok=True))

    def _check(self, request: Request) -> None:
        given = request.query.get("X-Amz-Signature", [""])[-1]
        if not hmac.compare_digest(given.encode(), self._signature(request.path).encode()):
            raise Refused(403, "the signature does not match")

    def _signature(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), hashlib.sha256).hexdigest()
