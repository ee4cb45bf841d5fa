"""A repository on the Hugging Face Hub passes the conformance tests, over the fake Hub of the sandbox, with the real client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from layout_received import received_in
from representative import only_fast

from hubqueue.destinations.huggingface.sandbox import FakeHuggingface
from hubqueue.sandbox.server import Server
from hubqueue.testing.conformance import Conformance, Received, SandboxService

TOKEN = "hf_canaryTokenOfTheConformanceTests"
REPO = "sandbox/trainings"


class Hub(SandboxService):
    """The fake Hub."""

    type = "huggingface"
    secrets: Mapping[str, str] = {"token": TOKEN}

    def __init__(self) -> None:
        self.fake = FakeHuggingface(part_size=4 << 20)
        super().__init__(Server([self.fake], keys=(TOKEN,)))

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {**super().settings, "repo_id": REPO}

    def received(self) -> Mapping[str, Received]:
        repository = self.fake.repositories.get(REPO)
        if repository is None:
            return {}
        files = {path: repository.content(each) for path, each in repository.head.files.items()}
        puts = [each for each in self.server.requests if each.method == "PUT"]
        return received_in(files, sum(each.body_bytes for each in puts))


@only_fast(
    "test_a_whole_training_arrives_once",
    "test_a_refused_entry_blocks_no_other",
    "test_no_secret_is_written_anywhere",
    "test_what_was_sent_is_read_back_byte_for_byte",
)
class TestHuggingface(Conformance):
    @pytest.fixture
    def service(self) -> Iterator[Hub]:
        with Hub() as running:
            yield running
