"""P1: when an enqueue returns, the entry (and the whole checkpoint) survives kill -9 and a power cut.

Kills are real. For power cuts these tests assert the settings: the journal mode and the synchronous level that lose
nothing, read back from the connection. What a power cut leaves is in test_p1_power.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from pathlib import Path

import pytest
from stage import environ_of, kill, python

from hubqueue.domain.lifecycle import State
from hubqueue.outbox.database.sqlite import journal_for
from hubqueue.outbox.outbox import open_outbox

TRAINER = """
import hubqueue, os, sys
folder = sys.argv[1]
run = hubqueue.start_run("yolov8n.pt", worker="none", strict=True)
print("run", run.id, flush=True)
for epoch in range(100_000):
    body = os.urandom(200_000)
    with open(folder + "/last.pt", "wb") as file:
        file.write(body)
    run.log_metrics({"loss": epoch}, epoch=epoch)
    print("metrics", epoch, flush=True)
    run.save_checkpoint(folder + "/last.pt", epoch=epoch, is_best=True)
    print("ckpt", epoch, __import__("hashlib").sha256(body).hexdigest(), flush=True)
"""


@pytest.mark.parametrize("seed", range(6))
def test_what_was_acknowledged_survives_kill_9(home: Path, tmp_path: Path, seed: int) -> None:
    trainer = python(TRAINER, environ_of(home), str(tmp_path))
    assert trainer.stdout is not None
    lines = [trainer.stdout.readline()]
    dice = random.Random(seed)
    count, delay = dice.randrange(3, 40), dice.random() * 0.01
    lines += [trainer.stdout.readline() for _ in range(count)]

    threading.Event().wait(delay)
    trainer.kill()
    lines += trainer.communicate()[0].splitlines()
    printed = [line.split() for line in lines if line.strip()]
    run_id = printed[0][1]
    epochs = {words[1] for words in printed if words[0] == "metrics"}
    snapshots = [words for words in printed if words[0] == "ckpt" and len(words) == 3]

    with open_outbox(home, environ={}) as outbox:
        kept = outbox.stats.entries(run_id=run_id, limit=10_000)
        assert epochs <= {row["key"] for row in kept if row["kind"] == "metrics"}
        assert len(epochs) >= count // 2 - 1
        if snapshots:
            waiting = list(outbox.stats.snapshots(State.PENDING))
            assert len(waiting) == 1
            outbox.spool.verify(waiting[0][1])
            # The newest that was acknowledged, or the one that the kill hit after its commit.
            position = [words[2] for words in snapshots]
            assert waiting[0][1].sha256 == position[-1] or waiting[0][1].sha256 not in position
        assert outbox.stats.miscounted() == []


def test_a_killed_copy_leaves_no_half_snapshot(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "big.pt"
    source.write_bytes(os.urandom(1 << 20) * 64)
    code = """
import hubqueue, sys
run = hubqueue.start_run("yolov8n.pt", worker="none", strict=True)
print("ready", flush=True)
while True:
    run.save_checkpoint(sys.argv[1], epoch=1)
    print("saved", flush=True)
"""
    trainer = python(code, environ_of(home), str(source))
    assert trainer.stdout is not None
    for _ in range(3):
        trainer.stdout.readline()
    kill(trainer)

    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    with open_outbox(home, environ={}) as outbox:
        found = list(outbox.stats.snapshots(State.PENDING))
        assert len(found) == 1
        assert found[0][1].sha256 == digest
        outbox.spool.verify(found[0][1])


@pytest.mark.parametrize(
    ("version", "network", "expected"),
    [
        ((3, 51, 3), False, ("wal", "FULL")),
        ((3, 53, 4), False, ("wal", "FULL")),
        ((3, 51, 2), False, ("delete", "EXTRA")),
        ((3, 40, 1), False, ("delete", "EXTRA")),
        ((3, 53, 4), True, ("delete", "EXTRA")),
    ],
)
def test_the_journal_is_one_that_loses_nothing(
    version: tuple[int, ...], network: bool, expected: tuple[str, str]
) -> None:
    assert journal_for(version, network=network) == expected


@pytest.mark.parametrize(
    ("driver", "mode", "level"), [("pysqlite3", "wal", "FULL"), ("sqlite3", "delete", "EXTRA")]
)
def test_every_connection_has_the_safe_settings(home: Path, driver: str, mode: str, level: str) -> None:
    if driver == "sqlite3":
        import sqlite3

        mode, level = journal_for(sqlite3.sqlite_version_info, network=False)
    else:
        pytest.importorskip("pysqlite3")
    with open_outbox(home, environ={"HUBQUEUE_OUTBOX__DRIVER": driver}) as outbox:
        from sqlalchemy import text

        numbers = {"FULL": 2, "EXTRA": 3}
        for connect in (outbox.database.read, outbox.database.write):
            with connect() as connection:
                assert connection.scalar(text("PRAGMA journal_mode")) == mode
                assert connection.scalar(text("PRAGMA synchronous")) == numbers[level]
        shown = outbox.status()["outbox"]

    assert (shown["journal_mode"], shown["synchronous"]) == (mode, level)
