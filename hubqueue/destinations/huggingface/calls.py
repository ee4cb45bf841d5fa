"""The calls of one repository: huggingface_hub makes the requests and reads the responses, `session` sends them.

Promises that every error of the library is an outcome, and that a response counts only if it has what the Hub's has: the
content of a small file is compared with its hash in the listing.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import CommitOperationAdd, HfApi, __version__, constants, get_token, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hubqueue.config.declaration import Key
from hubqueue.config.registry import install_line
from hubqueue.destinations.base import Attempt, Blocked, RetryLater, Scope
from hubqueue.destinations.huggingface.client_token import is_stand_in
from hubqueue.destinations.huggingface.errors import absent, refused_upload, shown
from hubqueue.destinations.huggingface.session import Call, Wires, calling, unexpected
from hubqueue.destinations.huggingface.settings import HuggingfaceSettings
from hubqueue.destinations.layout.store import LARGEST, StoreFailed
from hubqueue.destinations.wire.body import BLOCK
from hubqueue.destinations.wire.message import Response
from hubqueue.domain.outcome import ADVICE, FOREIGN
from hubqueue.domain.redact import LEAST_KEY, clean, remember

BRANCH = "main"
# Before 1.0 the library has another HTTP client; before this one it accepts no other address than the vendor's.
_LEAST_VERSION = (1, 3, 2)
# In bytes: what one request reads of a large file.
_SECTION = 4 * BLOCK
_LEADS_ELSEWHERE = (301, 302, 303, 307, 308)
_MOST_PATHS = 500
# The repository's own rules must not leave a file of a checkpoint out of its commit.
_NOTHING_IGNORED = "# written by hubqueue: nothing is ignored\n"


class Moved(StoreFailed):
    """Another commit has come before this one."""


class Calls:
    """The calls of one repository. Safe to use from several threads."""

    def __init__(self, settings: HuggingfaceSettings, keys: Callable[[], tuple[Key, ...]]) -> None:
        self.settings, self._keys = settings, keys
        self.host = urlsplit(settings.url).hostname or settings.url
        self._wires = Wires(settings)
        self._lock = threading.Lock()
        self._addresses: dict[str, str] = {}  # of large files: by their own address, the signed one

    def close(self) -> None:
        """Close the connections that are kept alive."""
        self._wires.close()

    # --- the repository

    def whoami(self, attempt: Attempt) -> dict[str, Any]:
        """What the Hub says of the token: `name`, `orgs`, `auth`."""
        with self._making("whoami", attempt) as (api, call):
            found: dict[str, Any] = api.whoami(token=call.token)
            if not isinstance(found.get("name"), str):
                raise StoreFailed(unexpected(self.host, "whoami"))
            return found

    def head(self, attempt: Attempt) -> str | None:
        """The newest commit; None if the repository does not exist, or may not be read."""
        with self._making("the list of branches", attempt) as (api, _):
            try:
                refs = api.list_repo_refs(self.settings.repo_id)
            except RepositoryNotFoundError:
                return None
            found = [each.target_commit for each in refs.branches if each.name == BRANCH]
            if not found or not constants.REGEX_COMMIT_OID.fullmatch(found[0]):
                raise StoreFailed(unexpected(self.host, "the list of branches"))
            return found[0]

    def create(self, attempt: Attempt) -> None:
        """Create the repository, unless it exists."""
        settings = self.settings
        with self._making("the creation of the repository", attempt) as (api, _):
            api.create_repo(settings.repo_id, private=settings.private, exist_ok=True)

    # --- its files

    def stat(self, names: Sequence[str], commit: str, attempt: Attempt) -> dict[str, RepoFile]:
        """The files with these names in a commit; those that do not exist are missing."""
        found: dict[str, RepoFile] = {}
        for start in range(0, len(names), _MOST_PATHS):
            some = list(names[start : start + _MOST_PATHS])
            with self._making("paths-info", attempt) as (api, _):
                listed = api.get_paths_info(self.settings.repo_id, some, revision=commit)
                found |= {each.path: each for each in listed if isinstance(each, RepoFile)}
        return found

    def tree(self, folder: str, commit: str, attempt: Attempt, *, recursive: bool) -> list[Any]:
        """The files and folders below a folder ("": the repository); none if it does not exist."""
        with self._making("the tree", attempt) as (api, _):
            try:
                return list(
                    api.list_repo_tree(
                        self.settings.repo_id, folder or None, recursive=recursive, revision=commit
                    )
                )
            except EntryNotFoundError:
                return []

    def read(self, file: RepoFile, commit: str, attempt: Attempt) -> bytes:
        """The content of a small file. It is what the listing says, byte for byte."""
        if file.size > LARGEST:
            raise StoreFailed(RetryLater(f"{clean(file.path, limit=300)} is too large for a record"))
        content = b"".join(self.blocks(file, commit, attempt))
        if file.lfs is not None:
            same = hashlib.sha256(content).hexdigest() == file.lfs.sha256
        else:
            same = git_hash(content) == file.blob_id
        if not same:
            raise StoreFailed(
                RetryLater(f"{self.host}: {clean(file.path, limit=300)} is not what was committed, {FOREIGN}")
            )
        return content

    def blocks(self, file: RepoFile, commit: str, attempt: Attempt, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from an offset, in blocks of at most 1 MiB."""
        for at in range(start, file.size, _SECTION):
            end = min(at + _SECTION, file.size)
            content = self._section(file, commit, at, end, attempt)
            for offset in range(0, len(content), BLOCK):
                yield content[offset : offset + BLOCK]

    # --- commits

    def upload(self, operation: CommitOperationAdd, attempt: Attempt) -> None:
        """Upload a file that will be committed. A small text only becomes part of the commit."""
        with self._making("an upload", attempt) as (api, _):
            # One at a time: of several the library makes threads, and shows a progress bar.
            api.preupload_lfs_files(
                self.settings.repo_id, [operation], gitignore_content=_NOTHING_IGNORED, free_memory=False
            )

    def commit(
        self, operations: Iterable[Any], *, parent: str, title: str, description: str, attempt: Attempt
    ) -> str:
        """Make one commit of these operations, and return its id. Raises `Moved` if another one has come first."""
        with self._making("the commit", attempt) as (api, _):
            try:
                made = api.create_commit(
                    self.settings.repo_id,
                    list(operations),
                    commit_message=title,
                    commit_description=description,
                    parent_commit=parent,
                )
            except HfHubHTTPError as error:
                if error.response.status_code == 412:
                    raise Moved(
                        RetryLater(f"{self.settings.repo_id} has another commit meanwhile")
                    ) from error
                raise
            if not constants.REGEX_COMMIT_OID.fullmatch(str(made.oid)):
                raise StoreFailed(unexpected(self.host, "the commit"))
            return str(made.oid)

    # --- the library

    @contextmanager
    def _making(self, what: str, attempt: Attempt) -> Iterator[tuple[HfApi, Call]]:
        """Make calls of the library. Its errors become outcomes."""
        self._check_library()
        call = Call(self._wires, attempt, "", ())
        with calling(call):
            try:
                call.token = self._token()
                call.secrets = (call.token,)
                yield HfApi(endpoint=self.settings.url, token=call.token, library_name="hubqueue"), call
            except StoreFailed:
                raise
            except RepositoryNotFoundError as error:
                raise StoreFailed(absent(self.settings, self.host)) from error
            except HfHubHTTPError as error:
                response = Response(
                    error.response.status_code, error.response.headers, error.response.content
                )
                reason = f"{self.host} refuses {what}: {shown(response, call.secrets)}"
                raise StoreFailed(RetryLater(reason)) from error
            except Exception as error:
                raise self._strange(error, call, what) from error

    def _strange(self, error: Exception, call: Call, what: str) -> Exception:
        """A response of another shape than the Hub's is tried again; every other error stays as it is."""
        caused = error
        while caused.__cause__ is not None and not isinstance(caused, StoreFailed):
            caused = caused.__cause__  # type: ignore[assignment]
        if isinstance(caused, StoreFailed):
            return caused  # the library has wrapped it
        if isinstance(error, ValueError) and str(error).startswith("LFS batch API returned errors"):
            return StoreFailed(refused_upload(str(error), self.settings, self.host))
        if call.sent and isinstance(error, ValueError | KeyError | TypeError | AttributeError):
            return StoreFailed(unexpected(self.host, what))
        return error

    def _token(self) -> str:
        name, key = self.settings.name, next(iter(self._keys()), None)
        if key is None:
            raise StoreFailed(Blocked(f"there is no key for {name}", Scope.DESTINATION))
        token = get_token() if is_stand_in(key) else str(key)
        if not token:
            how = f"hf auth login, or hubqueue login {name}"
            what = f"the key is missing: huggingface_hub has no token any more{ADVICE}{how}"
            raise StoreFailed(Blocked(what, Scope.DESTINATION))
        remember((token,))
        if len(token) < LEAST_KEY:
            what = f"the key for {name} has fewer than {LEAST_KEY} characters"
            raise StoreFailed(Blocked(f"{what}, so it could not be masked", Scope.DESTINATION))
        return token

    def _check_library(self) -> None:
        """Find out whether the library can be used."""
        if tuple(map(int, re.findall(r"\d+", __version__)[:3])) < _LEAST_VERSION:
            least = ".".join(map(str, _LEAST_VERSION))
            what = f"huggingface_hub {__version__} is too old: hubqueue needs version {least} or newer"
            raise StoreFailed(Blocked(f"{what}{ADVICE}{install_line('huggingface')}", Scope.DESTINATION))
        is_offline = getattr(constants, "is_offline_mode", lambda: constants.HF_HUB_OFFLINE)
        if is_offline():
            how = "unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), and restart the worker"
            what = f"huggingface_hub is in offline mode: HF_HUB_OFFLINE is set{ADVICE}{how}"
            raise StoreFailed(Blocked(what, Scope.DESTINATION))

    # --- downloads

    def _section(self, file: RepoFile, commit: str, start: int, end: int, attempt: Attempt) -> bytes:
        usual = hf_hub_url(self.settings.repo_id, file.path, revision=commit, endpoint=self.settings.url)
        wanted = {"Range": f"bytes={start}-{end - 1}", "Accept": "*/*"}
        for _ in range(3):
            with self._lock:
                signed = self._addresses.get(usual)
            try:
                response = self._get(signed or usual, wanted, attempt)
            except StoreFailed:
                if signed is None:
                    raise
                with self._lock:
                    self._addresses.pop(usual, None)  # it has expired
                continue
            if response.status in _LEADS_ELSEWHERE:
                address = urljoin(usual, response.headers.get("Location", ""))
                with self._lock:
                    self._addresses[usual] = address
                continue
            content = response.body[start:end] if response.status == 200 else response.body
            if len(content) != end - start:
                raise StoreFailed(
                    RetryLater(f"{self.host}: a part of {clean(file.path, limit=300)} is missing")
                )
            return content
        raise StoreFailed(
            RetryLater(f"{self.host} directs the download of {clean(file.path, limit=300)} in a circle")
        )

    def _get(self, url: str, headers: dict[str, str], attempt: Attempt) -> Response:
        self._check_library()
        call = Call(self._wires, attempt, "", ())
        with calling(call):
            call.token = self._token()
        call.secrets = (call.token,)
        sent = {**headers, "Authorization": f"Bearer {call.token}"}
        return self._wires.ask(
            "GET", url, attempt, call=call, headers=sent, most=2 * _SECTION, usual=_LEADS_ELSEWHERE
        )


def git_hash(content: bytes) -> str:
    """The id of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - that is git's
