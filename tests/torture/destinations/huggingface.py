"""A repository on the fake Hub, through the real client. No commit may be made twice, and no large file be uploaded twice."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from huggingface_stage import REPO, TOKEN
from stage import environ_of
from torture.destinations.layout import Pointers, there_in
from torture.destinations.tap import Seen
from torture.destinations.target import KIB, MIB, Site, Target, There, rates
from torture.destinations.training import Sizes
from torture.destinations.ultralytics import change_keys

from hubqueue.destinations.huggingface.fake_repositories import FakeRepository
from hubqueue.destinations.huggingface.sandbox import FakeHuggingface
from hubqueue.sandbox.server import Server

# In bytes: large files are uploaded in parts, small ones in one request.
_PART = 2 * MIB
_OBJECT = re.compile(rf"/lfs/{REPO}/([0-9a-f]{{64}})(/[0-9]+|/complete)?$")


def _server(folder: Path) -> tuple[FakeHuggingface, Server]:
    fake = FakeHuggingface(part_size=_PART)
    return fake, Server([fake], folder, keys=(TOKEN,))


class RepositorySite(Site):
    """The fake Hub, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        reading, writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                _, server = _server(folder)
                os.write(writing, f"{server.start().url}\n".encode())
                server.serve_forever()
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            self.url = pipe.readline().strip()

    def environ(self, home: Path, url: str) -> dict[str, str]:
        start = "HUBQUEUE_DESTINATIONS__LAB__"
        own = {f"{start}TYPE": "huggingface", f"{start}URL": url, f"{start}REPO_ID": REPO}
        return environ_of(home, HUBQUEUE_KEY_LAB=TOKEN, HF_HOME=str(home / "hf"), **own, **rates("lab"))

    def end(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def there(self, seen: Sequence[Seen]) -> There:
        # The sandbox that is still running has the folder: a copy of what it has stored is read.
        fake = _read(self._folder)
        repository = fake.repositories.get(REPO)
        if repository is None:
            return There()
        files = repository.head.files
        found = there_in({path: repository.content(each) for path, each in files.items()})
        found.sent = sum(each.method == "PUT" for each in seen)
        found.again, found.wrong = sent_again(seen), found.wrong + gone_back(repository)
        found.twice = twice(repository)
        return found


def _read(folder: Path) -> FakeHuggingface:
    """The state of the fake Hub, by its journal."""
    copy = folder.with_name("hub-copy")
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".lock", "incoming"))
    fake, server = _server(copy)
    with server:
        return fake


def sent_again(seen: Sequence[Seen]) -> list[str]:
    """The uploads of what the Hub had, although it was asked for it in between."""
    again = []
    for number, call in enumerate(seen):
        found = _OBJECT.match(call.target.partition("?")[0])
        if call.method != "PUT" or found is None:
            continue
        for earlier in seen[:number]:
            whole = _OBJECT.match(earlier.target.partition("?")[0])
            if whole is None or whole[1] != found[1] or not earlier.is_done:
                continue
            is_whole = whole[2] in (None, "/complete") and earlier.method in ("PUT", "POST")
            if is_whole and any(
                each.target.endswith("/objects/batch")
                and each.is_done
                and earlier.ended < each.began
                and each.ended < call.began
                for each in seen
            ):
                again.append(f"the object {found[1][:12]}")
                break
    return again


def twice(repository: FakeRepository) -> list[str]:
    """The commits that change nothing: what they bring was there."""
    pairs = zip(repository.commits, repository.commits[1:], strict=False)
    return [f"the commit {after.title!r}" for before, after in pairs if before.files == after.files]


def gone_back(repository: FakeRepository) -> list[str]:
    """The pointers that went back, in the order of the commits."""
    wrong, pointers = [], Pointers()
    for commit in repository.commits:
        for name, file in commit.files.items():
            if name.endswith(".json"):
                wrong += pointers.note(name, repository.content(file))
    return wrong


class Huggingface(Target):
    type = "huggingface"
    sizes = Sizes(20 * KIB, (1 * MIB, 5 * MIB), folders=True)
    requests = 20
    uploads = r"^PUT /lfs/"
    defects: ClassVar = {"a key for each attempt": ("twice", change_keys)}

    def missing(self) -> str | None:
        try:
            import huggingface_hub  # noqa: F401
        except ImportError:
            return "huggingface_hub is not installed"
        return None

    @contextmanager
    def site(self, folder: Path) -> Iterator[Site]:
        made = RepositorySite(folder / "hub")
        try:
            yield made
        finally:
            made.end()
