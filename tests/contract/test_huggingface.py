"""What is special about a repository on the Hugging Face Hub: one commit a batch, the library's client, the token."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, get_session
from huggingface_stage import REPO, TOKEN, Hub, keys, sending

from hubqueue.config.declaration import Key
from hubqueue.config.reader import parse
from hubqueue.destinations.base import Blocked, Delivered, Kind, Transport, quiet
from hubqueue.destinations.huggingface import DESTINATION
from hubqueue.destinations.huggingface.body import SourceFile, Streamed
from hubqueue.destinations.huggingface.calls import Calls
from hubqueue.destinations.huggingface.client_token import is_stand_in, kept_by_the_client, token_path
from hubqueue.destinations.huggingface.fake_repositories import FakeFile, FakeRepository, text_file
from hubqueue.destinations.huggingface.fake_storage import FakeStorage
from hubqueue.destinations.huggingface.sandbox import FakeHuggingface
from hubqueue.destinations.huggingface.settings import HuggingfaceSettings
from hubqueue.destinations.layout.store import Source, StoreFailed
from hubqueue.destinations.wire.body import BodyChanged
from hubqueue.domain.errors import ConfigError, SnapshotAltered
from hubqueue.sandbox.response import as_json
from hubqueue.testing.child import Plan
from hubqueue.testing.conformance import Stage
from hubqueue.testing.forks import work

FOLDER = {"model.pt": b"\0" * 5000, "optimizer/rank-0.bin": b"\1" * 3000, "config.json": b"{}"}


@pytest.fixture
def hub_and_stage(tmp_path: Path) -> Iterator[tuple[Hub, Stage]]:
    with sending(tmp_path) as made:
        yield made


def commit(fake: FakeHuggingface, *files: FakeFile) -> None:
    """A commit of somebody else."""
    fact = {"fact": "commit", "repo": REPO, "id": os.urandom(20).hex(), "title": "by hand", "description": ""}
    fact |= {"at": fake.repositories[REPO].head.at.isoformat(), "deleted": []}
    fact["files"] = [asdict(each) for each in files]
    fake.archive.keep(None, lambda: (fact, as_json(200, {})))


def transport(settings: HuggingfaceSettings) -> Transport:
    return DESTINATION.open(settings, keys, open)  # type: ignore[arg-type]


# --- commits


def test_a_batch_is_one_commit_with_its_key(hub_and_stage: tuple[Hub, Stage]) -> None:
    hub, stage = hub_and_stage
    run = stage.start()
    stage.log(run, 0, 1, 2)
    stage.save(run, FOLDER, epoch=2, best=True)
    stage.end(run)

    stage.drain()

    name = f"resnet50-{run}"
    words = ("start", "metrics", "checkpoint", "end")
    assert sorted(hub.titles) == sorted(f"hubqueue: {word} of {name}" for word in words)
    (made,) = [each for each in hub.repository.commits if "checkpoint" in each.title]
    folder = f"{name}/checkpoints/epoch-0002"
    manifest = json.loads(hub.repository.content(made.files[f"{folder}/manifest.json"]))
    assert made.description == f"hubqueue-key: {manifest['key']}"
    before = hub.repository.commits[hub.repository.commits.index(made) - 1]
    files = {f"{folder}/{path}" for path in (*FOLDER, "manifest.json")}
    assert set(made.files) - set(before.files) == files | {f"{name}/latest.json", f"{name}/best.json"}


class Interrupted(FakeHuggingface):
    """Somebody else commits just before each of the first commits of a checkpoint."""

    left = 2

    def _understood(
        self, lines: Sequence[Any], repository: FakeRepository
    ) -> tuple[dict[str, Any], list[FakeFile], list[str]]:
        found = super()._understood(lines, repository)
        if "checkpoint of" in found[0]["summary"] and self.left:
            self.left -= 1
            commit(self, text_file(f"notes-{self.left}.txt", b"by hand"))
        return found


def test_a_commit_of_others_is_kept_and_the_files_are_uploaded_once(tmp_path: Path) -> None:
    with sending(tmp_path, Interrupted()) as (hub, stage):
        run = stage.start()
        stage.save(run, FOLDER)

        stage.drain()

        stage.assert_arrived(run)
        assert stage.reasons() == [], "the same attempt makes its commit again"
        assert hub.uploads == 2, "each large file once"
        assert {"notes-0.txt", "notes-1.txt"} <= set(hub.repository.head.files)


def test_after_many_commits_of_others_the_next_attempt_continues(tmp_path: Path) -> None:
    busy = Interrupted()
    busy.left = 7
    with sending(tmp_path, busy) as (hub, stage):
        run = stage.start()
        stage.save(run, FOLDER)

        stage.drain()

        stage.assert_arrived(run)
        assert stage.reasons() == [f"{REPO} has another commit meanwhile"]
        assert hub.uploads == 2, "what the Hub has is not sent again"


@pytest.mark.slow
def test_a_kill_at_any_step_makes_no_second_commit(hub_and_stage: tuple[Hub, Stage]) -> None:
    hub, stage = hub_and_stage
    run = stage.start()
    stage.log(run, 0, 1)
    stage.save(run, FOLDER)
    stage.end(run)
    stage.worker.stop()
    killed: set[str] = set()

    for _ in range(100):
        done = work(Plan(stage.home, stage.environ, stage.clock.elapsed() - 1000, frozenset(killed)))
        if done.killed_at is None:
            break
        killed.add(done.killed_at)
        stage.pass_time()

    assert {"metrics, sent 1", "ckpt, sent 1"} <= killed, "after the commit, before its note"
    assert len(hub.titles) == 4
    stage.assert_arrived(run)


def test_a_folder_of_others_with_the_name_of_a_run_is_left_alone(hub_and_stage: tuple[Hub, Stage]) -> None:
    hub, stage = hub_and_stage
    stage.start()
    stage.drain()
    run = stage.start()
    commit(hub.fake, text_file(f"resnet50-{run}/run.json", b'{"id": "of another run", "state": "running"}'))

    stage.save(run, FOLDER)
    stage.drain()

    files = hub.repository.head.files
    assert (
        hub.repository.content(files[f"resnet50-{run}/run.json"])
        == b'{"id": "of another run", "state": "running"}'
    )
    assert f"resnet50-{run}-{run}/checkpoints/epoch-0000/manifest.json" in files


def test_a_repository_is_created_private_unless_a_public_one_is_wanted(tmp_path: Path) -> None:
    with Hub() as hub:
        for name, private in (("one", True), ("two", False)):
            settings = HuggingfaceSettings("lab", url=hub.server.url, repo_id=f"me/{name}", private=private)

            Calls(settings, keys).create(quiet())
            Calls(settings, keys).create(quiet())

            assert hub.fake.repositories[f"me/{name}"].private == private


def test_a_run_stays_in_the_repository_in_which_it_began(hub_and_stage: tuple[Hub, Stage]) -> None:
    hub, stage = hub_and_stage
    run = stage.start()
    stage.drain()
    hub.repo_id = "sandbox/other"
    stage.configure()
    stage.log(run, 0)

    stage.step()

    (reason,) = stage.reasons()
    assert reason.startswith(
        f"this run began in the repository {REPO}, not in sandbox/other; to repair this: "
    )
    assert "sandbox/other" not in hub.fake.repositories


def test_a_name_that_git_reserves_rejects_only_its_checkpoint(hub_and_stage: tuple[Hub, Stage]) -> None:
    _, stage = hub_and_stage
    run = stage.start()
    stage.save(run, {"model.pt": b"\0" * 10, ".cache/x": b"\0"}, epoch=0)
    stage.drain()
    stage.save(run, FOLDER, epoch=1)

    stage.drain()

    (reason,) = stage.reasons()
    assert reason == f"the Hub accepts no file with the name resnet50-{run}/checkpoints/epoch-0000/.cache/x"
    stage.saved[run].pop(min(stage.saved[run]))
    stage.assert_arrived(run)


# --- the requests


def test_the_progress_of_an_upload_in_parts_only_rises(tmp_path: Path) -> None:
    content = os.urandom(9 << 20)  # parts of 4 MiB
    with sending(tmp_path) as (hub, stage):
        run = stage.start()
        stage.save(run, content)
        stage.drain()
        sent = [each.bytes for each in stage.steps if each.what == "bytes" and each.kind is Kind.CKPT]

        assert hub.uploads == 3
        assert sent == sorted(sent)
        assert sent[-1] == len(content)
        stage.assert_arrived(run)


class Elsewhere(FakeStorage):
    """A storage under another name than the Hub's."""

    def address(self, root: str, repo: str, oid: str, part: str = "") -> str:
        return super().address(root.replace("127.0.0.1", "localhost"), repo, oid, part)


def test_the_storage_of_files_receives_no_token(tmp_path: Path) -> None:
    with sending(tmp_path) as (hub, stage):
        hub.fake._storage.__class__ = Elsewhere
        run = stage.start()
        stage.save(run, FOLDER)
        stage.drain()
        calls = Calls(hub.target, keys)
        head = calls.head(quiet())
        assert head is not None
        name = f"resnet50-{run}/checkpoints/epoch-0000/model.pt"
        file = calls.stat([name], head, quiet())[name]

        assert b"".join(calls.blocks(file, head, quiet())) == FOLDER["model.pt"]
        at_storage = [each for each in hub.server.requests if each.path.startswith("/lfs/")]
        assert {each.method for each in at_storage} == {"PUT", "GET"}
        assert not any(each.with_key for each in at_storage)


def test_other_code_uses_the_library_as_before(hub_and_stage: tuple[Hub, Stage]) -> None:
    hub, stage = hub_and_stage
    stage.start()
    stage.drain()
    seen: list[str] = []
    usual = get_session().event_hooks
    get_session().event_hooks = {"request": [lambda request: seen.append(str(request.url.path))]}
    try:
        stage.start()
        stage.drain()
        assert seen == [], "the requests of the destination do not use the library's connections"

        found = []
        api = HfApi(endpoint=hub.server.url, token=TOKEN)
        with Calls(hub.target, keys)._making("a call", quiet()):
            thread = threading.Thread(target=lambda: found.append(api.whoami()["name"]))
            thread.start()
            thread.join()
        found.append(api.whoami()["name"])
    finally:
        get_session().event_hooks = usual

    assert found == ["sandbox", "sandbox"]
    assert seen == ["/api/whoami-v2"] * 2, "the client with its hooks is the one of other code"


def test_offline_mode_holds_the_destination(
    hub_and_stage: tuple[Hub, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, stage = hub_and_stage
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    stage.start()

    stage.step()

    (reason,) = stage.reasons()
    assert reason.startswith("huggingface_hub is in offline mode: HF_HUB_OFFLINE is set; to repair this: ")
    assert hub.server.requests == []


def test_nothing_of_the_library_is_loaded_before_something_is_sent() -> None:
    code = (
        "import sys, hubqueue; from hubqueue.config.registry import declaration;"
        "declaration('huggingface').secrets[0].lent({'HOME': '/nowhere'});"
        "print([each for each in sys.modules if each.startswith(('huggingface_hub', 'httpx', 'requests'))])"
    )

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout == "[]\n"


# --- the token


def test_check_finds_a_token_that_cannot_be_used(tmp_path: Path) -> None:
    def reason(fake: FakeHuggingface, *, token: str = TOKEN) -> str:
        with Hub(fake) as hub:
            found = DESTINATION.open(hub.target, lambda: (Key(token),), open).check()  # type: ignore[arg-type]
            assert isinstance(found, Blocked)
            return found.reason

    assert reason(FakeHuggingface(), token="hf_wrongWrongWrong").startswith("the key was refused: 401")
    assert reason(FakeHuggingface(may_write=False)).startswith("the key may only read; to repair this: ")
    other = reason(FakeHuggingface(owner="somebody"))
    assert f"has no repository {REPO} for the key of somebody; to repair this: correct " in other


def test_check_creates_nothing(tmp_path: Path) -> None:
    with Hub() as hub:
        assert isinstance(transport(hub.target).check(), Delivered)
        assert hub.fake.repositories == {}


def test_a_repository_of_somebody_else_holds_the_destination(tmp_path: Path) -> None:
    with sending(tmp_path, FakeHuggingface(owner="somebody")) as (_, stage):
        stage.start()
        stage.step()

        (reason,) = stage.reasons()

    assert reason.startswith(f"the key may not write to {REPO}: 403 Forbidden: You don't have the rights")
    assert TOKEN not in reason


def test_the_token_of_the_client_is_read_when_it_is_used(
    hub_and_stage: tuple[Hub, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = hub_and_stage
    stand_in = kept_by_the_client({"HUGGING_FACE_HUB_TOKEN": "x", "HOME": "/nowhere"})
    calls = Calls(hub.target, lambda: (Key(stand_in),))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    assert calls.whoami(quiet())["name"] == "sandbox"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(StoreFailed, match="the key is missing: huggingface_hub has no token any more"):
        calls.whoami(quiet())


def test_the_account_of_the_client_is_its_file_and_no_token(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    assert kept_by_the_client(environ) == ""
    token_path(environ).parent.mkdir(parents=True)
    token_path(environ).write_text(TOKEN)

    before = kept_by_the_client(environ)
    token_path(environ).write_text("hf_aRenewedOne")

    assert is_stand_in(before)
    assert kept_by_the_client(environ) == before
    assert kept_by_the_client({"HF_HOME": str(tmp_path / ".cache" / "huggingface")}) == before
    assert TOKEN not in before


def test_the_token_file_is_where_the_library_looks(tmp_path: Path) -> None:
    environs = [{"HOME": "/h"}, {"HOME": "/h", "HF_HOME": "/x/hf"}, {"HOME": "/h", "XDG_CACHE_HOME": "/c"}]
    environs += [{"HOME": "/h", "HF_TOKEN_PATH": "~/t"}, {"HOME": "/h", "A": "/a", "HF_HOME": "$A/hf"}]
    code = "from huggingface_hub import constants; print(constants.HF_TOKEN_PATH)"

    for environ in environs[1:4:2]:
        shown = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert shown.stdout.strip() == str(token_path(environ)), shown.stderr


# --- a body


class Blocks:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def __iter__(self) -> Iterator[bytes]:
        raise SnapshotAltered("altered")
        yield b""

    def section(self, start: int, size: int) -> Iterator[bytes]:
        yield self.content[start : start + size]

    def close(self) -> None:
        pass


def test_the_last_bytes_of_an_altered_file_are_withheld() -> None:
    content = os.urandom(1000)
    source = Source(1000, hashlib.sha256(content).hexdigest(), lambda: Blocks(content[:-1] + b"?"))
    file = SourceFile(source, lambda: None)

    assert len(file.read(999)) == 999
    with pytest.raises(SnapshotAltered):
        file.read(1)


def test_a_file_is_read_like_any_other() -> None:
    content = os.urandom(1000)
    file = SourceFile(
        Source(1000, hashlib.sha256(content).hexdigest(), lambda: Blocks(content)), lambda: None
    )

    assert file.read(100) == content[:100]
    assert file.seek(-10, os.SEEK_END) == 990
    assert file.seek(100) == 100
    assert file.read() == content[100:]
    assert file.read() == b""
    file.seek(0)
    assert file.read() == content
    file.close_body()
    assert file.seek(-1, os.SEEK_CUR) == 999
    file.seek(0)
    assert file.read(-1) == content


def test_a_request_of_the_library_is_not_sent_twice_or_with_another_length() -> None:
    body = Streamed(4, [b"ab", b"cd"])
    assert b"".join(body) == b"abcd"
    for wrong in (body, Streamed(3, [b"abcd"]), Streamed(5, [b"abcd"])):
        with pytest.raises(BodyChanged):
            list(wrong)


# --- the settings


@pytest.mark.parametrize(
    "repo_id", ["", "name", "a/b/c", "-a/b", "a/b.git", "a/b--c", "a/b c", "https://x/a/b"]
)
def test_an_invalid_repository_is_refused_in_one_line(repo_id: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            f"[destinations.hf]\ntype = 'huggingface'\nrepo_id = {json.dumps(repo_id)}",
            {},
            source="config.toml",
        )

    (problem,) = caught.value.problems
    assert problem == "destinations.hf.repo_id must be OWNER/NAME, as in the address of the repository"


def test_a_valid_repository_is_accepted() -> None:
    found = parse("[destinations.hf]\ntype = 'huggingface'\nrepo_id = 'my-org/my_run.v1'", {}, source="x")

    settings = found.destination("hf")
    assert isinstance(settings, HuggingfaceSettings)
    assert (settings.repo_id, settings.url) == ("my-org/my_run.v1", "https://huggingface.co")
