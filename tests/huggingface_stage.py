"""The fake Hub of the sandbox as a service of the conformance tests, and a home that sends to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from layout_received import received_in

from hubqueue.config.declaration import Key
from hubqueue.destinations.huggingface.fake_repositories import FakeRepository
from hubqueue.destinations.huggingface.sandbox import FakeHuggingface
from hubqueue.destinations.huggingface.settings import HuggingfaceSettings
from hubqueue.sandbox.server import Server
from hubqueue.testing.conformance import Received, SandboxService, Stage, staged

TOKEN = "hf_canaryTokenOfTheConformanceTests"
REPO = "sandbox/trainings"


class Hub(SandboxService):
    """The fake Hub. `repository` is the one that the destination sends to."""

    type = "huggingface"
    secrets: Mapping[str, str] = {"token": TOKEN}

    repo_id = REPO

    def __init__(self, fake: FakeHuggingface | None = None) -> None:
        self.fake = FakeHuggingface(part_size=4 << 20) if fake is None else fake
        super().__init__(Server([self.fake], keys=(TOKEN,)))

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {**super().settings, "repo_id": self.repo_id}

    @property
    def target(self) -> HuggingfaceSettings:
        """The settings of a destination that sends here."""
        return HuggingfaceSettings("lab", url=self.server.url, repo_id=REPO)

    @property
    def repository(self) -> FakeRepository:
        return self.fake.repositories[REPO]

    @property
    def titles(self) -> list[str]:
        """The titles of the commits, without that of the creation."""
        return [each.title for each in self.repository.commits[1:]]

    @property
    def uploads(self) -> int:
        """How often a file, or a part of one, was uploaded."""
        return sum(each.method == "PUT" for each in self.server.requests)

    def received(self) -> Mapping[str, Received]:
        if REPO not in self.fake.repositories:
            return {}
        files = {path: self.repository.content(each) for path, each in self.repository.head.files.items()}
        puts = [each for each in self.server.requests if each.method == "PUT"]
        return received_in(files, sum(each.body_bytes for each in puts))


@contextmanager
def sending(folder: Path, fake: FakeHuggingface | None = None) -> Iterator[tuple[Hub, Stage]]:
    """A fake Hub, and a home that sends to it."""
    with Hub(fake) as hub, staged(hub, folder / "stage") as stage:
        yield hub, stage


def keys() -> tuple[Key, ...]:
    """The token of the destination."""
    return (Key(TOKEN),)
