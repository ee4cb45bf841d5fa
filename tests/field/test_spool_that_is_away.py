"""The spool's disk is not mounted for a minute: nothing dies, nothing is written to the wrong disk, and it is shown."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from postgres import Postgres
from stage import Bench, environ_of, hubqueue, new_run, python, save_snapshot, totals, wait_for_removals

from hubqueue.domain.drafts import Checkpoint
from hubqueue.domain.errors import SpoolAway
from hubqueue.domain.lifecycle import State
from hubqueue.outbox.database.sqlite import report_of
from hubqueue.outbox.outbox import Outbox, open_outbox, replace_damaged
from hubqueue.outbox.salvage import salvage
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock
from hubqueue.worker import events
from hubqueue.worker.janitor import Janitor

TRAIN = """
import hubqueue, sys
run = hubqueue.start_run("yolov8n.pt", worker="none")
print("saved", run.save_checkpoint(sys.argv[1], epoch=3))
print("unsaved", run.finish(timeout=0).unsaved)
"""


class Disk:
    """A disk for the spool. While it is away, its mount point is an empty folder, as on a real machine."""

    def __init__(self, point: Path, *, real: bool = False) -> None:
        self.point, self._off, self._real = point, point.with_name("off"), real
        self._off.mkdir()
        self.point.mkdir()
        self.mount()

    @property
    def spool(self) -> Path:
        return self.point / "spool"

    def mount(self) -> None:
        if self._real:
            subprocess.run(
                ["mount", "--bind", str(self._off), str(self.point)], check=True, capture_output=True
            )
        else:
            self.point.rmdir()
            self._off.rename(self.point)

    def unmount(self) -> None:
        if self._real:
            subprocess.run(["umount", str(self.point)], check=True, capture_output=True)
        else:
            self.point.rename(self._off)
            self.point.mkdir()


@pytest.fixture(params=["renamed", "mounted"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    try:
        made = Disk(tmp_path / "disk", real=request.param == "mounted")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system cannot be mounted here")
    yield made
    if request.param == "mounted":
        with suppress(subprocess.CalledProcessError):
            made.unmount()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "last.pt").write_bytes(b"weights")
    return tmp_path / "last.pt"


@pytest.fixture
def outbox(home: Path, disk: Disk, clock: FakeClock) -> Iterator[Outbox]:
    with open_outbox(home, environ={"HUBQUEUE_SPOOL__PATH": str(disk.spool)}, clock=clock) as opened:
        opened.note_destinations()
        yield opened


def save(outbox: Outbox, path: Path, **how: Any) -> str:
    run = new_run(outbox)
    save_snapshot(outbox, run, Checkpoint(path, 0, **how))
    return run


def checkpoints(bench: Bench) -> list[str]:
    """The keys of the checkpoints that were sent."""
    return [key for kind, keys in bench.sent for key in keys if kind == "ckpt"]


def attention(outbox: Outbox) -> list[str]:
    return [each["what"] for each in outbox.status()["attention"] if "spool" in each["what"]]


def test_nothing_dies_while_the_disk_is_away(
    outbox: Outbox, disk: Disk, weights: Path, clock: FakeClock
) -> None:
    save(outbox, weights)
    assert attention(outbox) == []
    with Bench(outbox) as bench:
        disk.unmount()
        for _ in range(5):
            bench.step()
            clock.advance(400)
        (failed, *_) = [fact for fact in bench.facts if isinstance(fact, events.AttemptFailed)]
        assert failed.reason == f"the spool is not at {disk.spool}"
        assert totals(outbox)["pending"] == 1 and not checkpoints(bench)
        assert attention(outbox) == [f"the spool is not at {disk.spool}"]

        disk.mount()
        clock.advance(400)
        bench.step()

    assert (totals(outbox)["delivered"], checkpoints(bench)) == (1, ["last"])
    assert attention(outbox) == []


def test_nothing_is_written_to_the_mount_point(outbox: Outbox, disk: Disk, weights: Path) -> None:
    save(outbox, weights)
    disk.unmount()

    with pytest.raises(SpoolAway) as refused:
        save(outbox, weights)
    Janitor(outbox, lambda _fact: None).tidy()

    assert refused.value.hint
    assert list(disk.point.iterdir()) == []


def test_nothing_is_written_there_either_when_nothing_is_owed(
    outbox: Outbox, disk: Disk, weights: Path
) -> None:
    run = save(outbox, weights)
    outbox.discard(outbox.entries.cancel(run_id=run))
    disk.unmount()

    with pytest.raises(SpoolAway):
        save(outbox, weights)

    assert list(disk.point.iterdir()) == []
    disk.mount()
    save(outbox, weights)


def test_another_disk_at_the_path_is_neither_used_nor_swept(
    outbox: Outbox, disk: Disk, weights: Path, tmp_path: Path
) -> None:
    save(outbox, weights)
    disk.unmount()
    with open_outbox(tmp_path / "other home", environ={"HUBQUEUE_SPOOL__PATH": str(disk.spool)}) as other:
        other.note_destinations()
        save(other, weights)
        theirs = {each.name for each in disk.spool.iterdir()}

        swept = outbox.spool.sweep(lambda _: (), older_than=timedelta(0), now=time.time() + 7200)
        with pytest.raises(SpoolAway):
            save(outbox, weights)

    assert swept == ()
    assert {each.name for each in disk.spool.iterdir()} == theirs


def test_a_training_continues_and_counts_what_it_could_not_save(
    home: Path, disk: Disk, weights: Path
) -> None:
    environ = environ_of(home, HUBQUEUE_SPOOL__PATH=str(disk.spool))
    python(TRAIN, environ, str(weights)).communicate(timeout=60)
    disk.unmount()

    out, _ = python(TRAIN, environ, str(weights)).communicate(timeout=60)
    checked = hubqueue(environ, "check", "--offline")
    shown = json.loads(hubqueue(environ, "status", "--json").stdout)

    assert "saved None" in out and "unsaved 1" in out
    assert f"the spool is not at {disk.spool} (mount its disk" in out
    assert checked.returncode == 1
    assert "the spool is not at" in checked.stdout and "hubqueue check --new-spool" in checked.stdout
    assert "is not in the spool" not in checked.stdout  # one line for all of them
    (away,) = [each for each in shown["attention"] if each["what"].startswith("the spool")]
    assert "--new-spool" in away["hint"]


def test_a_spool_that_is_gone_for_good_is_replaced_by_a_command(
    hub: Sandbox, home: Path, disk: Disk, weights: Path
) -> None:
    environ = environ_of(home, hub.url, HUBQUEUE_SPOOL__PATH=str(disk.spool))
    python(TRAIN, environ, str(weights)).communicate(timeout=60)
    shutil.rmtree(disk.spool)
    refused, _ = python(TRAIN, environ, str(weights)).communicate(timeout=60)

    renewed = hubqueue(environ, "check", "--offline", "--new-spool")
    saved, _ = python(TRAIN, environ, str(weights)).communicate(timeout=60)
    drained = hubqueue(environ, "drain", "--timeout", "60")

    assert "saved None" in refused and "saved None" not in saved
    assert f"{disk.spool} is the spool of this outbox from now on" in renewed.stdout
    assert drained.returncode == 1  # the first checkpoint is lost, and says so
    assert "is not in the spool" in hubqueue(environ, "entries", "--state", "dead").stdout
    assert sum(len(hub.checkpoints(model)) for model in hub.models) == 1


def test_a_spool_may_be_a_link_to_a_disk(home: Path, disk: Disk, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(disk.spool)
    disk.spool.mkdir(mode=0o700)
    with open_outbox(home, environ={"HUBQUEUE_SPOOL__PATH": str(tmp_path / "link")}) as outbox:
        outbox.note_destinations()
        save(outbox, weights)
        disk.unmount()

        with pytest.raises(SpoolAway):
            save(outbox, weights)

        disk.mount()
        save(outbox, weights)


def test_another_spool_path_loses_neither_the_old_nor_the_new_checkpoints(
    home: Path, weights: Path, tmp_path: Path, clock: FakeClock
) -> None:
    """Also two processes with different settings: a worker that does not see the variable of the training."""
    old, new = ({"HUBQUEUE_SPOOL__PATH": str(tmp_path / name)} for name in ("old", "new"))
    with open_outbox(home, environ=old, clock=clock) as outbox:
        outbox.note_destinations()
        save(outbox, weights)
    with open_outbox(home, environ={}, clock=clock) as outbox, Bench(outbox) as bench:
        bench.step()  # without any spool.path
        assert totals(outbox)["pending"] == 1
        assert outbox.spool.away() is not None
    with open_outbox(home, environ=new, clock=clock) as outbox, Bench(outbox) as bench:
        save(outbox, weights, is_best=True)
        for _ in range(3):
            clock.advance(1000)
            bench.step()
        assert (totals(outbox)["pending"], totals(outbox)["delivered"]) == (1, 1)
        (why,) = {fact.reason for fact in bench.facts if isinstance(fact, events.AttemptFailed)}
        assert why.endswith(f"is in another spool: {tmp_path / 'old'}")

        (kept,) = (tmp_path / "old").glob("[!.]*")
        kept.rename(tmp_path / "new" / kept.name)
        clock.advance(1000)
        bench.step()

        assert totals(outbox)["delivered"] == 2


def test_a_marker_that_was_deleted_is_written_again(outbox: Outbox, disk: Disk, weights: Path) -> None:
    """As after `cp spool/* new/`, which leaves hidden files out."""
    save(outbox, weights)
    (marker,) = disk.spool.glob(".*")
    marker.unlink()

    assert outbox.spool.away() is None
    save(outbox, weights)

    assert marker.exists()


def test_a_spool_of_an_older_version_is_adopted(
    outbox: Outbox, disk: Disk, weights: Path, home: Path, clock: FakeClock
) -> None:
    save(outbox, weights)
    (marker,) = disk.spool.glob(".*")
    marker.unlink()
    (home / "spool.json").unlink()

    with Bench(outbox) as bench:
        disk.unmount()
        bench.step()
        clock.advance(400)
        assert totals(outbox)["pending"] == 1
        disk.mount()
        bench.step()

    assert totals(outbox)["delivered"] == 1


def test_a_single_missing_snapshot_of_a_spool_that_is_there_is_dead(
    outbox: Outbox, disk: Disk, weights: Path
) -> None:
    save(outbox, weights)
    (kept,) = disk.spool.glob("[!.]*")
    kept.unlink()

    with Bench(outbox) as bench:
        bench.step()

    assert totals(outbox)["dead"] == 1


def test_two_outboxes_may_share_a_folder(outbox: Outbox, disk: Disk, weights: Path, tmp_path: Path) -> None:
    save(outbox, weights)
    with open_outbox(tmp_path / "other home", environ={"HUBQUEUE_SPOOL__PATH": str(disk.spool)}) as other:
        other.note_destinations()
        save(other, weights)
        both = {each.name for each in disk.spool.glob("[!.]*")}
        for each in (outbox, other):
            kept = Janitor(each, lambda _fact: None)._kept
            assert each.spool.sweep(kept, older_than=timedelta(0), now=time.time() + 7200) == ()
        assert other.spool.away() is None

    assert {each.name for each in disk.spool.glob("[!.]*")} == both
    assert len(both) == 2
    assert outbox.spool.away() is None


def test_an_orphan_of_our_own_run_is_still_swept(outbox: Outbox, disk: Disk, weights: Path) -> None:
    run = new_run(outbox)
    orphan = outbox.spool.take(weights, label=f"{run}-0")

    kept = Janitor(outbox, lambda _fact: None)._kept
    swept = outbox.spool.sweep(kept, older_than=timedelta(0), now=time.time() + 7200)

    assert swept == (orphan.name,)


def test_a_checkpoint_that_was_just_saved_survives_a_disk_that_goes(
    outbox: Outbox, disk: Disk, weights: Path
) -> None:
    """Between the copy and its row: that the copy cannot be seen is no reason to cancel the entry."""
    run = new_run(outbox)
    snapshot = outbox.spool.take(weights, label=f"{run}-0")
    disk.unmount()

    assert outbox.spool.exists(snapshot)


@pytest.mark.parametrize("below", ["spool", "."])
def test_a_damaged_outbox_leaves_a_spool_that_is_away_alone(
    home: Path, disk: Disk, weights: Path, below: str
) -> None:
    environ = environ_of(home, HUBQUEUE_SPOOL__PATH=str(disk.point / below))
    python(TRAIN, environ, str(weights)).communicate(timeout=60)
    spoil(home)
    disk.unmount()

    with open_outbox(home, environ=environ, set_aside_damaged=True) as outbox:
        assert outbox.set_aside is not None
        assert salvage(outbox) == []
        assert list(disk.point.iterdir()) == []
        disk.mount()
        (saved,) = salvage(outbox)
        owed = [snapshot for _, snapshot in outbox.stats.snapshots(State.PENDING)]

        assert (saved.runs, len(owed)) == (1, 1)
        outbox.spool.verify(owed[0])
        assert report_of(outbox.set_aside)


def test_a_damaged_outbox_whose_spool_is_a_mounted_disk_is_replaced(
    home: Path, disk: Disk, weights: Path
) -> None:
    """A mount point cannot be renamed. The new outbox shares the disk with what the old one left."""
    environ = environ_of(home, HUBQUEUE_SPOOL__PATH=str(disk.point))
    python(TRAIN, environ, str(weights)).communicate(timeout=60)
    spoil(home)

    with open_outbox(home, environ=environ, set_aside_damaged=True) as outbox:
        (saved,) = salvage(outbox)
        (owed,) = [snapshot for _, snapshot in outbox.stats.snapshots(State.PENDING)]

        assert saved.runs == 1
        outbox.spool.verify(owed)


def spoil(home: Path) -> None:
    """Damage the root of the schema."""
    database = bytearray((home / "outbox.db").read_bytes())
    for name in ("outbox.db-wal", "outbox.db-shm", "outbox.db-journal"):
        (home / name).unlink(missing_ok=True)
    database[100:140] = b"\xff" * 40
    (home / "outbox.db").write_bytes(bytes(database))


def test_homes_on_a_shared_database_need_only_their_own_snapshots(
    postgres: Postgres, tmp_path: Path, weights: Path
) -> None:
    url = postgres.new_database(migrated=True)
    here, there = (environ_of(tmp_path / name, HUBQUEUE_OUTBOX__URL=url) for name in ("here", "there"))

    first, _ = python(TRAIN, here, str(weights)).communicate(timeout=60)
    second, _ = python(TRAIN, there, str(weights)).communicate(timeout=60)

    assert "saved None" not in first + second
    assert all(len(list((tmp_path / name / "spool").glob("[!.]*"))) == 1 for name in ("here", "there"))
    shutil.rmtree(tmp_path / "there" / "spool")
    for environ, away in ((here, False), (there, True)):
        attention = json.loads(hubqueue(environ, "status", "--json").stdout)["attention"]
        assert any("the spool is not at" in each["what"] for each in attention) == away


# --- the spool in the home


def test_a_home_without_its_spool_waits_for_it(
    home: Path, weights: Path, clock: FakeClock, tmp_path: Path
) -> None:
    """As after a restore that left out the spool, until it is put back."""
    with open_outbox(home, environ={}, clock=clock) as outbox:
        save(outbox, weights)
        (home / "spool").rename(tmp_path / "elsewhere")
    with open_outbox(home, environ={}, clock=clock) as outbox, Bench(outbox) as bench:
        bench.step()
        assert totals(outbox)["pending"] == 1
        assert attention(outbox) == [f"the spool is not at {home / 'spool'}"]

        (home / "spool").rmdir()
        (tmp_path / "elsewhere").rename(home / "spool")
        clock.advance(400)
        bench.step()

        assert totals(outbox)["delivered"] == 1


def test_a_training_makes_a_new_spool_in_its_home(home: Path, weights: Path) -> None:
    """The home is there, so its spool was deleted, not unmounted: the training must not lose all that follows."""
    with open_outbox(home, environ={}) as outbox:
        run = save(outbox, weights)
        shutil.rmtree(home / "spool")
        save_snapshot(outbox, run, Checkpoint(weights, 1))
        wait_for_removals()

        assert outbox.spool.away() is None
        assert totals(outbox) == {"enqueued": 2, "pending": 1, "superseded": 1}
        (owed,) = [snapshot for _, snapshot in outbox.stats.snapshots(State.PENDING)]
        outbox.spool.verify(owed)


def test_a_home_that_owes_no_checkpoint_needs_no_spool(home: Path, weights: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        run = save(outbox, weights)
        outbox.discard(outbox.entries.cancel(run_id=run))
        shutil.rmtree(home / "spool")

        assert outbox.spool.away() is None
        assert replace_damaged(outbox.home, outbox.config) is None
