"""What happens to a training with several destinations happens to its run at each of them: pickles, forks, exits, lost homes."""

from __future__ import annotations

import gc
import pickle
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from several_stage import NAMES, Pair, pair_of
from stage import hubqueue, python

from hubqueue.outbox import presence
from hubqueue.outbox.exits import can_report
from hubqueue.producer.ending import unfinished
from hubqueue.producer.run import Run

pytestmark = pytest.mark.usefixtures("migrated_home")
START = """
import os, pickle, sys
import hubqueue
run = hubqueue.start_run("yolov8n.pt", destination=["one", "two"], worker="none")
run.log_metrics({"loss": 1.0}, epoch=0)
"""


@pytest.fixture
def pair(migrated_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    with pair_of(migrated_home, tmp_path, monkeypatch) as found:
        yield found


def epochs(pair: Pair) -> dict[str, list[str]]:
    """The epochs that each destination is owed."""
    with pair.outbox() as outbox:
        return {
            row["label"]: sorted(
                each["key"] for each in outbox.stats.entries(run_id=row["id"], kind="metrics")
            )
            for row in outbox.stats.runs(finished=None)
        }


def both(keys: list[str]) -> dict[str, list[str]]:
    return dict.fromkeys(NAMES, keys)


def states(pair: Pair) -> dict[str, str]:
    with pair.outbox() as outbox:
        return {each["destination"]: each["state"] for each in outbox.status()["runs"]}


def ids(run: Run) -> list[str]:
    return [each.id or "" for each in run.destinations]


# --- processes


def test_a_pickled_run_saves_at_every_destination(pair: Pair) -> None:
    run = pair.start()
    pickled = pair.folder / "pickled"
    pickled.write_bytes(pickle.dumps(run))
    code = """
import pickle
run = pickle.loads(open(PATH, "rb").read())
run.log_metrics({"loss": 1.0}, epoch=7)
open(CHECKPOINT, "wb").write(b"weights")
print(run.save_checkpoint(CHECKPOINT, epoch=7) is not None, run.id, [each.id for each in run.destinations])
print(run.finish().unsaved)
"""

    code = code.replace("PATH", repr(str(pickled))).replace("CHECKPOINT", repr(str(pair.folder / "c.pt")))
    out, _ = python(code, pair.environ).communicate()

    assert out.splitlines() == [f"True {run.id} {ids(run)}", "0"]
    assert epochs(pair) == {"one": ["7"], "two": ["7"]}
    first, second = pair.snapshots()
    assert first.stat().st_ino == second.stat().st_ino
    assert states(pair) == {"one": "running", "two": "running"}
    assert pickle.loads(pickle.dumps(run)) is run


def test_a_forked_child_saves_at_every_destination(pair: Pair) -> None:
    code = """
pid = os.fork()
if not pid:
    run.log_metrics({"loss": 1.0}, epoch=1)
    os._exit(0)
os.waitpid(pid, 0)
run.log_metrics({"loss": 1.0}, epoch=2)
print(run.finish(timeout=0).unsaved)
"""

    out, _ = python(START + code, pair.environ).communicate()

    assert out.splitlines()[-1] == "0"
    assert epochs(pair) == both(["0", "1", "2"])
    assert states(pair) == dict.fromkeys(NAMES, "finished")


@pytest.mark.skipif(not can_report(), reason="this C library does not report exit codes")
@pytest.mark.parametrize(
    ("leave", "state"), [pytest.param("", "finished", marks=pytest.mark.slow), ("sys.exit(3)", "failed")]
)
def test_a_process_that_ends_without_finish_ends_every_run(pair: Pair, leave: str, state: str) -> None:
    python(START + leave, pair.environ, finalize=True).communicate()

    assert states(pair) == dict.fromkeys(NAMES, state)


def test_a_run_that_the_script_drops_is_abandoned_at_all_destinations_or_at_none(pair: Pair) -> None:
    run = pair.start()
    with pair.outbox() as outbox:
        locks = [outbox.run_lock(each) for each in ids(run)]

    del run
    gc.collect()
    unfinished.abandon_dropped()
    assert [presence.lives(each) for each in locks] == [True, True]

    pair.start(destination="one")
    assert [presence.lives(each) for each in locks] == [False, False]


COPIED = """
import os
open("last.pt", "wb").write(b"weights")
"""
DIES_BEFORE_THE_FURTHER_NAME = "os.link = lambda *given, **named: os._exit(9)"
DIES_BETWEEN_THE_ENTRIES = """
from hubqueue.producer.senders import NoSender
class Dies(NoSender):
    def nudge(self):
        os._exit(9)
run._sending.sender = Dies()
"""


@pytest.mark.parametrize(
    ("dies", "owed", "kept"), [(DIES_BEFORE_THE_FURTHER_NAME, [], 0), (DIES_BETWEEN_THE_ENTRIES, ["one"], 1)]
)
def test_a_process_that_dies_in_between_leaves_only_orphans(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, dies: str, owed: list[str], kept: int
) -> None:
    monkeypatch.chdir(pair.folder)
    save = '\nrun.save_checkpoint("last.pt", epoch=0, final=True)\nprint("not reached")'

    out, _ = python(START + COPIED + dies + save, pair.environ).communicate()

    assert "not reached" not in out
    with pair.outbox() as outbox:
        runs = {row["id"]: row["label"] for row in outbox.stats.runs()}
        found = outbox.stats.entries(kind="ckpt")
        assert [runs[each["run_id"]] for each in found] == owed
        needed = {each["snapshot"] for each in found}
        outbox.spool.sweep(lambda _names: needed, older_than=timedelta(0), now=time.time() + 60)
    assert [each.read_bytes() for each in pair.snapshots()] == [b"weights"] * kept


# --- homes


@pytest.mark.parametrize("files", ["outbox.db", "outbox.db*"])
def test_an_outbox_that_is_deleted_meanwhile_gets_every_run_again(pair: Pair, files: str) -> None:
    run = pair.start()
    run.log_metrics({"loss": 1.0}, epoch=0)
    run.save_checkpoint(pair.checkpoint(b"weights"), epoch=0)
    before = ids(run)
    for each in pair.home.glob(files):
        each.unlink()

    run.log_metrics({"loss": 1.0}, epoch=1)
    left = run.finish(timeout=0)

    assert left.unsaved == 0
    assert ids(run) == before
    assert epochs(pair) == both(["0", "1"])
    with pair.outbox() as outbox:
        assert {each["together"] for each in outbox.status()["runs"]} == {run.id}
        assert len(outbox.stats.snapshots_owed()) == len(pair.snapshots()) == 2


def test_a_damaged_outbox_is_replaced_for_every_destination(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    run = pair.start(strict=False)
    run.log_metrics({"loss": 1.0}, epoch=0)
    for each in pair.home.glob("outbox.db*"):
        size = each.stat().st_size
        with each.open("r+b") as file:
            file.write(b"x" * size)

    run.log_metrics({"loss": 1.0}, epoch=1)
    left = run.finish(timeout=0)

    assert left.unsaved == 0
    assert epochs(pair) == both(["1"])
    with pair.outbox() as outbox:
        assert {each["together"] for each in outbox.status()["runs"]} == {run.id}
    assert sum("the outbox was damaged" in each for each in caplog.messages) == 1


# --- settings


def test_settings_that_can_be_read_later_may_name_several_destinations(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    file = pair.home / "config.toml"
    text = file.read_text().replace('"one"', '["one", "two"]', 1)
    file.unlink()
    file.mkdir()
    run = pair.start(destination=None, strict=False)
    assert run.log_metrics({"loss": 1.0}, epoch=0) is None
    file.rmdir()
    file.write_text(text)

    run._saving.opening.try_again()  # some seconds later
    assert run.log_metrics({"loss": 1.0}, epoch=1) is not None
    left = run.finish(timeout=0)

    assert left.unsaved == 0
    assert list(left.by_destination) == NAMES
    assert epochs(pair) == both(["0", "1"])
    assert states(pair) == dict.fromkeys(NAMES, "finished")
    assert sum("NOTHING of this run can be saved" in each for each in caplog.messages) == 1


def test_settings_that_can_be_read_at_the_end_only_are_no_loss(pair: Pair) -> None:
    file = pair.home / "config.toml"
    text = file.read_text()
    file.unlink()
    file.mkdir()
    run = pair.start(strict=False)
    run.log_metrics({"loss": 1.0}, epoch=0)
    file.rmdir()
    file.write_text(text)

    left = run.finish(timeout=0)

    assert left.unsaved == 0
    assert epochs(pair) == both(["0"])
    assert states(pair) == dict.fromkeys(NAMES, "finished")


def test_the_configuration_may_have_several_default_destinations(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBQUEUE_DEFAULT_DESTINATION", "two, one")

    run = pair.start(destination=None)

    assert [each.name for each in run.destinations] == ["two", "one"]
    assert (
        "default destination: two, one"
        in hubqueue({**pair.environ, "HUBQUEUE_DEFAULT_DESTINATION": "two,one"}, "check", "--offline").stdout
    )


# --- the end


def test_the_end_waits_only_for_what_can_arrive(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("HUBQUEUE_KEY_TWO")
    run = pair.start(worker="thread")
    run.log_metrics({"loss": 1.0}, epoch=0)
    run.save_checkpoint(pair.checkpoint(b"weights"), epoch=0, final=True)

    left = run.finish(timeout=None)

    one, two = left.by_destination["one"], left.by_destination["two"]
    assert not one
    assert two.entries == 3
    assert "there is no key for two" in (two.held or "")
    assert (left.entries, left.bytes, left.held) == (two.entries, two.bytes, two.held)
    assert pair.received("one")[1] == [b"weights"]
    (line,) = [each for each in caplog.messages if "waiting" in each]
    assert "to two: 3 uploads" in line
    assert "to one:" not in line


def test_a_spool_without_room_is_reported_once_and_counted_for_each(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUBQUEUE_SPOOL__MAX_BYTES", "10")
    run = pair.start(strict=False)

    assert run.save_checkpoint(pair.checkpoint(b"more than ten bytes"), epoch=0) is None
    assert run.log_metrics({"loss": 1.0}, epoch=0) is not None

    left = run.finish(timeout=0)
    assert {name: each.unsaved for name, each in left.by_destination.items()} == {"one": 1, "two": 1}
    assert sum("does not fit" in each and "could not be saved yet" in each for each in caplog.messages) == 1
