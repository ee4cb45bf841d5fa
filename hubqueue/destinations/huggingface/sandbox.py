"""The fake Hugging Face Hub of the sandbox: the part of its API that huggingface_hub uses for commits and downloads.

Promises: a commit is stored whole or not at all, with the hashes of the real Hub; a large file counts only if its SHA-256 and
its size are those that were announced. Refuses: a wrong token (401), an unknown repository, commit or file (404), a
commit on an older parent (412), a file that was not uploaded (422), other bytes than were announced (400), an unsigned
address (403). It speaks LFS, in one request or in parts, and no Xet.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote

from hubqueue.destinations.huggingface import fake_page
from hubqueue.destinations.huggingface.fake_labels import label
from hubqueue.destinations.huggingface.fake_repositories import (
    FakeCommit,
    FakeFile,
    FakeRepository,
    applied,
    commit_fact,
    epochs_in,
    folders_in,
    is_large,
    large_file,
    text_file,
)
from hubqueue.destinations.huggingface.fake_storage import FakeStorage
from hubqueue.sandbox.archive import Archive, Fact
from hubqueue.sandbox.request import BLOCK, Request, strict_json
from hubqueue.sandbox.response import Dialect, Headers, Refused, Response, as_json
from hubqueue.sandbox.routes import Entrance, Prepared, RoutedService, responding
from hubqueue.sandbox.service import RunDetail, RunSummary

_REPO = r"([^/]+/[^/]+)"
_NO_REPOSITORY = (("X-Error-Code", "RepoNotFound"),)
_NO_ENTRY = (("X-Error-Code", "EntryNotFound"),)
_NO_REVISION = (("X-Error-Code", "RevisionNotFound"),)
_DIALECT = Dialect(
    done=as_json(200, {}), null=b"null", error=lambda reason: json.dumps({"error": reason}).encode()
)
_LARGEST_COMMIT = 256 << 20


class FakeHuggingface(RoutedService):
    """The routes of the Hub, which accepts a token as a bearer token.

    The token belongs to the account `owner`, which may write to its own repositories only (None: to all of them). With
    `may_write` false the token may only read. Files of more than `part_size` bytes are uploaded in parts. `repositories` are
    by id; read them under `Archive.changed`.
    """

    name = "huggingface"
    title = "Hugging Face Hub"
    events: Mapping[str, str] = {}
    facts = frozenset({"repository", "large file", "commit"})
    key_headers = ("authorization",)
    dialect = _DIALECT

    def __init__(
        self, *, owner: str | None = None, may_write: bool = True, part_size: int = 32 << 20
    ) -> None:
        self.repositories: dict[str, FakeRepository] = {}
        self._owner, self._may_write = owner, may_write
        self._storage = FakeStorage(self, part_size)
        table = [
            ("GET", "/api/whoami-v2", "auth", self._whoami),
            ("POST", "/api/repos/create", "registration", self._create),
            ("GET", f"/api/models/{_REPO}/refs", "read", self._refs),
            ("POST", f"/api/models/{_REPO}/paths-info/[^/]+", "read", self._paths_info),
            ("GET", f"/api/models/{_REPO}/tree/[^/]+(?:/.*)?", "read", self._tree),
            ("POST", f"/api/models/{_REPO}/preupload/[^/]+", "other", self._preupload),
            ("POST", f"/api/models/{_REPO}/commit/[^/]+", "other", self._commit),
            ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "ckpt", self._storage.batch),
            ("GET", f"/{_REPO}/resolve/[^/]+/.+", "read", self._resolve),
            ("HEAD", f"/{_REPO}/resolve/[^/]+/.+", "read", self._resolve),
        ]
        signed = [
            ("PUT", f"/lfs/{_REPO}/[^/]+", "ckpt", self._storage.take),
            ("PUT", f"/lfs/{_REPO}/[^/]+/[0-9]+", "ckpt", self._storage.take_part),
            ("POST", f"/lfs/{_REPO}/[^/]+/complete", "ckpt", self._storage.complete),
            ("GET", f"/lfs/{_REPO}/[^/]+", "read", self._storage.serve),
        ]
        super().__init__(
            [
                Entrance(method, re.compile(path), kind, take, label=label if kind == "other" else None)
                for method, path, kind, take in table
            ]
            + [
                Entrance(method, re.compile(path), kind, take, needs_key=False)
                for method, path, kind, take in signed
            ]
        )

    def variables(self, url: str, key: str) -> Mapping[str, str]:
        """The environment variables that make a training send to `url`, with `key`."""
        return {"HF_ENDPOINT": url, "HF_TOKEN": key}

    def key_of(self, request: Request) -> str:
        """The token of a request."""
        return request.bearer()

    def look_up(self, model_id: str | None, request: Request) -> None:
        """Check the repository in the path."""
        if model_id is not None and unquote(model_id) not in self.repositories:
            raise Refused(404, "Repository not found", headers=_NO_REPOSITORY)

    # --- state

    def reset(self) -> None:
        """Clear the state. Called before the archive reads its facts back."""
        self.repositories.clear()

    def apply(self, fact: Fact) -> None:
        """Apply one fact."""
        if fact["fact"] == "repository":
            repository = FakeRepository(fact["repo"], fact["private"])
            self.repositories[repository.id] = repository
            repository.commits.append(applied(repository, fact))
            return
        repository = self.repositories[fact["repo"]]
        if fact["fact"] == "commit":
            repository.commits.append(applied(repository, fact))
        else:
            repository.objects[fact["oid"]] = (
                self.archive.folder_of(folder_name(repository.id)) / fact["file"]
            )

    @property
    def archive(self) -> Archive:
        """What it stores."""
        return self._archive

    # --- the account and its repositories

    def _whoami(self, request: Request, _: str) -> Prepared:
        request.body.drain()
        role = "write" if self._may_write else "read"
        account = {"type": "user", "id": "0" * 24, "name": self._owner or "sandbox", "orgs": []}
        return responding(
            as_json(200, {**account, "auth": {"accessToken": {"displayName": "t", "role": role}}})
        )

    def _create(self, request: Request, _: str) -> Prepared:
        body = request.json_object()
        owner, name = body.get("organization") or self._owner or "sandbox", body.get("name")
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,96}", name):
            raise Refused(400, "Invalid repo name")
        repo = f"{owner}/{name}"
        self._check_write(repo)
        private = body.get("private") is True or body.get("visibility") == "private"

        def make() -> tuple[Fact, Response]:
            first = text_file(".gitattributes", b"*.bin filter=lfs diff=lfs merge=lfs -text\n")
            made = commit_fact("repository", repo, "initial commit", "", [first], [])
            return {**made, "private": private}, as_json(200, {"url": f"{request.root}/{repo}", "name": repo})

        def commit() -> tuple[Response, bool]:
            with self.archive.changed:
                if repo not in self.repositories:
                    return self._archive.keep(None, make)
            reason = "You already created this model repo"
            return as_json(409, {"error": reason, "url": f"{request.root}/{repo}"}), False

        return Prepared(commit)

    def _check_write(self, repo: str) -> None:
        if not self._may_write:
            raise Refused(403, "Forbidden: your token has no write permission")
        if self._owner is not None and repo.partition("/")[0] != self._owner:
            raise Refused(403, f"You don't have the rights to write to {repo}")

    # --- reading

    def _refs(self, request: Request, repo: str) -> Prepared:
        request.body.drain()
        head = self._repository(repo).head.id
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": head}
        return responding(as_json(200, {"tags": [], "branches": [main], "converts": []}))

    def _paths_info(self, request: Request, repo: str) -> Prepared:
        content = _whole(request)
        if request.headers.get_content_type() == "application/json":
            paths = strict_json(content).get("paths", [])
        else:
            paths = parse_qs(content.decode()).get("paths", [])
        commit = self._commit_in(repo, request.path.rpartition("/")[2])
        found = [commit.files[path].document for path in paths if path in commit.files]
        return responding(as_json(200, found))

    def _tree(self, request: Request, repo: str) -> Prepared:
        request.body.drain()
        revision, _, encoded = request.path.partition("/tree/")[2].partition("/")
        commit, folder = self._commit_in(repo, revision), unquote(encoded)
        start = f"{folder}/" if folder else ""
        below = [each for path, each in commit.files.items() if path.startswith(start)]
        if not below and folder:
            raise Refused(404, f"{folder} does not exist", headers=_NO_ENTRY)
        recursive = request.query.get("recursive", ["false"])[-1].lower() == "true"
        folders = [
            {"type": "directory", "path": each, "oid": "0" * 40, "size": 0}
            for each in ([] if recursive else sorted(folders_in(commit.files, folder)))
        ]
        files = [each.document for each in below if recursive or "/" not in each.path[len(start) :]]
        at = int(request.query.get("cursor", ["0"])[-1])
        page, more = (folders + files)[at : at + 1000], len(folders + files) > at + 1000
        query = f"recursive={'true' if recursive else 'false'}&cursor={at + 1000}"
        following = f'<{request.root}{request.path}?{query}>; rel="next"'
        return responding(as_json(200, page, headers=(("Link", following),) if more else ()))

    def _resolve(self, request: Request, repo: str) -> Prepared:
        request.body.drain()
        revision, _, encoded = request.path.partition("/resolve/")[2].partition("/")
        repository, commit = self._repository(repo), self._commit_in(repo, unquote(revision))
        file = commit.files.get(unquote(encoded))
        if file is None:
            raise Refused(404, "Entry not found", headers=_NO_ENTRY)
        headers: Headers = (("X-Repo-Commit", commit.id), ("ETag", f'"{file.oid or file.blob}"'))
        if file.oid is None:
            return responding(ranged(request, repository.content(file), headers))
        signed = self._storage.address(request.root, repository.id, file.oid)
        linked = (("X-Linked-ETag", f'"{file.oid}"'), ("X-Linked-Size", str(file.size)))
        if request.method == "HEAD":  # the client follows a redirect to the same host
            return responding(Response(200, headers=(*headers, *linked), file=repository.objects[file.oid]))
        return responding(Response(302, headers=(*headers, *linked, ("Location", signed))))

    # --- writing

    def _preupload(self, request: Request, repo: str) -> Prepared:
        self._check_write(unquote(repo))
        body, head = request.json_object(), self._repository(repo).head
        found = []
        for each in body.get("files", []):
            path, sample = each["path"], base64.b64decode(each["sample"])
            known = head.files.get(path)
            mode = "lfs" if is_large(path, each["size"], sample) else "regular"
            oid = None if known is None else known.oid or known.blob
            found.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return responding(as_json(200, {"files": found}))

    def _commit(self, request: Request, repo: str) -> Prepared:
        self._check_write(unquote(repo))
        lines = [strict_json(each) for each in _whole(request).splitlines()]
        repository = self._repository(repo)
        header, files, deleted = self._understood(lines, repository)
        parent = header.get("parentCommit")

        def make() -> tuple[Fact, Response]:
            if parent not in (None, repository.head.id):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            if not set(deleted) <= set(repository.head.files):
                raise Refused(404, "A file with this name doesn't exist", headers=_NO_ENTRY)
            title, description = header.get("summary", ""), header.get("description", "")
            fact = commit_fact("commit", repository.id, title, description, files, deleted)
            url = f"{request.root}/{repository.id}/commit/{fact['id']}"
            return fact, as_json(200, {"success": True, "commitOid": fact["id"], "commitUrl": url})

        return Prepared(lambda: self.archive.keep(None, make), epochs=epochs_in(files))

    def _understood(
        self, lines: Sequence[Any], repository: FakeRepository
    ) -> tuple[dict[str, Any], list[FakeFile], list[str]]:
        """The header, the files and the deleted paths of a commit. Raises `Refused`."""
        header: dict[str, Any] = {}
        files: list[FakeFile] = []
        deleted: list[str] = []
        try:
            for each in lines:
                value = each["value"]
                match each["key"]:
                    case "header":
                        header = value
                    case "file":
                        content = base64.b64decode(value["content"], validate=True)
                        files.append(text_file(value["path"], content))
                    case "lfsFile":
                        stored = repository.objects.get(value["oid"])
                        if stored is None:
                            raise Refused(
                                422, f"LFS pointer of {value['path']} pointed to a file that does not exist"
                            )
                        if stored.stat().st_size != value["size"]:
                            raise Refused(400, f"{value['path']} has another size")
                        files.append(large_file(value["path"], value["oid"], value["size"]))
                    case "deletedFile":
                        deleted.append(value["path"])
                    case other:
                        raise Refused(400, f"unknown operation {other}")
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise Refused(400, "invalid commit") from None
        if not header.get("summary"):
            raise Refused(400, "a commit needs a summary")
        return header, files, deleted

    def _repository(self, repo: str) -> FakeRepository:
        with self.archive.changed:
            return self.repositories[unquote(repo)]

    def _commit_in(self, repo: str, revision: str) -> FakeCommit:
        found = self._repository(repo).at(unquote(revision))
        if found is None:
            raise Refused(404, f"Invalid rev id: {revision}", headers=_NO_REVISION)
        return found

    # --- what the page shows

    def runs(self) -> Sequence[RunSummary]:
        """Every run in every repository, as the page shows it."""
        return [each.summary for each in fake_page.details(self.repositories.values())]

    def run(self, run_id: str) -> RunDetail | None:
        """One run with all its details, or None."""
        found = fake_page.details(self.repositories.values())
        return next((each for each in found if each.summary.id == run_id), None)

    def cancel(self, run_id: str) -> bool:
        """The Hub cancels nothing."""
        return False

    def document(self, path: str) -> Any | None:
        """It has no JSON documents besides those of its API."""
        return None


def folder_name(repo: str) -> str:
    """The folder of a repository in the archive."""
    return repo.replace("/", "--")


def ranged(request: Request, content: bytes, headers: Headers = ()) -> Response:
    """The response with a content, or with the range of it that was asked for."""
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    if found is None or int(found[1]) >= len(content):
        return Response(200, content, "application/octet-stream", headers)
    first, last = int(found[1]), min(int(found[2]), len(content) - 1)
    part: Headers = (("Content-Range", f"bytes {first}-{last}/{len(content)}"),)
    return Response(206, content[first : last + 1], "application/octet-stream", (*headers, *part))


def _whole(request: Request) -> bytes:
    if request.body.length > _LARGEST_COMMIT:
        raise Refused(413, "the request is too large", close=True)
    content = bytearray()
    while block := request.body.read(BLOCK):
        content += block
    return bytes(content)
