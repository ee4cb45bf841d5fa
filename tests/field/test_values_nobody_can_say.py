"""A value that a hub cannot get as it is costs itself, and never its run: the start, the end and every metric arrive."""

from __future__ import annotations

import json
import logging
from collections import UserDict
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from stage import environ_of, hubqueue, platform_environ

import hubqueue as package
from hubqueue.destinations.platform.start import training_started
from hubqueue.domain.arguments import hide_in, hide_secrets, hide_text
from hubqueue.domain.plain import MOST_TEXT, plain, whole
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")

KEY = "0123456789abcdef0123456789abcdef0123456789"


class Broken:
    """An object that fails wherever it is shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")

    def __eq__(self, other: object) -> bool:
        raise ValueError("not comparable")

    __hash__ = object.__hash__


class Array(list[float]):
    """An array of several elements: neither true nor false, and no number."""

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array with more than one element is ambiguous")

    def item(self) -> float:
        raise ValueError("can only convert an array of size 1 to a Python scalar")


class Leaking(UserDict[str, object]):
    """A mapping whose items cannot be read."""

    def items(self) -> Any:
        raise RuntimeError("gone")


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def containing_itself(times: int) -> dict[str, object]:
    value: dict[str, object] = {}
    value["again"] = [value] * times
    return value


def list_of_itself() -> list[object]:
    value: list[object] = []
    value.extend([value] * 10)
    return value


def doubling(levels: int) -> list[Any]:
    value: list[Any] = ["x"]
    for _ in range(levels):
        value = [value, value]
    return value


# How each value is made: they are large, and only the tests that need one keep it.
VALUES: dict[str, Callable[[], object]] = {
    "infinity": lambda: float("inf"),
    "minus infinity": lambda: float("-inf"),
    "nan": lambda: float("nan"),
    "huge": lambda: 10**400,
    "enormous": lambda: 10**5000,
    "over 2**53": lambda: 2**53 + 1,
    "over 2**63": lambda: 2**63,
    "bytes": lambda: b"\x00\xff",
    "set": lambda: {1, 2},
    "broken": Broken,
    "list of broken": lambda: [Broken()],
    "array": lambda: Array([1.0, 2.0]),
    "path": lambda: Path("/data/coco.yaml"),
    "moment": lambda: datetime(2026, 1, 1, tzinfo=UTC),
    "itself": lambda: containing_itself(1),
    "list of itself": list_of_itself,
    "deep": lambda: nested(1000),
    "doubling": lambda: doubling(40),
    "leaking": Leaking,
    "keys that are no text": lambda: {1: 1, None: 2, ("a",): 3, Broken(): 4, b"b": 5},
    "10 MB": lambda: "x" * 10_000_000,
    "10 MB of bytes": lambda: b"x" * 10_000_000,
    "a hundred thousand numbers": lambda: list(range(100_000)),
    "a million numbers": lambda: list(range(1_000_000)),
    "lone surrogate": lambda: "a\ud800b",
    "NUL": lambda: "a\x00b",
    "class": lambda: Broken,
    "complex": lambda: 1j,
    "empty": lambda: "",
    "itself under ten names": lambda: containing_itself(10),
}
# Only the slow tests: each takes seconds for what "list of itself" and "a hundred thousand numbers" show too.
SLOW = ("itself under ten names", "doubling", "a million numbers")
# Those that fill all the room of a value: in every place at once they take a minute, in a slow test.
FILLING = (*SLOW, "list of itself", "a hundred thousand numbers", "10 MB", "10 MB of bytes")
# A run of the quick test has one value of many elements.
NOT_IN_A_QUICK_RUN = (*SLOW, "list of itself")


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(params=["hub", "platform"])
def environ(
    request: pytest.FixtureRequest, hub: Sandbox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    made = environ_of(home, hub.url) if request.param == "hub" else platform_environ(home, hub.url)
    made |= {"HUBQUEUE_RATE_LIMITS__METRICS": "0", "HUBQUEUE_RATE_LIMITS__CKPT": "0"}
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.mark.parametrize("filling", ["once", pytest.param("everywhere", marks=pytest.mark.slow)])
def test_no_value_costs_its_run(hub: Sandbox, environ: dict[str, str], filling: str) -> None:
    everywhere = filling == "everywhere"
    strange = [name for name in VALUES if everywhere or name not in NOT_IN_A_QUICK_RUN]
    for name in strange:
        value = VALUES[name]()
        args: dict[str, object] = {"nested": {"value": value}}
        results: dict[str, object] = {name: value}
        if everywhere or name not in FILLING:
            args |= dict.fromkeys(
                ("epochs", "batch", "imgsz", "data", "device", "cache", "project", "name", "x"), value
            )
            results |= {"metrics": {"fitness": value}, "classNames": value}
        run = package.start_run("yolov8n.pt", args=args, worker="none")
        assert run.id is not None, name
        assert run.log_metrics({"loss": 0.5, "strange": value}, epoch=0) is not None, name
        run.finish(timeout=0, results=results)
    failed = package.start_run("yolov8n.pt", worker="none")
    failed.log_metrics({"loss": 0.5}, epoch=0)
    failed.finish(timeout=0, status="failed", error=Broken())  # type: ignore[arg-type]

    drained = hubqueue(environ, "drain", "--timeout", "200")

    assert drained.returncode == 0, drained.stdout + drained.stderr
    assert hub.models or hub.runs
    if hub.models:
        assert [hub.metrics(model)[0]["loss"] for model in hub.models] == [0.5] * (len(strange) + 1)
    else:
        runs = [hub.run(model) for model in hub.runs]
        assert [run.epochs[0]["metrics"]["loss"] for run in runs] == [0.5] * (len(strange) + 1)
        assert sorted(run.state for run in runs) == ["complete"] * len(strange) + ["failed"]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, 2**53 + 1, "many", Array([1.0, 2.0])])
def test_epochs_that_are_no_number_become_zero_with_one_line(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    sent = training_started("yolo26n.pt", hide_secrets({"epochs": value, "batch": 16}))

    assert sent["data"]["epochs"] == 0
    assert sent["data"]["trainArgs"]["batch"] == "16"
    assert [record.getMessage() for record in caplog.records] == [
        "cannot be sent as they are, so cut or left out: the values of epochs"
    ]


def test_the_hub_gets_null_for_a_number_that_json_cannot_have(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in environ_of(home, "http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    run = package.start_run("yolov8n.pt", args={"epochs": float("inf"), "batch": 10**400}, worker="none")

    assert run.outbox is not None
    payload = strict(run.outbox.stats.payload(1) or "")
    assert (payload["config"]["epochs"], payload["config"]["batchSize"]) == (None, None)
    lines = [record.getMessage() for record in caplog.records if "cannot be sent" in record.getMessage()]
    assert lines == ["cannot be sent as they are, so cut or left out: the values of batch, epochs"]
    run.finish(timeout=0)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in VALUES]
)
def test_any_value_becomes_strict_json_of_bounded_size(name: str) -> None:
    value = VALUES[name]()

    hidden = hide_secrets({"x": value})["x"]
    for made in (plain(value), plain(hide_in(value)), plain(hidden), hide_text(hidden)):
        text = json.dumps(made, allow_nan=False)
        assert len(text) < 3 * MOST_TEXT
        assert strict(text) == made


def test_ordinary_values_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    args = {
        "epochs": 3,
        "lr": 0.1,
        "flag": True,
        "none": None,
        "list": [1, "a", [2.5]],
        "map": {"a": {"b": 1}},
    }

    assert plain(args) == args
    assert hide_secrets(args) == args
    assert training_started("m.pt", {**args, "shape": (1, 2)})["data"]["trainArgs"]["shape"] == "(1, 2)"
    assert caplog.records == []


def test_many_class_names_are_kept() -> None:
    names = [f"class number {number}" for number in range(22_000)]

    assert plain({"classNames": names}) == {"classNames": names}


def test_a_key_at_the_cut_of_a_long_text_is_not_sent() -> None:
    around = (range(9_950, 10_060, 7), range(10_100, 10_900, 100), range(10_940, 11_010, 7))  # both cuts
    for before in chain(*around):
        shown = hide_text("." * before + " " + KEY + " " + "x" * 5000)
        assert not any(KEY[:part] in shown for part in range(8, len(KEY)))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (3.9, 3),
        ("100", 100),
        (True, 1),
        (None, None),
        ("many", None),
        (2**53 - 1, 2**53 - 1),
        (2**53, None),
    ],
)
def test_a_whole_number_is_read_from_any_type(value: object, number: int | None) -> None:
    assert whole(value) == number


def test_the_shell_starts_a_run_with_a_value_that_json_does_not_have(hub: Sandbox, home: Path) -> None:
    environ = platform_environ(home, hub.url)
    started = hubqueue(
        environ, "enqueue", "run", "yolo26n.pt", "--arg", "epochs=Infinity", "--arg", "x=1e999"
    )
    assert started.returncode == 0, started.stderr

    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0

    (model,) = hub.runs
    start = hub.run(model).events[0].data
    assert (start["epochs"], start["trainArgs"]["x"]) == (0, "inf")


def test_the_lines_about_values_are_few(home: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    args = {f"argument {number}": "x" * 20_000 for number in range(1000)}
    with caplog.at_level(logging.WARNING, "hubqueue"):
        run = package.start_run("yolo26n.pt", args=args, worker="none")

    lines = [record.getMessage() for record in caplog.records if "cannot be sent" in record.getMessage()]
    assert 1 <= len(lines) <= 2
    assert max(map(len, lines)) < 1000
    run.finish(timeout=0)
