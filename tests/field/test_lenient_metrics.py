"""A value that is not a number costs itself, and no epoch and no training: it is left out, with one line."""

from __future__ import annotations

import json
import logging
from collections import UserDict
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from stage import environ_of, hubqueue

import hubqueue as package
from hubqueue.domain.errors import InvalidMetrics
from hubqueue.integrations.hub_session.session import HUBTrainingSession
from hubqueue.producer.run import Run

pytestmark = pytest.mark.usefixtures("migrated_home")


class Array:
    """An array as numpy and torch have it: `item` needs one element, and its numbers are not Python's."""

    def __init__(self, inside: object, *shape: int) -> None:
        self.inside, self.shape, self.ndim = inside, shape, len(shape)

    def item(self) -> object:
        if any(each != 1 for each in self.shape):
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.inside

    def __float__(self) -> float:
        if self.shape:
            raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
        return float(self.inside)  # type: ignore[arg-type]


class Quantity:
    """A number with a unit, as several packages have it."""

    def __float__(self) -> float:
        return 0.25


class Broken:
    """An object that fails wherever it is touched."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("this object is broken")

    def __float__(self) -> float:
        raise RuntimeError("this object is broken")

    def __repr__(self) -> str:
        raise RuntimeError("this object is broken")


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    started = package.start_run("yolov8n.pt", worker="none")
    yield started
    started.finish(timeout=0)


def saved(run: Run, entry_id: int | None) -> dict[str, object]:
    assert run.outbox is not None
    assert entry_id is not None
    found: dict[str, object] = json.loads(run.outbox.stats.payload(entry_id) or "null")
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [each for each in caplog.records if each.name == "hubqueue" and each.levelno >= logging.WARNING]
    return [each.getMessage() for each in found if "left out" in each.getMessage()]


def test_a_number_of_any_kind_is_saved(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    kinds: list[tuple[object, float | None]] = [
        (Array(0.5), 0.5),
        (Array(0.5, 1), 0.5),
        (Array(0.5, 1, 1), 0.5),
        (Array(7, 1), 7),
        (Quantity(), 0.25),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 4), 0.25),
        (True, 1),
        (None, None),
        (float("nan"), None),
    ]

    for epoch, (value, number) in enumerate(kinds):
        assert saved(run, run.log_metrics({"loss": value}, epoch=epoch)) == {"loss": number}, epoch
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "value",
    [
        *("high", "0.5", b"1", [1.0], (1.0,), {"a": 1}, {1}, 1j, object(), type, 10**400),
        *(Array([1, 2], 2), Array([], 0), Array("text"), Array(1j)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_costs_only_itself(
    run: Run, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = {"train/loss": 0.5, "strange": value}

    assert saved(run, run.log_metrics(metrics, epoch=0)) == {"train/loss": 0.5}
    assert saved(run, run.log_metrics(metrics, epoch=1)) == {"train/loss": 0.5}

    (line,) = warnings(caplog)
    assert "'strange'" in line


@pytest.mark.parametrize("name", [1, None, ("a", "b"), b"loss"], ids=lambda name: type(name).__name__)
def test_a_name_that_is_no_text_costs_only_itself(
    run: Run, name: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert saved(run, run.log_metrics({"loss": 1, name: 2}, epoch=0)) == {"loss": 1}  # type: ignore[dict-item]
    assert len(warnings(caplog)) == 1


def test_an_object_that_fails_wherever_it_is_touched_costs_only_itself(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights")
    metrics: dict[Any, object] = {"loss": 1, "strange": Broken(), Broken(): 2}

    assert saved(run, run.log_metrics(metrics, epoch=0)) == {"loss": 1}
    entry = run.save_checkpoint(tmp_path / "best.pt", epoch=0, map=Broken())  # type: ignore[arg-type]

    assert saved(run, entry)["map"] == 0.0
    assert len(warnings(caplog)) == 1


def test_a_call_without_any_number_saves_nothing_and_reports_it(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    assert run.log_metrics({"name": "text"}, epoch=0) is None

    assert "nothing of this call is saved" in warnings(caplog)[0]
    assert run.outbox is not None
    assert run.outbox.stats.entries(kind="metrics") == []
    assert run.finish(timeout=0).unsaved == 0


def test_a_mapping_of_another_package_is_accepted(run: Run) -> None:
    assert saved(run, run.log_metrics(UserDict({"loss": 1, "x": "y"}), epoch=0)) == {"loss": 1}


@pytest.mark.parametrize("value", ["high", [1.0], Array([1, 2], 2)], ids=["text", "list", "array"])
def test_a_strict_run_raises_and_saves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    run = package.start_run("yolov8n.pt", worker="none", strict=True)

    with pytest.raises(InvalidMetrics, match="'strange'"):
        run.log_metrics({"loss": 1, "strange": value}, epoch=0)

    assert run.outbox is not None
    assert run.outbox.stats.entries(kind="metrics") == []
    run.finish(timeout=0)


@pytest.mark.parametrize("epoch", [3, 3.0, "3", Array(3), Array(3, 1), Array(3.0), Decimal(3)])
def test_an_epoch_that_is_clear_is_accepted(run: Run, epoch: Any, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")

    run.log_metrics({"loss": 1}, epoch=epoch)
    run.save_checkpoint(tmp_path / "last.pt", epoch=epoch)

    assert run.outbox is not None
    ckpt, metrics = run.outbox.stats.entries(limit=2)
    assert metrics["key"] == "3"
    assert saved(run, ckpt["id"])["epoch"] == 3


@pytest.mark.parametrize("epoch", [-1, True, 1.5, "one", [1], float("nan")])
def test_an_epoch_that_is_not_clear_is_the_mistake_of_the_caller(run: Run, epoch: Any) -> None:
    with pytest.raises(InvalidMetrics, match="epoch"):
        run.log_metrics({"loss": 1}, epoch=epoch)


@pytest.mark.parametrize("score", [51, -1, "high", [0.5], Array([1, 2], 2)])
def test_a_wrong_score_does_not_cost_the_checkpoint(
    run: Run, score: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights")

    entry = run.save_checkpoint(tmp_path / "best.pt", epoch=3, map=score, final=True)

    assert saved(run, entry)["map"] == 0.0
    assert "'map'" in caplog.text


def test_a_session_leaves_out_what_is_no_number_once_a_run(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUB_API_KEY", "key-of-the-tests")
    session = HUBTrainingSession("yolov8n.pt", home=home, worker="none")
    session.create_model({"epochs": 1})

    for epoch in range(3):
        session.metrics_queue[epoch] = '{"loss": 1, "name": "text"}'

    assert {epoch: json.loads(text) for epoch, text in session.metrics_queue.items()} == {
        epoch: {"loss": 1} for epoch in range(3)
    }
    assert len(warnings(caplog)) == 1
    session.alive = False


@pytest.mark.parametrize("pair", ["loss=high", "loss=[1]", 'loss={"a": 1}', 'loss="1"'])
def test_the_shell_refuses_what_is_no_number(home: Path, pair: str) -> None:
    environ = environ_of(home)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()

    refused = hubqueue(environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "good=1", pair)

    assert refused.returncode == 2
    assert "loss" in refused.stderr
