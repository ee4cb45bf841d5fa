"""A repository on the Hugging Face Hub passes the conformance tests, over the fake Hub of the sandbox, with the real client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_stage import Hub
from representative import only_fast

from hubqueue.testing.conformance import Conformance


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
