"""P7: at least once; every retry carries the same bytes and the same Idempotency-Key; what is sent is what was
enqueued, never the file's later content."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
from pathlib import Path

import pytest
from stage import environ_of, hubqueue, kill, log, new_run, python, save_snapshot, start_worker, wait_until

from hubqueue.destinations.hub.registration import registration_draft
from hubqueue.domain.drafts import Checkpoint
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")


def test_a_lost_response_makes_no_duplicate_where_the_hub_honours_the_key(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    with open_outbox(home, environ=environ) as outbox:
        run = new_run(outbox, remote_id=None)
        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
        log(outbox, run, *range(10))
    hub.fail("registration:lost-ack:times=1")
    hub.fail("metrics:lost-ack:times=2")

    drained = hubqueue(environ, "drain", "--timeout", "60")

    assert drained.returncode == 0, drained.stderr
    assert len(hub.models) == 1
    for kind in ("registration", "metrics"):
        sent = [request for request in hub.requests if request.kind == kind]
        assert len({request.idempotency_key for request in sent}) == 1
        assert len({request.body_bytes for request in sent}) == 1
        assert sent[-1].replayed


def test_what_is_sent_is_what_was_enqueued(hub: Sandbox, home: Path, tmp_path: Path) -> None:
    environ = environ_of(home, hub.url)
    source = tmp_path / "best.pt"
    body = os.urandom(3_000_000)
    source.write_bytes(body)
    with open_outbox(home, environ=environ) as outbox:
        run = new_run(outbox, remote_id=None)
        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
        save_snapshot(outbox, run, Checkpoint(source, 5, is_best=True, final=True))
    # In place, as torch.save writes: the same inode.
    with source.open("r+b") as file:
        file.write(os.urandom(1_000_000))
        file.truncate()
    hub.fail("ckpt:cut-body:times=1")

    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0

    (record,) = hub.checkpoints(hub.models[0])
    assert (record.sha256, record.size) == (hashlib.sha256(body).hexdigest(), len(body))


@pytest.mark.parametrize("size", [100_000, 1 << 20])
def test_an_altered_snapshot_of_one_block_is_found_before_a_byte_is_sent(
    hub: Sandbox, home: Path, tmp_path: Path, size: int
) -> None:
    environ = environ_of(home, hub.url)
    entry = _enqueue_altered(home, environ, tmp_path, size, 50_000)

    hubqueue(environ, "drain", "--timeout", "90")

    _assert_dead(environ, entry)
    assert not [request for request in hub.requests if request.kind == "ckpt"]


@pytest.mark.parametrize("offset", [0, 4_000_000, 7_999_999], ids=["first", "middle", "last"])
def test_an_altered_snapshot_never_arrives(hub: Sandbox, home: Path, tmp_path: Path, offset: int) -> None:
    environ = environ_of(home, hub.url)
    entry = _enqueue_altered(home, environ, tmp_path, 8_000_000, offset)

    hubqueue(environ, "drain", "--timeout", "90")

    _assert_dead(environ, entry)
    assert hub.checkpoints(hub.models[0]) == []
    assert not [request for request in hub.requests if request.kind == "ckpt" and request.status == 200]


@pytest.mark.parametrize("damage", ["gone", "shorter", "longer"])
def test_a_snapshot_that_is_gone_or_of_another_size_is_found_before_a_byte_is_sent(
    hub: Sandbox, home: Path, tmp_path: Path, damage: str
) -> None:
    environ = environ_of(home, hub.url)
    entry = _enqueue_altered(home, environ, tmp_path, 3_000_000, 0)
    (snapshot,) = (home / "spool").glob("[!.]*")
    if damage == "gone":
        snapshot.unlink()
    else:
        os.truncate(snapshot, 3_000_001 if damage == "longer" else 2_999_999)

    hubqueue(environ, "drain", "--timeout", "90")

    _assert_dead(environ, entry, "not in the spool" if damage == "gone" else "not what was enqueued")
    assert not [request for request in hub.requests if request.kind == "ckpt"]


def _enqueue_altered(home: Path, environ: dict[str, str], folder: Path, size: int, offset: int) -> int:
    """Enqueue a checkpoint and flip one bit of its snapshot. Returns the id of the entry."""
    (folder / "best.pt").write_bytes(os.urandom(size))
    with open_outbox(home, environ=environ) as outbox:
        run = new_run(outbox, remote_id=None)
        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
        entry = save_snapshot(outbox, run, Checkpoint(folder / "best.pt", 5, is_best=True, final=True))
    (snapshot,) = (home / "spool").glob("[!.]*")
    with snapshot.open("r+b") as file:
        file.seek(offset)
        (found,) = file.read(1)
        file.seek(offset)
        file.write(bytes([found ^ 1]))
    return entry


def _assert_dead(environ: dict[str, str], entry: int, why: str = "not what was enqueued") -> None:
    shown = hubqueue(environ, "show", str(entry)).stdout
    assert "dead" in shown
    assert why in shown


@pytest.mark.parametrize("seed", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 2))])
def test_kills_of_the_worker_lose_nothing_and_send_nothing_twice(
    hub: Sandbox, home: Path, tmp_path: Path, seed: int
) -> None:
    environ = environ_of(home, hub.url, HUBQUEUE_WORKER__BATCH_ENTRIES="3")
    dice = random.Random(seed)
    body = os.urandom(2_000_000)
    (tmp_path / "best.pt").write_bytes(body)
    with open_outbox(home, environ=environ) as outbox:
        run = new_run(outbox, remote_id=None)
        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
        log(outbox, run, *range(60))
        save_snapshot(outbox, run, Checkpoint(tmp_path / "best.pt", 59, is_best=True, map=0.5, final=True))
        for _ in range(6):
            worker = start_worker(environ)
            before = len(hub.requests)
            wait_until(lambda before=before: len(hub.requests) > before or not outbox.stats.owed().entries)
            threading.Event().wait(dice.random() * 0.2)
            kill(worker)
        assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0
        counted = outbox.stats.totals()

    (model,) = hub.models
    assert counted["delivered"] == counted["enqueued"] == 62
    assert sorted(hub.metrics(model)) == list(range(60))
    assert [record.sha256 for record in hub.checkpoints(model)] == [hashlib.sha256(body).hexdigest()]
    stored = [
        epoch
        for request in hub.requests
        if request.kind == "metrics" and request.status == 200 and not request.replayed
        for epoch in request.epochs
    ]
    assert len(stored) == len(set(stored)) == 60


def test_kills_of_the_trainer_lose_nothing_that_was_acknowledged(hub: Sandbox, home: Path) -> None:
    code = """
import hubqueue
run = hubqueue.start_run("yolov8n.pt", worker="auto", strict=True)
for epoch in range(100_000):
    run.log_metrics({"loss": epoch}, epoch=epoch)
    print(epoch, flush=True)
"""
    environ = environ_of(home, hub.url, HUBQUEUE_WORKER__IDLE_EXIT="1")
    trainer = python(code, environ)
    assert trainer.stdout is not None
    printed = [trainer.stdout.readline() for _ in range(200)]
    trainer.kill()
    printed += trainer.communicate()[0].splitlines()
    acknowledged = {int(line) for line in printed if line.strip().isdigit()}

    drained = hubqueue(environ, "drain", "--timeout", "60")

    assert drained.returncode == 0, drained.stderr
    received = hub.metrics(hub.models[0])
    assert acknowledged <= set(received)
    assert all(received[epoch] == {"loss": epoch} for epoch in acknowledged)
    wait_until(lambda: '"alive": false' in hubqueue(environ, "status", "--json").stdout)


def test_entries_of_a_restored_copy_are_not_replays(hub: Sandbox, home: Path, tmp_path: Path) -> None:
    environ = environ_of(home, hub.url)
    with open_outbox(home, environ=environ) as outbox:
        run = new_run(outbox, remote_id=None)
        outbox.entries.enqueue(run, registration_draft("yolov8n.pt", {}))
    assert hubqueue(environ, "drain").returncode == 0
    shutil.copytree(home, tmp_path / "copy", ignore=shutil.ignore_patterns("locks"))

    for each, epoch in ((home, 1), (tmp_path / "copy", 2)):
        with open_outbox(each, environ=environ) as outbox:
            log(outbox, run, epoch)
        assert hubqueue(environ_of(each, hub.url), "drain").returncode == 0

    assert sorted(hub.metrics(hub.models[0])) == [1, 2]
