"""`finish` with an odd argument: the run is ended, and an invalid one is one clear error."""

from __future__ import annotations

import datetime
import fractions
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import hubqueue as package
from hubqueue.domain.errors import InvalidArgument
from hubqueue.outbox.outbox import open_outbox

pytestmark = pytest.mark.usefixtures("migrated_home")


class Unspeakable:
    """Fails whenever it is looked at."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise ValueError("no comparison")

    __hash__ = None  # type: ignore[assignment]


class Broken(dict[str, object]):
    def items(self) -> Any:
        raise ValueError("no items")


def _endless() -> list[object]:
    found: list[object] = []
    found.append(found)
    return found


def _finish(home: Path, destination: str, **given: object) -> str:
    """The state of a run that was finished so; raises what `finish` raises, after checking that the run has ended."""
    run = package.start_run("yolov8n.pt", home=home, worker="none", destination=destination)
    try:
        run.finish(**{"timeout": 0, **given})  # type: ignore[arg-type]
    finally:
        with open_outbox(home) as outbox:
            row = outbox.stats.run(str(run.id))
        assert row is not None
        assert row["state"] in ("finished", "failed")
    return str(row["state"])


WRONG: tuple[dict[str, object], ...] = (
    {"timeout": float("nan")},
    {"timeout": "30"},
    {"timeout": True},
    {"timeout": datetime.timedelta(seconds=30)},
    {"timeout": Unspeakable()},
    {"timeout": Decimal("nan")},
    {"status": "success"},
    {"status": None},
    {"status": ["finished"]},
    {"status": Unspeakable()},
    {"results": [1]},
    {"results": "mAP"},
    {"results": Broken(a=1)},
)
ODD: tuple[dict[str, object], ...] = (
    {"timeout": -1},
    {"timeout": 10**400},
    {"timeout": -(10**400)},
    {"timeout": float("inf")},
    {"timeout": None},
    {"timeout": Decimal("0.01")},
    {"timeout": fractions.Fraction(1, 100)},
    {"results": {1: 2, None: 3}},
    {"results": {"a": _endless()}},
    {"results": {"a": object(), "b": {1, 2}, "c": b"\xff", "d": float("nan")}},
    {"error": ValueError("no GPU")},
    {"error": Unspeakable()},
    {"error": "a\0\ud800b" * 1000},
)


@pytest.mark.parametrize("destination", ["hub", "platform"])
def test_an_invalid_argument_is_one_error_with_a_hint_and_the_run_has_ended(
    home: Path, caplog: pytest.LogCaptureFixture, destination: str
) -> None:
    for given in WRONG:
        name = next(iter(given))
        with pytest.raises(InvalidArgument, match=name) as raised:
            _finish(home, destination, **given)

        assert raised.value.hint, name
        assert "Traceback" not in caplog.text, name


@pytest.mark.parametrize("destination", ["hub", "platform"])
def test_an_odd_argument_is_understood(
    home: Path, caplog: pytest.LogCaptureFixture, destination: str
) -> None:
    for number, given in enumerate(ODD):
        assert _finish(home, destination, **given) == "finished", number
        assert "Traceback" not in caplog.text, number
