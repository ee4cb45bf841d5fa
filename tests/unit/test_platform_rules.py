"""The pure rules of Platform: the data of starts and epochs, names, progress, and the budget of a minute."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubqueue.config.registry import declaration
from hubqueue.destinations.platform import events, identifier, start, upload
from hubqueue.destinations.platform.end import completion_draft, console_draft
from hubqueue.destinations.platform.start import project_slug, slug, training_started
from hubqueue.domain.budget import Allowance, Budget
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import InvalidModel
from hubqueue.domain.lane import RunRef
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.plain import plain

RUN = RunRef("0123456789ab", "platform", "yolo26n.pt", "model-1", {"run": "7"})
START = datetime(2026, 1, 1, tzinfo=UTC)


@given(
    per_minute=st.integers(1, 400),
    waits=st.lists(st.floats(0, 30), min_size=1, max_size=50),
    count=st.integers(1, 20),
)
def test_no_minute_exceeds_the_budget(per_minute: int, waits: list[float], count: int) -> None:
    budget = Budget(per_minute, per_claim={Kind.CKPT: {"requests": count}})
    (allowance, _), free_at, now = budget.costs(Kind.CKPT)["requests"], START, START
    taken: list[datetime] = []
    for wait in waits:
        now += timedelta(seconds=wait)
        while free_at <= now:  # as the claim takes them
            free_at = max(free_at, now - allowance.saved) + allowance.interval * count
            taken += [now] * count
    # More than `most` within a minute: then one of them is within a minute of the one `most` positions later.
    most = max(per_minute, count)
    for first, one_too_many in zip(taken, taken[most:], strict=False):
        assert one_too_many - first >= timedelta(seconds=60)


def test_a_budget_is_used_nearly_whole() -> None:
    allowance, free_at, now, taken = Allowance(100), START, START, 0
    while now < START + timedelta(minutes=10):
        if free_at <= now:
            free_at = max(free_at, now - allowance.saved) + allowance.interval
            taken += 1
        now += timedelta(milliseconds=50)
    assert 800 <= taken <= 1000


def test_what_each_kind_costs() -> None:
    declared = declaration("platform").costs
    costs = {kind: Budget(100, 10, declared).costs(kind) for kind in Kind}

    assert {kind: {name: count for name, (_, count) in each.items()} for kind, each in costs.items()} == {
        Kind.REGISTRATION: {"requests": 1},
        Kind.METRICS: {"requests": 1},
        Kind.EVENT: {"requests": 1},
        Kind.COMPLETION: {"requests": 1},
        Kind.HEARTBEAT: {"requests": 2},
        Kind.CKPT: {"requests": 2, "uploads": 1},
    }
    assert all(Budget(per_claim=declared).costs(kind) == {} for kind in Kind)


def test_a_destination_that_declares_nothing_takes_one_of_each() -> None:
    counts = {kind: {name: count for name, (_, count) in Budget(9, 9).costs(kind).items()} for kind in Kind}

    assert counts.pop(Kind.CKPT) == {"requests": 1, "uploads": 1}
    assert all(each == {"requests": 1} for each in counts.values())


@pytest.mark.parametrize(
    "costs", [{Kind.METRICS: {"uploads": 1}}, {Kind.CKPT: {"bytes": 1}}, {Kind.CKPT: {"requests": -1}}]
)
def test_costs_that_no_claim_obeys_cannot_be_declared(costs: dict[Kind, dict[str, int]]) -> None:
    with pytest.raises(ValueError, match="cannot take"):
        replace(declaration("platform"), costs=costs)


# The two examples with an owner and blanks are what ultralytics 8.4.190 was seen to send.
@pytest.mark.parametrize(
    ("written", "project"),
    [
        ("bob/My Project", "bob/my-project"),
        ("My Project", "my-project"),
        ("Bob/a/b c", "Bob/a-b-c"),
        ("/home/me/runs/Coco 8/", "coco-8"),
        ("./runs", "runs"),
        ("C:\\runs\\x", "x"),
        ("~/runs", "runs"),
        ("", ""),
        ("owner/", "owner"),
    ],
)
def test_slugs_of_projects(written: str, project: str) -> None:
    assert project_slug(written) == project


@pytest.mark.parametrize(
    ("written", "name"), [("Exp 1", "exp-1"), ("é_x!", "x"), ("a -- b", "a-b"), ("x" * 300, "x" * 128)]
)
def test_slugs_of_names(written: str, name: str) -> None:
    assert slug(written) == name


def test_a_start_without_a_project_has_one() -> None:
    event = training_started(
        "yolo26n.pt", {"epochs": 5, "data": "https://x.example/d.zip?api_key=" + "k" * 40}
    )

    assert (event["project"], event["name"]) == ("hubqueue", "train")
    assert event["data"]["epochs"] == 5
    assert "kkkk" not in json.dumps(event)
    assert set(event["data"]["environment"]) <= {"hubqueueVersion", "pythonVersion", "ultralyticsVersion"}


def test_an_epoch_separates_its_metrics_from_other_values() -> None:
    logged = {"lr": 0.01, "fitness": None, "best_fitness": 0.5, "model/parameters": 3, "model/GFLOPs": 8.7}

    assert events.epoch_end(0, json.dumps(logged)) == {
        "epoch": 0,
        "metrics": {"lr": 0.01},
        "fitness": None,
        "best_fitness": 0.5,
        "modelInfo": {"parameters": 3, "gflops": 8.7},
    }


def test_an_end_is_bound_to_its_start_and_its_file() -> None:
    draft = completion_draft(RunState.FINISHED, results={"metrics": {}, "classNames": ["a"], "plots": [1]})
    event = json.loads(draft.payload)
    run = replace(RUN, remembered={**RUN.remembered, "file": '{"modelPath": "gs://a", "modelSize": 3}'})

    assert events.bound(event["event"], event["data"], run) == {
        "results": {"metrics": {}, "modelPath": "gs://a", "modelSize": 3},
        "classNames": ["a"],
        "plots": [1],
        "runId": 7,
    }


def test_console_lines_carry_no_number_of_a_start() -> None:
    event = json.loads(console_draft("a\nb", 2, 5).payload)

    assert events.bound(event["event"], event["data"], RUN) == {
        "chunkId": 5,
        "content": "a\nb",
        "lineCount": 2,
        "progress": {},
    }


def test_stored_bytes_are_used_by_their_own_start_only() -> None:
    staged = upload.Staged.of({"gcsPath": "gs://a/b", "uploadPath": "b"})
    assert staged is not None
    kept = staged.progress(RUN)

    assert upload.staged_in(kept, RUN) == staged
    assert upload.staged_in(kept, replace(RUN, remembered={"run": "8"})) is None
    assert upload.staged_in(kept, replace(RUN, remote_id="model-2")) is None
    assert upload.staged_in(None, RUN) is None


@pytest.mark.parametrize("path", [None, "", 5, "x" * 3000, "a?signature=b", "a\nb"])
def test_an_invalid_upload_target(path: object) -> None:
    assert upload.Staged.of({"gcsPath": path}) is None


def test_an_own_name_is_valid_and_not_too_long() -> None:
    own = start.own_name({"project": "p", "name": "n" * 128}, RUN.id)

    assert len(own["name"]) == 128
    assert own["name"].endswith("-0123456789ab")


class Tensor:
    def __init__(self, value: object) -> None:
        self._value = value

    def item(self) -> object:
        if self._value is None:
            raise RuntimeError("more than one element")
        return self._value

    def __str__(self) -> str:
        return "tensor"


def test_any_value_is_plain_json() -> None:
    given = {"a": Tensor(0.5), 3: [float("nan"), float("inf"), True, None], "t": (Tensor(None), Tensor("x"))}

    assert plain(given) == {"a": 0.5, "3": [None, None, True, None], "t": ["tensor", "x"]}
    json.dumps(plain(given), allow_nan=False)


@pytest.mark.parametrize("model", ["yolo26n.pt", "/data/my model.yaml", "0123456789abcdef01234567"])
def test_identifiers_of_a_model_on_platform(model: str) -> None:
    found = identifier.parse(model)

    assert (found.filename or found.model_id) == model


@pytest.mark.parametrize(
    "model", ["yolo26n", "https://platform.ultralytics.com/bob/p/m", "", "ul_" + "a" * 70]
)
def test_invalid_identifiers_on_platform(model: str) -> None:
    with pytest.raises(InvalidModel):
        identifier.parse(model)


def test_the_load_of_this_machine_is_plain_numbers() -> None:
    found = events.load_now()

    assert 0 <= found["disk"][0]["used_gb"] <= found["disk"][0]["total_gb"]
    assert all(0 <= found[name] <= 100 for name in ("cpu", "memory") if name in found)
