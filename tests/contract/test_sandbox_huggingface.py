"""The fake Hub of the sandbox, with the real client: it stores what the Hub stores, and refuses what the Hub refuses."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_stage import REPO, TOKEN, Hub

from hubqueue.destinations.huggingface.fake_repositories import FakeRepository
from hubqueue.destinations.huggingface.sandbox import FakeHuggingface
from hubqueue.sandbox.server import Server

LARGE = b"\0weights" * 1000


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture
def api(hub: Hub) -> HfApi:
    made = HfApi(endpoint=hub.server.url, token=TOKEN)
    made.create_repo(REPO, private=True)
    return made


def add(path: str, content: bytes) -> CommitOperationAdd:
    """A file object is sent by LFS."""
    return CommitOperationAdd(path, io.BytesIO(content) if b"\0" in content else content)


def head(api: HfApi) -> str:
    return str(api.list_repo_refs(REPO).branches[0].target_commit)


def refused(url: str, method: str, body: bytes) -> int:
    with pytest.raises(HTTPError) as caught:
        urlopen(Request(url, body, method=method))
    return int(caught.value.code)


def test_what_the_client_commits_is_there(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    api.create_commit(REPO, [add("a/large.pt", LARGE), add("a/text.json", b"{}")], commit_message="one")
    api.create_commit(REPO, [CommitOperationDelete("a/text.json")], commit_message="two")

    assert hub.titles == ["one", "two"]
    assert [each.path for each in api.list_repo_tree(REPO, "a")] == ["a/large.pt"]
    for name, content in (
        ("a/large.pt", LARGE),
        (".gitattributes", b"*.bin filter=lfs diff=lfs merge=lfs -text\n"),
    ):
        assert Path(api.hf_hub_download(REPO, name, local_dir=tmp_path)).read_bytes() == content


def test_a_wrong_token_and_an_unknown_repository_are_refused(hub: Hub, api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        HfApi(endpoint=hub.server.url, token="hf_another").list_repo_refs(REPO)
    assert caught.value.response.status_code == 401
    with pytest.raises(RepositoryNotFoundError):
        api.list_repo_refs("sandbox/other")


def test_a_commit_on_an_older_parent_is_refused(api: HfApi) -> None:
    first = head(api)
    api.create_commit(REPO, [add("a.json", b"1")], commit_message="one", parent_commit=first)

    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(REPO, [add("b.json", b"2")], commit_message="two", parent_commit=first)

    assert caught.value.response.status_code == 412
    assert [each.path for each in api.list_repo_tree(REPO)] == [".gitattributes", "a.json"]


def test_other_bytes_than_were_announced_are_refused(hub: Hub, api: HfApi) -> None:
    url = hub.fake._storage.address(hub.server.url, REPO, "0" * 64)

    assert refused(url, "PUT", LARGE) == 400
    assert refused(url.partition("?")[0], "PUT", LARGE) == 403
    assert hub.repository.objects == {}


def test_a_large_file_that_was_not_uploaded_is_refused(hub: Hub, api: HfApi) -> None:
    lines = [b'{"key": "header", "value": {"summary": "x"}}']
    lines += [
        b'{"key": "lfsFile", "value": {"path": "x.pt", "algo": "sha256", "oid": "%s", "size": 1}}'
        % (b"0" * 64)
    ]
    request = Request(f"{hub.server.url}/api/models/{REPO}/commit/main", b"\n".join(lines), method="POST")
    request.add_header("Authorization", f"Bearer {TOKEN}")

    with pytest.raises(HTTPError) as caught:
        urlopen(request)

    assert caught.value.code == 422
    assert hub.titles == []


def test_a_later_start_on_the_same_folder_has_everything(tmp_path: Path) -> None:
    def opened() -> tuple[Server, FakeHuggingface]:
        fake = FakeHuggingface()
        return Server([fake], tmp_path), fake

    def contents(repository: FakeRepository) -> dict[str, bytes]:
        return {path: repository.content(each) for path, each in repository.head.files.items()}

    server, fake = opened()
    with server:
        api = HfApi(endpoint=server.url, token=TOKEN)
        api.create_repo(REPO)
        api.create_commit(REPO, [add("large.pt", LARGE), add("text.json", b"{}")], commit_message="one")
        before = contents(fake.repositories[REPO])

    server, fake = opened()
    with server:
        assert contents(fake.repositories[REPO]) == before
        assert before["large.pt"] == LARGE
