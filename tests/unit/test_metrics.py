"""Metrics as strict JSON, for every kind of number that a training loop may pass."""

from __future__ import annotations

import json
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubqueue.domain.errors import InvalidArgument, InvalidMetrics
from hubqueue.producer.metrics import Lenient, metrics_text, position, score


class Scalar:
    """A scalar like those of numpy and torch: not a number itself, but it contains one."""

    def __init__(self, inside: object, shape: tuple[int, ...] = ()) -> None:
        self.inside, self.shape, self.ndim = inside, shape, len(shape)

    def item(self) -> object:
        if isinstance(self.inside, Exception):
            raise self.inside
        return self.inside

    def __index__(self) -> int:
        if not isinstance(self.inside, int) or any(each != 1 for each in self.shape):
            raise TypeError("not an integer")
        return int(self.inside)  # a boolean tensor has `__index__` too


class Floating:
    """A number of another package."""

    def __init__(self, value: float, shape: tuple[int, ...] = ()) -> None:
        self.value, self.shape = value, shape

    def __float__(self) -> float:
        return self.value


def refuse_constant(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=refuse_constant)


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (1.25, "1.25"),
        (3, "3"),
        (-0.0, "-0.0"),
        (True, "1"),
        (False, "0"),
        (None, "null"),
        (float("nan"), "null"),
        (float("inf"), "null"),
        (float("-inf"), "null"),
        (Decimal("0.5"), "0.5"),
        (Decimal("NaN"), "null"),
        (Decimal("sNaN"), "null"),
        (Decimal("1e999"), "null"),
        (Fraction(1, 4), "0.25"),
        (2**1023 - 1, str(2**1023 - 1)),
        (Fraction(10**400), "null"),
        (Scalar(0.5), "0.5"),
        (Scalar(7), "7"),
        (Scalar(True), "1"),
        (Scalar(float("nan")), "null"),
        (Scalar(0.5, shape=(1,)), "0.5"),
        (Scalar(0.5, shape=(1, 1)), "0.5"),
        (Floating(0.5), "0.5"),
        (Floating(float("inf")), "null"),
    ],
)
def test_every_kind_of_number_becomes_json(value: object, stored: str) -> None:
    assert metrics_text({"m": value}) == f'{{"m": {stored}}}'


def test_the_text_is_spelled_as_the_protocol_shows_it() -> None:
    text = metrics_text({"train/box_loss": 1.0, "metrics/mAP50(B)": 0.4})

    assert text == '{"train/box_loss": 1.0, "metrics/mAP50(B)": 0.4}'


@pytest.mark.parametrize(
    "value",
    [
        *("0.5", b"1", [1.0], {"a": 1}, 1j, object(), float, 2**1023),
        *(Scalar("text"), Scalar(1j), Scalar([1]), Scalar(1.0, shape=(0,)), Scalar(1.0, shape=(1, 2))),
        *(Floating, Floating(1.0, shape=(3,))),
    ],
)
def test_what_is_no_number_is_refused_by_name_at_once(value: object) -> None:
    with pytest.raises(InvalidMetrics, match=r"train/box_loss") as caught:
        metrics_text({"good": 1.0, "train/box_loss": value})

    assert caught.value.hint


def test_an_array_is_refused_with_its_shape() -> None:
    with pytest.raises(InvalidMetrics, match=r"Scalar of shape \(2,\)"):
        metrics_text({"loss": Scalar(1.0, shape=(2,))})


def test_a_tensor_that_cannot_be_read_is_refused_with_its_cause() -> None:
    trouble = RuntimeError("no data on the meta device")

    with pytest.raises(InvalidMetrics, match="'loss' cannot be read") as caught:
        metrics_text({"loss": Scalar(trouble)})

    assert caught.value.__cause__ is trouble


@pytest.mark.parametrize("metrics", [{1: 2.0}, {None: 2.0}, [("m", 1.0)], "m", None])
def test_metrics_are_a_mapping_with_names(metrics: Any) -> None:
    with pytest.raises(InvalidMetrics):
        metrics_text(metrics)


def test_a_name_out_of_an_enumeration_is_its_text() -> None:
    class Name(str, Enum):  # noqa: UP042 -- the older way, whose str() is "Name.LOSS"
        LOSS = "train/box_loss"

    assert metrics_text({Name.LOSS: 1.0}) == '{"train/box_loss": 1.0}'


def test_a_refusal_shows_no_control_characters() -> None:
    with pytest.raises(InvalidMetrics) as caught:
        metrics_text({"bad\x1b[2J\n": "x"})

    assert str(caught.value).isprintable()


NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.floats(width=32).map(Scalar)


@given(metrics=st.dictionaries(st.text(alphabet='abc/()"\\\n\udc80é', max_size=20), NUMBERS, max_size=20))
def test_any_numbers_become_strict_json_with_the_same_names(metrics: dict[str, object]) -> None:
    text = metrics_text(metrics)

    stored = strict(text)
    assert list(stored) == list(metrics)
    assert all(value is None or isinstance(value, int | float) for value in stored.values())
    text.encode("ascii")


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_finite_float_is_stored_exactly(value: float) -> None:
    assert strict(metrics_text({"m": value})) == {"m": value}


@pytest.mark.parametrize(
    ("epoch", "number"),
    [
        *((0, 0), (299, 299), (2**53 - 1, 2**53 - 1)),
        *((Scalar(7), 7), (Scalar(7, shape=(1,)), 7), (Scalar(7.0), 7)),
        *((3.0, 3), (Decimal(3), 3), ("3", 3), (" 3\n", 3)),
    ],
)
def test_an_epoch_and_a_step_are_whole_numbers(epoch: object, number: int) -> None:
    assert position(epoch, None) == (number, None)
    assert position(None, epoch) == (None, number)
    found = position(epoch, epoch)

    assert found == (number, number)
    assert list(map(type, found)) == [int, int]


@pytest.mark.parametrize(
    "epoch",
    [
        *(-1, -1.0, "-1", 2**53, float(2**53), "9" * 20, "9" * 5000),
        *(
            True,
            False,
            [1],
            "",
            "one",
            "1.0",
            "0x1",
            "1_0",
            b"1",
            1.5,
            float("nan"),
            float("inf"),
            Decimal("0.5"),
        ),
        *(Scalar(True), Scalar(1.5), Scalar(1, shape=(2,)), Scalar(ValueError("gone"))),
    ],
)
def test_what_is_no_epoch_is_refused(epoch: object) -> None:
    with pytest.raises(InvalidMetrics, match="an epoch"):
        position(epoch, 1)
    with pytest.raises(InvalidMetrics, match="a step"):
        position(1, epoch)


def test_one_of_epoch_and_step_has_to_be_given() -> None:
    with pytest.raises(InvalidArgument, match="neither an epoch nor a step") as raised:
        position(None, None)

    assert "step=N" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("value", "number"), [(0.51, 0.51), (1, 1.0), (None, 0.0), (float("nan"), 0.0), (Scalar(0.5), 0.5)]
)
def test_a_score_is_always_a_finite_float(value: object, number: float) -> None:
    found = score("map", value, strict=True)

    assert found == number
    assert type(found) is float


@pytest.mark.parametrize("value", ["high", 51, -0.1, 2**1023, [0.5]])
def test_a_wrong_score_is_zero_with_a_line_or_refused(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InvalidMetrics, match="map"):
        score("map", value, strict=True)
    assert score("map", value, strict=False) == 0.0
    assert len(caplog.records) == 1
    assert "map" in caplog.text


def test_what_is_no_number_is_left_out_and_each_name_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    lenient = Lenient()

    assert lenient.text({"good": 1.0, "bad": "x", "none": None}) == '{"good": 1.0, "none": null}'
    assert lenient.text({"good": 2.0, "bad": "x", "worse": [1]}) == '{"good": 2.0}'
    assert lenient.text({"bad": "x"}) is None

    assert [record.message.count("not a number") for record in caplog.records] == [1, 1]
    assert "'bad'" in caplog.records[0].message
    assert "'worse'" in caplog.records[1].message


def test_a_thousand_bad_names_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    lenient = Lenient()
    for _ in range(3):
        assert lenient.text({f"bad{number}": "x" for number in range(5000)}) is None

    assert len(caplog.records) == 1
    assert len(caplog.text) < 2000


@pytest.mark.parametrize("metrics", [[("m", 1.0)], "m", None])
def test_a_leniency_has_an_end(metrics: Any) -> None:
    with pytest.raises(InvalidMetrics):
        Lenient().text(metrics)
