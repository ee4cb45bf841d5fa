"""The rules of the mlflow destination: names, params, keys, and the times of points."""

from __future__ import annotations

import json
import logging
import posixpath
import re
from base64 import b64decode
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubqueue.destinations.base import Identifier, Key
from hubqueue.destinations.mlflow.drafts import registration
from hubqueue.destinations.mlflow.keys import authorization, borrowed
from hubqueue.destinations.mlflow.names import flat, named, number, valid
from hubqueue.destinations.mlflow.points import Sent
from hubqueue.destinations.mlflow.runs import root_of
from hubqueue.domain.outcome import MOST_REMEMBERED
from hubqueue.domain.redact import clean


def accepts(name: str) -> bool:
    """MLflow's own rule for names, on every system."""
    is_path = posixpath.normpath(name) == name and name != "." and not name.startswith(("..", "/"))
    return re.match(r"^[/\w.\- ]*$", name) is not None and is_path and 0 < len(name) <= 250


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("metrics/mAP50(B)", "metrics/mAP50B"),  # as the callback of ultralytics writes it
        ("train/loss", "train/loss"),
        ("lr pg-0_a.b", "lr pg-0_a.b"),
        ("übung", "übung"),
        ("acc@5", "acc_5"),
        ("a:b", "a_b"),
        ("/a//b/./../c/", "a/b/_/c"),
        ("", "_"),
        (".", "_"),
        ("()", "_"),
    ],
)
def test_a_name_becomes_one_that_mlflow_accepts(name: str, expected: str) -> None:
    assert valid(name) == expected


@settings(max_examples=40)
@given(st.text())
def test_every_text_becomes_a_valid_name_that_stays(name: str) -> None:
    made = valid(name)

    assert accepts(made)
    assert valid(made) == made


@settings(max_examples=40)
@given(st.dictionaries(st.text(alphabet="ab@()_2/", max_size=4), st.integers(), max_size=8))
def test_names_stay_different(values: dict[str, int]) -> None:
    made = named(values)

    assert sorted(made.values()) == sorted(values.values())
    assert all(made[name] == value for name, value in values.items() if accepts(name))


def test_long_names_are_cut_and_stay_different() -> None:
    first, second = valid("n" * 300 + "1"), valid("n" * 300 + "2")

    assert first != second
    assert len(first) == len(second) == 250


def test_nested_arguments_are_one_level_with_dots() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": {}}, "e": [1]}) == {"a.b.c": 1, "a.d": {}, "e": [1]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (True, 1.0), (0.5, 0.5), (None, None), ("1", None), ([1], None), (10**400, None)],
)
def test_only_a_finite_number_is_the_value_of_a_metric(value: object, expected: float | None) -> None:
    assert number(value) == expected


def test_params_are_texts_of_at_most_6000_characters(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="hubqueue"):
        args = {"lr": 0.1, "amp": True, "device": None, "long": "x" * 7000, "api_key": "secret-key-1234"}
        draft = registration(Identifier(filename="m.pt"), args, continues=False)

    params = json.loads(draft.payload)["params"]
    assert params == {
        "lr": "0.1",
        "amp": "True",
        "device": "None",
        "long": "x" * 6000,
        "api_key": "***",
    }
    assert "long" in caplog.text


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("mlflow-artifacts:/0/abc/artifacts", "0/abc/artifacts"),
        ("mlflow-artifacts://host:5000/0/abc/artifacts", "0/abc/artifacts"),
        ("s3://bucket/0/abc/artifacts", ""),
        ("/mlruns/0/abc/artifacts", ""),
        ("file:///mlruns/0/abc/artifacts", ""),
    ],
)
def test_the_root_of_artifacts_is_a_path_at_the_proxy_or_none(uri: str, expected: str) -> None:
    assert root_of(uri) == expected


def test_a_key_is_a_token_or_a_user_and_a_password() -> None:
    assert authorization(Key("a-token-of-mlflow")) == {"Authorization": "Bearer a-token-of-mlflow"}

    sent = authorization(Key("ann:pass:word-of-ann"))["Authorization"]

    assert b64decode(sent.removeprefix("Basic ")) == b"ann:pass:word-of-ann"
    assert "word-of-ann" not in clean("the server says pass:word-of-ann")


def test_user_and_password_come_from_variables_or_the_file_of_the_client(tmp_path: Path) -> None:
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = of-file\nmlflow_tracking_password = pa%ss-of-file\n"
    )
    home = {"HOME": str(tmp_path)}
    named = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "password-1"}

    assert borrowed(home) == "of-file:pa%ss-of-file"
    assert borrowed(home | named) == "ann:password-1"
    assert borrowed({"HOME": str(tmp_path / "none")}) == ""
    (tmp_path / ".mlflow" / "credentials").write_bytes(b"\xff not a file of settings")
    assert borrowed(home) == ""


def test_the_times_of_points_are_found_again_by_name_and_value() -> None:
    sent = Sent(None)
    sent.note("step:5", [{"key": "loss", "value": 0.5, "timestamp": 1000}])
    sent = Sent(sent.text)
    sent.note("step:5", [{"key": "val", "value": 0.25, "timestamp": 2000}])
    sent = Sent(sent.text)

    assert sent.time_of("step:5", "loss", 0.5) == 1000
    assert sent.time_of("step:5", "val", 0.25) == 2000
    assert sent.time_of("step:5", "loss", 0.25) is None
    assert sent.time_of("step:6", "loss", 0.5) is None


def test_what_is_uncertain_completes_the_times_that_are_known() -> None:
    known, uncertain = Sent(None), Sent(None)
    known.note("5", [{"key": "loss", "value": 0.5, "timestamp": 1000}])
    uncertain.note("5", [{"key": "val", "value": 0.25, "timestamp": 2000}])

    both = Sent(known.text, "{", uncertain.text)

    assert (both.time_of("5", "loss", 0.5), both.time_of("5", "val", 0.25)) == (1000, 2000)
    assert both.after("5") == 2001


def test_the_memory_of_points_is_bounded_and_has_the_newest() -> None:
    sent = Sent(None)
    for step in range(500):
        points = [{"key": f"m{at}", "value": at / 2, "timestamp": step} for at in range(20)]
        sent.note(str(step), points)

    again = Sent(sent.text)

    assert len(json.dumps(sent.text)) < MOST_REMEMBERED
    assert again.time_of("499", "m1", 0.5) == 499
    assert again.time_of("0", "m1", 0.5) is None


@pytest.mark.parametrize("text", ["{", "[1]", '[["a", [["x", "y"]]]]', "3", None])
def test_a_damaged_memory_is_empty(text: str | None) -> None:
    assert Sent(text).time_of("0", "a", 1.0) is None
