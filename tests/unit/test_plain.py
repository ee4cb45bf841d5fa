"""JSON that nests too deeply to be parsed safely."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator

import pytest

from hubqueue.destinations.wire.message import Response
from hubqueue.domain.plain import DEEPEST, is_deep


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b"", False),
        (b'{"success": true}', False),
        (b"[" * DEEPEST + b"]" * DEEPEST, False),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), True),
        (b'{"a":' * (DEEPEST + 1), True),
        (b"[" + b"[], {}," * 5000 + b"1]", False),
        (json.dumps({"x": "[" * 500}).encode(), False),
        (json.dumps({"x": '\\"' + "[" * 500}).encode(), False),
        (b'["\\\\", ' + b"[" * DEEPEST, True),
        (b'["never closed ' + b"[" * 500, False),
    ],
)
def test_depth_counts_open_brackets_outside_of_strings(text: bytes, deep: bool) -> None:
    assert is_deep(text) is deep


class Knot:
    """A reference cycle, which only the garbage collector frees; its finalizer needs some stack."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        _descend(100)


def _descend(levels: int) -> None:
    if levels:
        _descend(levels - 1)


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    found: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda report: found.append(report.exc_type))
    thresholds = gc.get_threshold()
    gc.freeze()  # objects of other tests are not scanned in each of a hundred collections
    yield found
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the parser's recursion has a separate limit there")
def test_a_deep_response_does_not_break_finalizers(unraisable: list[object]) -> None:
    def collect_while(parse: object) -> None:
        for lists in range(500, 1000, 20):
            gc.collect()
            Knot()
            gc.set_threshold(lists)
            assert callable(parse) and parse() is None

    def alone() -> None:
        with pytest.raises(RecursionError):
            json.loads(b"[" * 65_000)

    collect_while(alone)
    assert unraisable, "control: a plain parser breaks the finalizer"
    unraisable.clear()

    collect_while(Response(200, {}, b"[" * 65_000).json)

    assert not unraisable
