"""The pure rules of the http destination: signatures, digests, names, positions, parts of a file."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from protocol import document

from hubqueue.destinations.http.signature import EMPTY, digest_field, sha256_of, signature
from hubqueue.destinations.http.upload import body_from, hash_from
from hubqueue.destinations.wire.body import BodyChanged
from hubqueue.destinations.wire.waits import clock_difference, http_date
from hubqueue.domain.entry import Snapshot
from hubqueue.domain.snapshots.manifest import SnapshotFile

CONTENT = bytes(range(256)) * 20


class Blocks:
    """The content in blocks of 1000 bytes, in a buffer that is used again."""

    def __init__(self, content: bytes) -> None:
        self._content, self.is_closed = content, False

    def __iter__(self) -> Iterator[memoryview]:
        buffer = bytearray(1000)
        for start in range(0, len(self._content), 1000):
            piece = self._content[start : start + 1000]
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]

    def close(self) -> None:
        self.is_closed = True


def test_the_signature_is_that_of_the_document() -> None:
    """A server in another language can be tested with its example."""
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
    lines, given = re.findall(r"```\n(PUT\n.*?)\n```\n\nis `(.*?)`", page, re.DOTALL)[0]
    method, target, at, digest, content_range, key = lines.split("\n")

    made = signature(
        "signing-key-example",
        at=int(at),
        method=method,
        target=target,
        digest=digest,
        content_range=content_range,
        idempotency_key=key,
    )

    assert made == given
    assert digest == digest_field(hashlib.sha256(b"hello").digest())


@pytest.mark.parametrize(
    "field", ["", "md5=:abc=:", "sha-256=abc", "sha-256=:abc:", "sha-256=:!!!!:", "sha-256"]
)
def test_a_digest_that_cannot_be_read_is_none(field: str) -> None:
    assert sha256_of(field) is None


def test_the_document_says_something_everywhere() -> None:
    """A comma in a text without quotes would begin another key, without a value."""
    waiting: list[object] = [document()]
    while waiting:
        each = waiting.pop()
        assert each is not None
        waiting += each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()


def test_a_digest_is_found_among_others() -> None:
    assert sha256_of(f"sha-512=:aaaa:, {digest_field(EMPTY)}") == EMPTY.hex()


@pytest.mark.parametrize("start", [0, 1, 999, 1000, 1001, 5000, len(CONTENT) - 1])
def test_the_rest_of_a_file_is_sent_and_hashed_from_any_offset(start: int) -> None:
    file = SnapshotFile("model.pt", Snapshot("x", len(CONTENT), 0))

    with body_from(file, lambda _: Blocks(CONTENT), start, threading.Event()) as body:
        assert body is not None
        sent, size = b"".join(map(bytes, body)), len(body)
    hashed = hash_from(file, lambda _: Blocks(CONTENT), start, threading.Event())

    assert (sent, size) == (CONTENT[start:], len(CONTENT) - start)
    assert hashed == hashlib.sha256(CONTENT[start:]).hexdigest()


@pytest.mark.parametrize("found", [CONTENT[:-1], CONTENT + b"x"])
def test_a_file_of_another_size_is_not_sent_whole(found: bytes) -> None:
    file = SnapshotFile("model.pt", Snapshot("x", len(CONTENT), 0))

    with body_from(file, lambda _: Blocks(found), 1500, threading.Event()) as body:
        assert body is not None
        with pytest.raises(BodyChanged):
            assert len(b"".join(map(bytes, body))) <= len(CONTENT) - 1500


def test_a_worker_that_stops_reads_nothing_more() -> None:
    file, stop, opened = (
        SnapshotFile("model.pt", Snapshot("x", len(CONTENT), 0)),
        threading.Event(),
        Blocks(CONTENT),
    )
    stop.set()

    with body_from(file, lambda _: opened, 3000, stop) as body:
        assert body is None
    assert opened.is_closed
    assert hash_from(file, lambda _: Blocks(CONTENT), 0, stop) is None


def test_a_clock_difference_is_described() -> None:
    now = datetime(2026, 11, 30, 12, tzinfo=UTC)

    assert (
        clock_difference(http_date("Mon, 30 Nov 2026 09:56:56 GMT"), now)
        == "is 2:03:04 ahead of that of the server"
    )
    assert (
        clock_difference(http_date("Mon, 30 Nov 2026 12:10:00 GMT"), now)
        == "is 0:10:00 behind that of the server"
    )
    for unknown in ("", "yesterday"):
        assert clock_difference(http_date(unknown), now) == "differs too much from that of the server"
