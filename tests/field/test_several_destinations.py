"""A training with several destinations: each gets everything, whatever happens to the others."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from several_stage import Pair, pair_of
from stage import hubqueue, wait_for_removals

import hubqueue as package
from hubqueue.domain.errors import ConfigError, InvalidArgument, RunFinished
from hubqueue.domain.lifecycle import State
from hubqueue.producer.senders import NoSender

pytestmark = pytest.mark.usefixtures("migrated_home")


@pytest.fixture
def pair(migrated_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    with pair_of(migrated_home, tmp_path, monkeypatch) as found:
        yield found


# --- what each destination gets


def test_each_destination_gets_everything(pair: Pair) -> None:
    weights = os.urandom(300_000)
    run = pair.start()
    for epoch in range(3):
        assert run.log_metrics({"loss": 1.0 / (epoch + 1)}, epoch=epoch) is not None
    run.save_checkpoint(pair.checkpoint(weights), epoch=2, map=0.5, final=True)
    pair.checkpoint(b"the next training")
    left = run.finish(timeout=0)

    assert hubqueue(pair.environ, "drain").returncode == 0

    assert left.entries == sum(each.entries for each in left.by_destination.values())
    assert {name: one.entries for name, one in left.by_destination.items()} == {"one": 5, "two": 5}
    assert pair.received("one") == pair.received("two")
    metrics, checkpoints = pair.received("two")
    assert (sorted(metrics), checkpoints) == ([0, 1, 2], [weights])
    assert pair.snapshots() == []


def test_a_run_tells_its_destinations_apart(pair: Pair) -> None:
    run = pair.start()
    run.finish(timeout=0)
    pair.two.fail("any:401")
    hubqueue(pair.environ, "drain", "--timeout", "60")

    one, two = run.destinations
    assert (one.name, two.name, one.type) == ("one", "two", "hub")
    assert run.id == one.id != two.id
    assert (run.remote_id, run.url) == (one.remote_id, one.url)
    assert one.remote_id == pair.one.models[0]
    assert (two.remote_id, two.url, two.cancelled) == (None, None, False)
    assert not run.cancelled
    assert repr(run) == f"<hubqueue.Run {run.id} to one, two>"


def test_a_run_is_cancelled_when_any_destination_asks(pair: Pair) -> None:
    run = pair.start()
    with pair.outbox() as outbox, outbox.database.write() as tx:
        tx.exec_driver_sql(f"UPDATE runs SET cancelled = 1 WHERE id = '{run.destinations[1].id}'")

    assert run.cancelled
    assert [each.cancelled for each in run.destinations] == [False, True]


# --- one copy


def test_a_checkpoint_is_copied_once_and_its_room_counts_once(pair: Pair) -> None:
    run = pair.start()
    run.save_checkpoint(pair.checkpoint(b"w" * 100_000), epoch=0)

    first, second = pair.snapshots()
    assert (first.stat().st_ino, first.stat().st_nlink) == (second.stat().st_ino, 2)
    assert first.read_bytes() == b"w" * 100_000
    assert {each.name.partition("-")[0] for each in (first, second)} == {each.id for each in run.destinations}
    with pair.outbox() as outbox:
        assert outbox.spool.bytes_used() == 100_000


def test_the_copy_stays_until_the_last_destination_has_it(pair: Pair) -> None:
    run = pair.start()
    run.save_checkpoint(pair.checkpoint(b"weights"), epoch=0, final=True)
    run.finish(timeout=0)
    pair.two.fail("any:401")
    hubqueue(pair.environ, "drain", "--timeout", "60")

    (kept,) = pair.snapshots()
    assert kept.name.startswith(f"{run.destinations[1].id}-")
    assert kept.read_bytes() == b"weights"
    assert pair.received("one")[1] == [b"weights"]


def test_all_have_their_copy_before_the_first_entry_is_enqueued(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, link, entries = pair.start(), os.link, []

    def noted(*given: object, **named: object) -> None:
        with pair.outbox() as outbox:
            entries.append([each["kind"] for each in outbox.stats.entries()])
        link(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", noted)
    run.save_checkpoint(pair.checkpoint(), epoch=0)

    assert entries == [["registration", "registration"]]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_without_hard_links_the_others_get_a_copy(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_given: object, **_named: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    weights = os.urandom(2_000_000)
    run = pair.start()
    run.save_checkpoint(pair.checkpoint(weights), epoch=0, final=True)

    first, second = pair.snapshots()
    assert first.stat().st_ino != second.stat().st_ino
    assert first.read_bytes() == second.read_bytes() == weights
    with pair.outbox() as outbox:
        for _, snapshot in outbox.stats.snapshots(State.PENDING):
            outbox.spool.verify(snapshot)


def test_a_copy_that_was_swept_before_its_further_name_is_taken_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, link = pair.start(strict=False), os.link
    swept = []

    def late(source: Path, target: Path, **named: object) -> None:
        if not swept:  # the janitor of a worker, after this process was suspended
            swept.append(source)
            source.unlink()
        link(source, target, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", late)
    assert run.save_checkpoint(pair.checkpoint(b"weights"), epoch=0) is not None

    first, second = pair.snapshots()
    assert first.stat().st_ino == second.stat().st_ino
    assert swept[0] not in (first, second)
    assert run.finish(timeout=0).unsaved == 0


class Meddling(NoSender):
    """Acts once, between the entries of two destinations."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._acts = [act]

    def nudge(self) -> None:
        while self._acts:
            self._acts.pop()()


def test_a_fast_worker_and_a_file_that_changes_make_no_difference(pair: Pair) -> None:
    run, path = pair.start(), pair.checkpoint(b"epoch 0")

    def meddle() -> None:
        hubqueue(pair.environ, "drain", "--timeout", "60")
        path.write_bytes(b"epoch 1")

    run._sending.sender = Meddling(meddle)
    run.save_checkpoint(path, epoch=0, final=True)
    run.finish(timeout=0)
    hubqueue(pair.environ, "drain")

    assert pair.received("one")[1] == pair.received("two")[1] == [b"epoch 0"]


def test_two_destinations_never_end_with_different_checkpoints(pair: Pair) -> None:
    """The first copy was sent and removed, the second one swept, and the file has changed."""
    run, path = pair.start(), pair.checkpoint(b"epoch 0")

    def meddle() -> None:
        hubqueue(pair.environ, "drain", "--timeout", "60")
        path.write_bytes(b"epoch 1")
        (swept,) = pair.snapshots()
        swept.unlink()

    run._sending.sender = Meddling(meddle)
    run.save_checkpoint(path, epoch=0, final=True)
    run.finish(timeout=0)
    hubqueue(pair.environ, "drain")

    assert pair.received("one")[1] == [b"epoch 0", b"epoch 1"]
    assert pair.received("two")[1] == [b"epoch 1"]


def test_the_final_checkpoint_supersedes_the_others_at_each_destination(pair: Pair) -> None:
    run = pair.start()
    run.save_checkpoint(pair.checkpoint(b"last"), epoch=0)
    run.save_checkpoint(pair.checkpoint(b"best"), epoch=0, is_best=True)
    run.save_checkpoint(pair.checkpoint(b"final"), epoch=0, final=True)
    wait_for_removals()

    assert [each.read_bytes() for each in pair.snapshots()] == [b"final", b"final"]


def test_an_unreadable_checkpoint_is_reported_once_and_counted_for_each(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    run = pair.start(strict=False)

    assert run.save_checkpoint(pair.folder / "nothing.pt", epoch=0) is None

    assert len([each for each in caplog.messages if "was not saved" in each]) == 1
    left = run.finish(timeout=0)
    assert {name: one.unsaved for name, one in left.by_destination.items()} == {"one": 1, "two": 1}
    assert "nothing.pt" in (left.by_destination["two"].unsaved_why or "")


# --- arguments


@pytest.mark.parametrize("given", [[], ["one", "one"], 5, ["one", 5], {"one"}, b"one"])
def test_an_invalid_list_of_destinations_is_one_error_with_a_hint(pair: Pair, given: object) -> None:
    with pytest.raises(InvalidArgument) as raised:
        pair.start(destination=given)

    assert raised.value.hint
    assert "destination" in str(raised.value)


def test_an_unknown_name_among_several_is_an_error_as_that_of_one(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="unknown destination 'twoo'; did you mean 'two'") as raised:
        pair.start(destination=["one", "twoo"])

    assert raised.value.hint == "the configuration has: one, two"


@pytest.mark.parametrize("given", ["one", ["one"], ("one",)])
def test_one_destination_is_a_run_of_its_own(pair: Pair, given: object) -> None:
    run = pair.start(destination=given)

    with pair.outbox() as outbox:
        row = outbox.stats.run(run.id or "")
    assert row is not None and row["together"] is None
    assert [each.name for each in run.destinations] == ["one"]
    assert list(run.finish(timeout=0).by_destination) == ["one"]


def test_after_its_end_a_run_refuses_more_everywhere(pair: Pair) -> None:
    run = pair.start()
    run.finish(timeout=0)

    with pytest.raises(RunFinished):
        run.log_metrics({"loss": 1.0}, epoch=0)
    with pytest.raises(RunFinished):
        run.save_checkpoint(pair.checkpoint(), epoch=0)
    assert pair.snapshots() == []


# --- together


def together(pair: Pair) -> dict[str, str | None]:
    with pair.outbox() as outbox:
        return {row["id"]: row["together"] for row in outbox.stats.runs(finished=None)}


def ids(run: package.Run) -> list[str | None]:
    return [each.id for each in run.destinations]


def test_the_runs_of_a_training_know_each_other(pair: Pair) -> None:
    run = pair.start()

    assert together(pair) == dict.fromkeys(ids(run), run.id)


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.slow), 1, "last"])
def test_a_training_is_resumed_at_all_its_destinations(pair: Pair, which: int | str) -> None:
    other, run = pair.start(), pair.start()
    for each in (other, run):
        each.finish(timeout=0)
    pair.start(destination="two").finish(timeout=0)  # a newer one, at one destination only

    again = pair.start(resume="last" if which == "last" else ids(run)[int(which)])

    assert ids(again) == ids(run)
    assert len(together(pair)) == 5


def test_a_destination_can_be_added_and_left_out_when_a_training_is_resumed(pair: Pair) -> None:
    alone = pair.start(destination="two")
    alone.finish(timeout=0)

    both = pair.start(resume=alone.id)
    both.finish(timeout=0)
    one = pair.start(destination="one", resume=alone.id)

    assert ids(both)[1] == alone.id
    assert ids(one) == ids(both)[:1]
    assert together(pair) == dict.fromkeys(ids(both), both.id)


def test_another_key_at_one_destination_starts_another_run_there(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = pair.start()
    run.finish(timeout=0)
    monkeypatch.setenv("HUBQUEUE_KEY_TWO", "another-key-of-two")

    with caplog.at_level(logging.INFO):
        again = pair.start(resume=run.id)

    assert ids(again)[0] == run.id
    assert ids(again)[1] not in ids(run)


def test_a_resumed_training_says_so_once_for_each_destination(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    run = pair.start()
    run.finish(timeout=0)
    caplog.clear()
    caplog.set_level(logging.INFO)

    pair.start(resume=run.id)

    assert [each.partition(" to ")[0] for each in caplog.messages] == [
        f"run {each} (continued)" for each in ids(run)
    ]
