"""The mlflow destination over the fake server: one run, no point twice, params that exist, artifacts, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow_stage import KEY, Mlflow

from hubqueue.config.registry import declaration
from hubqueue.destinations.base import (
    Blocked,
    Delivered,
    DestinationUnavailable,
    Kind,
    RetryLater,
    RunState,
    Scope,
    StoredRun,
)
from hubqueue.destinations.mlflow.fake_runs import FakeRun
from hubqueue.destinations.mlflow.sandbox import FakeMlflow
from hubqueue.domain.lifecycle import State
from hubqueue.domain.redact import link
from hubqueue.producer.intake import open_run
from hubqueue.sandbox.request import Request
from hubqueue.sandbox.response import Refused
from hubqueue.sandbox.routes import Prepared
from hubqueue.testing.conformance import Fault, Stage, staged


class Open(Mlflow):
    """A server without authentication."""

    secrets: Mapping[str, str] = {}


@pytest.fixture
def fake() -> FakeMlflow:
    return FakeMlflow()


@pytest.fixture
def stage(fake: FakeMlflow, tmp_path: Path) -> Iterator[Stage]:
    with Open(fake) as service, staged(service, tmp_path / "stage") as made:
        yield made


def start(stage: Stage, resume: str | None = None, name: str = "", **args: object) -> str:
    model = stage.declared.identify("resnet50.pt", stage.target)
    return open_run(stage.outbox, model, args, stage.target, heartbeat=False, resume=resume, name=name)[0]


def only(fake: FakeMlflow) -> FakeRun:
    (run,) = fake.runs_by_id.values()
    return run


def settle(stage: Stage) -> None:
    """Send what waits, without a comparison of all that was saved with all that arrived."""
    for _ in range(10):
        while stage.worker.step():
            assert stage.worker.wait_free(stage.patience)
        stage.pass_time()
    assert stage.count(State.PENDING) == 0


def last_outcome(stage: Stage) -> str:
    return stage.reasons()[-1]


def test_a_run_has_its_name_params_and_tags(stage: Stage, fake: FakeMlflow) -> None:
    run = start(stage, name="Try 7", lr=0.1, opt={"name": "SGD"}, **{f"p{at}": at for at in range(220)})
    stage.log_values(run, {"loss": 0.5}, epoch=3, step=120)
    stage.end(run)
    stage.drain()

    made = only(fake)
    assert made.name == made.tags["mlflow.runName"] == "Try 7"
    assert made.tags["hubqueue.run_id"] == run
    assert made.tags["mlflow.user"] == made.user
    assert made.tags["hubqueue.model"] == "resnet50.pt"
    assert "/" not in made.tags["mlflow.source.name"]
    assert len(made.params) == 222
    assert made.params["opt.name"] == "SGD"
    assert {(name, value, step) for name, value, _, step in made.points} == {
        ("loss", 0.5, 120),
        ("epoch", 3.0, 120),
    }
    (at,) = {at for _, _, at, _ in made.points}
    assert made.started <= at <= (made.end_time or 0)
    assert made.status == "FINISHED"
    row = stage.outbox.stats.run(run)
    assert row is not None
    assert row["url"] == f"{stage.target.web_url}/#/experiments/0/runs/{made.id}" == link(row["url"])


def test_a_run_whose_response_was_lost_is_found_again(stage: Stage, fake: FakeMlflow) -> None:
    stage.service.fail(Fault.LOST, kind=Kind.REGISTRATION, after=2, times=3)
    run = start(stage, lr=0.1)
    stage.log(run, 0)
    stage.drain()

    assert stage.reasons(), "no response was lost"
    assert only(fake).params == {"lr": "0.1"}
    stage.assert_arrived(run)


def test_null_values_are_left_out_and_the_run_must_exist_nevertheless(stage: Stage, fake: FakeMlflow) -> None:
    run = stage.start()
    stage.log_values(run, {"loss": 0.5, "bad": None, "text": "x"}, epoch=0)  # type: ignore[dict-item]
    stage.log_values(run, {"bad": None}, epoch=1)  # type: ignore[dict-item]
    settle(stage)

    assert [(name, value, step) for name, value, _, step in only(fake).points] == [("loss", 0.5, 0)]


def test_more_than_1000_metrics_are_several_requests(stage: Stage, fake: FakeMlflow) -> None:
    run = stage.start()
    stage.log_values(run, {f"layer/{at}": at / 2 for at in range(2500)}, epoch=0)
    stage.drain()

    assert len(only(fake).points) == 2500
    sent = [each for each in stage.service.server.requests if each.kind == "metrics"]  # type: ignore[attr-defined]
    assert len(sent) == 3
    assert stage.reasons() == []


@pytest.mark.parametrize("refuses_repeats", [False, True])
def test_a_second_call_for_an_epoch_repeats_no_point(tmp_path: Path, refuses_repeats: bool) -> None:
    fake = FakeMlflow(refuses_repeats=refuses_repeats)
    with Open(fake) as service, staged(service, tmp_path / "stage") as stage:
        run = stage.start()
        for name in ("loss", "val", "test"):
            stage.log(run, 5, name=name)
            stage.drain()
            stage.clock.advance(10)

        assert sorted((name, value, step) for name, value, _, step in only(fake).points) == [
            ("loss", 5.5, 5),
            ("test", 5.5, 5),
            ("val", 5.5, 5),
        ]
        assert stage.count(State.DEAD) == 0


def test_a_second_call_after_a_lost_response_repeats_no_point(stage: Stage, fake: FakeMlflow) -> None:
    run = stage.start()
    stage.drain()
    stage.service.fail(Fault.LOST, kind=Kind.METRICS, times=1)
    stage.log(run, 5)
    stage.step()
    assert len(only(fake).points) == 1

    stage.log(run, 5, name="val")
    stage.pass_time()
    stage.drain()

    assert sorted((name, value) for name, value, *_ in only(fake).points) == [("loss", 5.5), ("val", 5.5)]


def test_of_two_values_of_an_epoch_the_later_one_has_the_later_time(stage: Stage, fake: FakeMlflow) -> None:
    run = stage.start()
    for add in (0.5, 0.25):  # at the same time of the clock
        stage.log(run, 5, add=add)
        stage.step()

    (first, *_, at, _), (second, *_, later, _) = sorted(only(fake).points, key=lambda each: each[2])
    assert [value for _, value, *_ in sorted(only(fake).points, key=lambda each: each[2])] == [5.5, 5.25]
    assert later > at
    assert first == second == "loss"


def test_a_refused_repeat_is_compared_with_what_it_has(tmp_path: Path) -> None:
    fake = FakeMlflow(refuses_repeats=True)
    with Open(fake) as service, staged(service, tmp_path / "stage") as stage:
        run = stage.start()
        stage.drain()
        stage.service.fail(Fault.LOST, kind=Kind.METRICS, times=1)
        stage.log(run, 0, 1, 2)
        stage.step()
        assert len(only(fake).points) == 3

        stage.pass_time()
        stage.log(run, 3)
        stage.drain()

        assert len(only(fake).points) == 4
        assert stage.count(State.DEAD) == 0
        stage.assert_arrived(run)


def test_params_of_a_resumed_training_never_change(stage: Stage, fake: FakeMlflow) -> None:
    run = start(stage, lr=0.1, epochs=3)
    stage.end(run)
    stage.drain()
    assert only(fake).status == "FINISHED"

    assert start(stage, resume=run, lr=0.2, epochs=3, batch=16) == run
    settle(stage)

    made = only(fake)
    assert made.params == {"lr": "0.1", "epochs": "3", "batch": "16"}
    assert json.loads(made.tags["hubqueue.params_changed"]) == {"lr": "0.2"}
    assert "hubqueue.params_refused" not in made.tags
    assert made.status == "RUNNING"


def test_a_param_that_the_server_refuses_is_left_out(
    stage: Stage, fake: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubqueue.destinations.mlflow.sandbox.LONGEST_PARAM", 500)  # servers before 2.8
    start(stage, **{f"p{at}": at for at in range(40)}, long="x" * 600)
    stage.drain()

    made = only(fake)
    assert len(made.params) == 40
    assert json.loads(made.tags["hubqueue.params_refused"]) == ["long"]


@pytest.mark.parametrize("state", [RunState.FINISHED, RunState.FAILED, RunState.INTERRUPTED])
def test_the_end_has_mlflows_state_and_its_time(stage: Stage, fake: FakeMlflow, state: RunState) -> None:
    run = stage.start()
    stage.end(run, state)
    stage.drain()

    made = only(fake)
    assert made.status == {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[str(state)]
    assert made.end_time is not None
    assert made.end_time >= made.started


def test_a_deleted_experiment_holds_the_run_with_a_hint(stage: Stage, fake: FakeMlflow) -> None:
    fake.delete_experiment("0")
    run = stage.start()
    stage.step()
    assert "the experiment Default was deleted: restore it (mlflow experiments restore" in last_outcome(stage)
    assert stage.count(State.PENDING) == 1

    fake.delete_experiment("0", deleted=False)
    stage.drain()

    stage.assert_arrived(run)


def test_a_deleted_run_holds_its_metrics_with_a_hint(stage: Stage, fake: FakeMlflow) -> None:
    run = stage.start()
    stage.drain()
    only(fake).is_deleted = True
    stage.log(run, 0)
    stage.step()
    assert "was deleted at lab: restore it (mlflow runs restore" in last_outcome(stage)
    assert (stage.count(State.PENDING), stage.count(State.DEAD)) == (1, 0)

    only(fake).is_deleted = False
    stage.drain()

    stage.assert_arrived(run)


def test_without_the_proxy_checkpoints_are_dead_and_the_rest_arrives(tmp_path: Path) -> None:
    fake = FakeMlflow(serves_artifacts=False)
    with Open(fake) as service, staged(service, tmp_path / "stage") as stage:
        run = stage.start()
        stage.save(run, b"weights")
        stage.log(run, 0)
        stage.end(run)
        settle(stage)

        assert "start it with --serve-artifacts" in stage.reasons()[0]
        assert stage.count(State.DEAD, Kind.CKPT) == 1
        assert only(fake).status == "FINISHED"
        assert len(only(fake).points) == 1
        reader = declaration("mlflow").read(stage.target, lambda: ())  # type: ignore[misc]
        with pytest.raises(DestinationUnavailable):
            reader.checkpoints(only(fake).name)
        reader.close()


def test_a_proxy_that_is_off_for_a_while_delays_checkpoints_only(stage: Stage, fake: FakeMlflow) -> None:
    run = stage.start()
    stage.drain()
    fake.serves_artifacts = False
    stage.save(run, b"weights")
    stage.log(run, 0)
    stage.step()
    assert "stores no artifacts: start it with --serve-artifacts" in last_outcome(stage)
    assert stage.count(State.PENDING) == stage.count(State.PENDING, Kind.CKPT) == 1

    fake.serves_artifacts = True
    stage.drain()

    stage.assert_arrived(run)


def test_the_end_does_not_wait_for_a_proxy_that_is_off(stage: Stage, fake: FakeMlflow) -> None:
    run = stage.start()
    stage.drain()
    fake.serves_artifacts = False
    stage.end(run)
    stage.step()

    assert only(fake).status == "FINISHED"


class EditOnly(FakeMlflow):
    """A server whose user may not delete."""

    def delete_artifact(self, request: Request, _: str) -> Prepared:
        raise Refused(403, "Permission denied")


def test_a_user_who_may_not_delete_sends_checkpoints(tmp_path: Path) -> None:
    with Mlflow(EditOnly()) as service, staged(service, tmp_path / "stage") as stage:
        run = stage.start()
        for at in range(2):
            stage.save(run, f"weights {at}".encode(), epoch=at)
            stage.drain()
        stage.end(run)
        stage.drain()

        stage.assert_arrived(run)
        assert stage.reasons() == []


@pytest.mark.slow
def test_an_empty_success_does_not_prove_a_checkpoint(stage: Stage) -> None:
    """Of each checkpoint another request has an empty response with status 200, and is not carried out."""
    run, most = stage.start(), 14
    stage.drain()
    for at in range(most):
        stage.save(run, f"weights {at}".encode(), epoch=at)
        stage.service.server.fail(f"ckpt:empty:after={at}:times=1")  # type: ignore[attr-defined]
        stage.step()
        stage.service.heal()
        stage.drain()

    assert len(stage.whole(run)) == most
    assert stage.reasons()


def test_names_that_the_proxy_refuses_are_escaped_and_read_back(stage: Stage, fake: FakeMlflow) -> None:
    content = {"a #1/%41 b.bin": b"one", "a #1/~23.bin": b"two", "empty": b""}
    run = stage.start()
    stage.save(run, content)
    stage.drain()

    reader = declaration("mlflow").read(stage.target, lambda: ())  # type: ignore[misc]
    (found,) = reader.checkpoints(run)
    assert {each.path: b"".join(reader.blocks(found, each)) for each in found.files} == content
    assert all(reader.hashed(found, each).size == each.size for each in found.files)
    only(fake).files = {path: each for path, each in only(fake).files.items() if not path.endswith("empty")}
    reader.close()
    reader = declaration("mlflow").read(stage.target, lambda: ())  # type: ignore[misc]
    assert reader.hashed(*((one := reader.checkpoints(run)[0]), one.files[-1])) is None
    reader.close()


def test_runs_are_read_with_name_model_and_state(stage: Stage) -> None:
    first, second = start(stage, name="a"), start(stage, name="b")
    stage.end(second, RunState.FAILED)
    stage.drain()

    reader = declaration("mlflow").read(stage.target, lambda: ())  # type: ignore[misc]
    found = list(reader.runs())
    reader.close()

    assert sorted(found, key=str) == [
        StoredRun("a", first, "resnet50.pt", "running"),
        StoredRun("b", second, "resnet50.pt", "failed"),
    ]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("401", Blocked),
        ("403", Blocked),
        ("404", Blocked),
        ("html", RetryLater),
        ("500", RetryLater),
        ("503", RetryLater),
        ("429", RetryLater),
    ],
)
def test_check_reports_a_refusal(stage: Stage, fault: str, expected: type) -> None:
    transport = stage.transport()
    assert isinstance(transport.check(), Delivered)

    stage.service.server.fail(f"any:{fault}")  # type: ignore[attr-defined]
    outcome = transport.check()
    transport.close()

    assert isinstance(outcome, expected)
    assert not isinstance(outcome, Blocked) or outcome.scope is Scope.DESTINATION


def test_a_server_that_asks_for_a_key_holds_the_destination(fake: FakeMlflow, tmp_path: Path) -> None:
    with ExitStack() as at_end:
        service = at_end.enter_context(Open(fake))
        service.server.keys = (KEY,)  # type: ignore[attr-defined]
        stage = at_end.enter_context(staged(service, tmp_path / "stage"))
        service.server.fail("any:401")
        stage.start()
        stage.step()
        assert "the key for lab is missing" in last_outcome(stage)
        held = stage.outbox.stats.destinations()

        assert any(each["held"] for each in held)
