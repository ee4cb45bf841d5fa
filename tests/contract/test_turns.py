"""Whose turn it is to write: requests between processes, in a file that needs no cleaning."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from hubqueue.outbox.database.turns import Turns

_SECOND = 1_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db-turn"


def test_a_later_process_waits_for_the_one_that_asks(path: Path) -> None:
    mine, others = Turns(path), Turns(path)
    since = time.monotonic_ns() - _SECOND

    mine.ask(since)

    assert mine.is_mine(since)
    assert not others.is_mine(since + 1)
    assert others.is_mine(since - 1)


def test_the_process_that_has_waited_longest_goes_first(path: Path) -> None:
    first, second, third = Turns(path), Turns(path), Turns(path)
    since = time.monotonic_ns() - _SECOND

    second.ask(since)
    first.ask(since - 1)
    second.ask(since)

    assert not second.is_mine(since)
    first.take(since - 1)
    assert third.is_mine(time.monotonic_ns())


def test_a_short_wait_makes_no_request(path: Path) -> None:
    mine, others = Turns(path), Turns(path)

    mine.ask(time.monotonic_ns())

    assert others.is_mine(time.monotonic_ns())


@pytest.mark.parametrize("until", [-1, 3600 * _SECOND], ids=["expired", "of another clock"])
def test_an_expired_or_impossible_request_stops_no_process(path: Path, until: int) -> None:
    turns = Turns(path)
    now = time.monotonic_ns()
    path.write_bytes(struct.pack("=QQ", now - _SECOND, now + until))

    assert turns.is_mine(now)


@pytest.mark.parametrize("trouble", ["no folder", "a link", "too short"])
def test_without_the_file_no_process_waits_and_nothing_fails(
    tmp_path: Path, path: Path, trouble: str
) -> None:
    if trouble == "no folder":
        path = tmp_path / "missing" / "turn"
    elif trouble == "a link":
        path.symlink_to(tmp_path / "elsewhere")
    turns = Turns(path)
    if trouble == "too short":
        os.truncate(path, 3)
    since = time.monotonic_ns() - _SECOND

    if trouble != "too short":
        turns.ask(since)
    assert turns.is_mine(time.monotonic_ns())
    turns.take(since)
    turns.close()
    assert turns.is_mine(time.monotonic_ns())
    assert not (tmp_path / "elsewhere").exists()
