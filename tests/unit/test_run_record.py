"""`hubqueue.json`, from which a resumed training knows its run."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubqueue.integrations.record import NAME, read_record, write_record


def test_a_record_of_a_run_is_read_again(tmp_path: Path) -> None:
    write_record(tmp_path, {"run": "1dbdb0ecee53", "model": "small", "remote_id": None})

    assert read_record(tmp_path) == {"run": "1dbdb0ecee53", "model": "small"}
    assert [each.name for each in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"run": 5}'])
def test_a_record_that_is_damaged_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)

    assert read_record(tmp_path) == {}


def test_a_record_that_cannot_be_written_is_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).mkdir()

    write_record(tmp_path, {"run": "1dbdb0ecee53"})

    assert "if this training is resumed, it will be a new run" in caplog.text
    assert [each.name for each in tmp_path.iterdir()] == [NAME]
