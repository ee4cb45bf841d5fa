"""Epochs and steps: which key metrics and checkpoints get, and how the position is read back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hubqueue.domain.drafts import (
    Checkpoint,
    Position,
    ckpt_draft,
    is_before,
    key_text,
    keyed,
    metrics_draft,
    position,
)
from hubqueue.domain.entry import Draft, Entry, Kind, Snapshot

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SNAPSHOT = Snapshot("copy", 7, 0, None)


def saved(checkpoint: Checkpoint, *, takes_steps: bool, number: int = 1) -> Entry:
    draft = ckpt_draft(checkpoint, SNAPSHOT, now=NOW, takes_steps=takes_steps)
    return Entry(number, draft.key, draft.payload, draft.size, 0, final=draft.final)


@pytest.mark.parametrize(
    ("epoch", "step", "takes_steps", "key", "rank", "payload"),
    [
        (3, None, False, "3", 3, {"loss": 0.5}),
        (3, None, True, "3", 3, {"loss": 0.5}),
        (None, 120, False, "120", 120, {"loss": 0.5}),
        (None, 120, True, "step:120", 120, {"loss": 0.5}),
        (3, 120, False, "3", 3, {"loss": 0.5}),
        (3, 120, True, "step:120", 120, {"epoch": 3, "loss": 0.5}),
        (0, 0, True, "step:0", 0, {"epoch": 0, "loss": 0.5}),
    ],
)
def test_the_key_of_metrics_is_what_the_destination_takes(
    epoch: int | None,
    step: int | None,
    takes_steps: bool,
    key: str,
    rank: int,
    payload: dict[str, float],
) -> None:
    draft = metrics_draft('{"loss": 0.5}', epoch, step, takes_steps=takes_steps)

    assert (draft.key, draft.rank, json.loads(draft.payload)) == (key, rank, payload)


def test_a_metric_that_is_called_epoch_stays() -> None:
    draft = metrics_draft('{"epoch": 1.33}', 1, 120, takes_steps=True)

    assert json.loads(draft.payload) == {"epoch": 1.33}
    assert position(draft) == (None, 120)


@pytest.mark.parametrize("takes_steps", [False, True])
@pytest.mark.parametrize("at", [(3, None), (None, 120), (3, 120), (0, 0)])
def test_a_preliminary_key_becomes_that_of_the_destination(
    at: tuple[int | None, int | None], takes_steps: bool
) -> None:
    known = metrics_draft('{"loss": 0.5}', *at, takes_steps=takes_steps)
    draft = metrics_draft('{"loss": 0.5}', *at, takes_steps=None)._replace(progress="load")

    assert keyed(draft, takes_steps=takes_steps) == known._replace(progress="load")
    assert keyed(draft._replace(key=f"{draft.key}/7"), takes_steps=takes_steps).key == known.key
    assert keyed(known, takes_steps=not takes_steps) is known


@pytest.mark.parametrize(
    ("epoch", "step", "takes_steps", "payload", "found"),
    [
        (3, None, False, {"epoch": 3}, (3, None)),
        (3, None, True, {"epoch": 3}, (3, None)),
        (None, 120, False, {"epoch": 120, "step": 120}, (120, 120)),
        (None, 120, True, {"epoch": None, "step": 120}, (None, 120)),
        (3, 120, False, {"epoch": 3, "step": 120}, (3, 120)),
        (3, 120, True, {"epoch": 3, "step": 120}, (3, 120)),
    ],
)
def test_a_checkpoint_has_its_epoch_and_its_step(
    epoch: int | None,
    step: int | None,
    takes_steps: bool,
    payload: dict[str, int | None],
    found: tuple[int | None, int | None],
) -> None:
    entry = saved(Checkpoint("last.pt", epoch, step=step), takes_steps=takes_steps)

    assert json.loads(entry.payload) == {
        **payload,
        "is_best": False,
        "map": 0.0,
        "final": False,
        "file": "last.pt",
    }
    assert position(entry) == found


@pytest.mark.parametrize(
    ("path", "copy", "file"),
    [
        ("runs/weights/best.pt", "x.ckpt", "best.pt"),
        (Path("/data/model.safetensors"), "x.ckpt", "model.safetensors"),
        ("step-120/", "x.tar.ckpt", "step-120.tar"),
        ("step-120/", "x.folder", None),
        (f"{'a1' * 21}.pt", "x.ckpt", "***.pt"),  # as a key of a HUB
    ],
)
def test_a_checkpoint_of_one_file_has_the_name_of_it(path: str | Path, copy: str, file: str | None) -> None:
    draft = ckpt_draft(Checkpoint(path, 1), Snapshot(copy, 7, 0, None), now=NOW)

    assert json.loads(draft.payload).get("file") == file


@pytest.mark.parametrize(
    ("key", "payload", "found"),
    [
        ("12", '{"loss": 1}', (12, None)),
        ("step:120", '{"loss": 1}', (None, 120)),
        ("step:120", '{"epoch": 3, "loss": 1}', (3, 120)),
        ("step:120", '{"epoch": 3.0}', (3, 120)),
        ("step:120", '{"epoch": true}', (None, 120)),
        ("step:120", '{"epoch": -1}', (None, 120)),
        ("step:120", "[" * 5000, (None, 120)),
        ("step:x", "{}", (None, None)),
        ("9" * 5000, "{}", (None, None)),
        ("last", "[]", (None, None)),
        ("best", '{"epoch": "x", "step": null}', (None, None)),
    ],
)
def test_a_position_is_read_from_any_entry(
    key: str, payload: str, found: tuple[int | None, int | None]
) -> None:
    assert position(Entry(1, key, payload, 1, 0)) == found


@pytest.mark.parametrize(
    ("one", "other", "beyond"),
    [
        (Position(3), Position(2), True),
        (Position(3), Position(3), False),
        (Position(3, 10), Position(2, 500), True),
        (Position(3, 120), Position(3, 110), True),
        (Position(None, 120), Position(2, 110), True),
        (Position(None, 120), Position(3), False),
        (Position(3), Position(None, 1), False),
        (Position(), Position(), False),
        (Position(0), Position(), False),
    ],
)
def test_a_position_is_beyond_another_one_if_they_can_be_compared(
    one: Position, other: Position, beyond: bool
) -> None:
    assert one.is_beyond(other) is beyond
    assert not other.is_beyond(one)


@pytest.mark.parametrize(
    ("last", "best", "first"),
    [
        ({"step": 110}, {"step": 120}, "last"),
        ({"step": 120}, {"step": 120}, "best"),
        ({"step": 120}, {"step": 110}, "best"),
        ({"epoch": 3, "step": 110}, {"epoch": 3, "step": 120}, "last"),
        ({"epoch": 3}, {"step": 120}, "best"),
    ],
)
@pytest.mark.parametrize("takes_steps", [False, True])
def test_of_two_checkpoints_the_one_of_the_higher_step_arrives_last(
    last: dict[str, int], best: dict[str, int], first: str, takes_steps: bool
) -> None:
    if "epoch" in last and "epoch" not in best and not takes_steps:
        first = "last"  # there the step is an epoch
    older = saved(Checkpoint("w.pt", **last), takes_steps=takes_steps)
    newer = saved(Checkpoint("w.pt", is_best=True, **best), takes_steps=takes_steps, number=2)

    assert is_before(older, newer) == (first == "last")
    assert is_before(newer, older) == (first == "best")


def test_a_step_is_shown_as_words() -> None:
    assert [key_text(key) for key in ("12", "step:120", "last")] == ["12", "step 120", "last"]
    assert [str(each) for each in (Position(3), Position(None, 120), Position(3, 120), Position())] == [
        "epoch 3",
        "step 120",
        "epoch 3, step 120",
        "",
    ]


def test_other_drafts_keep_their_keys() -> None:
    event = Draft(Kind.EVENT, "1/2", 1, "{}")

    assert keyed(event, takes_steps=True) is event
