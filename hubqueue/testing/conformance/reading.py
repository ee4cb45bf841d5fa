"""Reading back what was sent, for a destination that can be read."""

from __future__ import annotations

import hashlib

import pytest

from hubqueue.destinations.base import DestinationUnavailable, Kind, NotThere, Reader
from hubqueue.testing.conformance.deliveries import FOLDER
from hubqueue.testing.conformance.service import Fault
from hubqueue.testing.conformance.stage import Stage


class Reading:
    """Tests of the reader (P12)."""

    def test_what_was_sent_is_read_back_byte_for_byte(self, stage: Stage) -> None:
        stage.needs(Kind.CKPT)
        reader = _reader(stage)
        run = stage.start()
        content = FOLDER if stage.declared.takes_folders else {"": b"weights" * 300_000}
        stage.save(run, content if stage.declared.takes_folders else content[""])
        stage.end(run)
        stage.drain()

        try:
            (stored,) = [each for each in reader.runs() if each.id in (run, None)]
            (found,) = reader.checkpoints(stored.name)
            for file in found.files:
                data = b"".join(reader.blocks(found, file))
                expected = content[file.path if found.is_folder else ""]
                assert data == expected, f"{file.path} is not what was sent"
                assert file.size == len(expected)
                half = len(expected) // 2
                assert b"".join(reader.blocks(found, file, start=half)) == expected[half:]
                now = reader.hashed(found, file)
                assert now is not None and now.size == len(expected)
                for sha256 in (file.sha256, now.sha256):
                    assert sha256 in (None, hashlib.sha256(expected).hexdigest())
            assert found.is_folder == stage.declared.takes_folders
            assert len(found.files) == len(content)
        finally:
            reader.close()

    def test_what_is_not_there_is_reported_so(self, stage: Stage) -> None:
        reader = _reader(stage)
        try:
            with pytest.raises(NotThere):
                reader.checkpoints("no-run-of-this-name")
        finally:
            reader.close()

    def test_a_service_that_cannot_be_asked_is_reported_so(self, stage: Stage) -> None:
        stage.needs_fault(Fault.UNREACHABLE)
        reader = _reader(stage)
        stage.service.fail(Fault.UNREACHABLE)
        try:
            with pytest.raises(DestinationUnavailable) as caught:
                list(reader.runs())
        finally:
            reader.close()
        assert caught.value.hint, "the error has no hint"


def _reader(stage: Stage) -> Reader:
    if stage.declared.read is None:
        pytest.skip(f"{stage.declared.type} declares no read")
    return stage.declared.read(stage.target, lambda: stage.outbox.credentials.keys(stage.target))
