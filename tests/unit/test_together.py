"""Which run of a training at several destinations decides about the others."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hubqueue.domain.errors import OutboxUnavailable
from hubqueue.producer.several.together import Together


@dataclass(eq=False)
class Run:
    """A run that gets the id of its destination when it is opened."""

    destination: str
    known: str | None = None  # the run that it continues
    knows_model: bool = False
    wants: str | None = None
    fails: bool = False
    run_id: str | None = None
    continues: bool = False

    def __post_init__(self) -> None:
        self.intended_id = f"new-{self.destination}"

    def opened(self) -> None:
        if self.fails:
            raise OutboxUnavailable("cannot open", hint="")
        self.run_id, self.continues = self.known or self.intended_id, self.known is not None


def together(*runs: Run) -> Together:
    found = Together()
    for each in runs:
        found.add(each)
    return found


def test_a_run_alone_has_no_siblings() -> None:
    run = Run("one", wants="last")

    assert together(run).of(run) == ("last", None)


def test_the_first_run_gives_the_others_its_id() -> None:
    one, two = Run("one"), Run("two")
    both = together(one, two)

    assert both.of(one) == (None, "new-one")
    assert both.of(two) == (None, "new-one")
    assert one.run_id == "new-one"


def test_what_the_first_run_continues_is_continued_by_the_others() -> None:
    one, two = Run("one", known="old", wants="last"), Run("two", wants="last")

    assert together(one, two).of(two) == ("old", "old")


def test_a_destination_that_knows_the_model_decides_wherever_it_is_named() -> None:
    bucket, hub = Run("bucket"), Run("hub", known="old", knows_model=True)
    both = together(bucket, hub)

    assert both.of(bucket) == ("old", "old")
    assert both.of(hub) == (None, "new-bucket")
    assert bucket.run_id is None, "the hub does not wait for it"


@pytest.mark.parametrize("wants", [None, "last", "some"])
def test_a_destination_that_cannot_be_opened_does_not_stop_the_others(wants: str | None) -> None:
    one, two = Run("one", fails=True, wants=wants), Run("two", wants=wants)

    assert together(one, two).of(two) == (wants, "new-one")


def test_a_run_whose_outbox_was_replaced_keeps_its_own_id() -> None:
    one, two = Run("one", known="old"), Run("two")
    two.intended_id = two.wants = "its own"

    assert together(one, two).of(two) == ("its own", "old")
