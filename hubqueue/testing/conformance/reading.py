"""Reading back what was sent, for a destination that can be read."""

from __future__ import annotations

import hashlib

import pytest

from hubqueue.destinations.base import (
    DestinationUnavailable,
    Kind,
    NotThere,
    Reader,
    StoredCheckpoint,
    StoredFile,
)
from hubqueue.testing.conformance.deliveries import FOLDER
from hubqueue.testing.conformance.service import DOWN
from hubqueue.testing.conformance.stage import Stage


class Reading:
    """Tests of the reader (P12)."""

    def test_what_was_sent_is_read_back_byte_for_byte(self, stage: Stage) -> None:
        stage.needs(Kind.CKPT)
        reader = _reader(stage)
        run = stage.start()
        content = {**FOLDER, "large.bin": b"weights" * 300_000}
        if not stage.declared.takes_folders:
            content = {"": content["large.bin"]}
        stage.save(run, content if stage.declared.takes_folders else content[""])
        stage.end(run)
        stage.drain()

        try:
            stored = [each for each in reader.runs() if each.id in (run, None)]
            assert len(stored) == 1, f"{len(stored)} runs are read, not 1"
            whole = reader.checkpoints(stored[0].name)
            assert len(whole) == 1, f"{len(whole)} checkpoints are read, not 1"
            (found,) = whole
            assert found.is_folder == stage.declared.takes_folders
            assert len(found.files) == len(content), "files are missing"
            for file in found.files:
                _compare(reader, found, file, content[file.path if found.is_folder else ""])
        finally:
            reader.close()

    def test_what_is_not_there_is_reported_so(self, stage: Stage) -> None:
        reader = _reader(stage)
        stage.start()
        stage.drain()
        try:
            with pytest.raises(NotThere):
                list(reader.checkpoints("no-run-of-this-name"))
        finally:
            reader.close()

    def test_a_service_that_cannot_be_read_is_reported_so(self, stage: Stage) -> None:
        for fault in DOWN:
            if fault not in stage.service.faults:
                continue
            reader = _reader(stage)
            stage.service.fail(fault)
            try:
                with pytest.raises(DestinationUnavailable) as caught:
                    list(reader.runs())
            finally:
                stage.service.heal()
                reader.close()
            assert caught.value.hint, f"the error has no hint, when the service {fault}"


def _reader(stage: Stage) -> Reader:
    if stage.declared.read is None:
        pytest.skip(f"{stage.declared.type} declares no read")
    return stage.declared.read(stage.target, lambda: stage.outbox.credentials.keys(stage.target))


def _compare(reader: Reader, found: StoredCheckpoint, file: StoredFile, sent: bytes) -> None:
    half, now = len(sent) // 2, reader.hashed(found, file)
    assert now is not None, f"{file.path} is there and not there"
    # Without the bytes in the message.
    same = b"".join(reader.blocks(found, file)) == sent
    rest = b"".join(reader.blocks(found, file, start=half)) == sent[half:]
    longest = max(map(len, reader.blocks(found, file)), default=0)
    assert same, f"{file.path} is not what was sent"
    assert rest, f"{file.path} is not read from the middle"
    assert longest <= 1 << 20, f"a block of {file.path} has more than 1 MiB"
    assert (file.size, now.size) == (len(sent), len(sent)), f"{file.path} has another size"
    for sha256 in (file.sha256, now.sha256):
        assert sha256 in (None, hashlib.sha256(sent).hexdigest()), f"{file.path} has another hash"
