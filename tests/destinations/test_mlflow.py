"""The mlflow destination against real servers, 2.x and 3.x: what MLflow's own client reads is what it writes itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_conversation import conversation, fields
from mlflow_real import CANARY, Real
from mlflow_servers import VERSIONS, MlflowServer, running

from hubqueue.destinations.base import Delivered, Outcome
from hubqueue.destinations.mlflow.names import valid
from hubqueue.destinations.mlflow.sandbox import FakeMlflow
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import RunState, State
from hubqueue.producer.intake import open_run
from hubqueue.sandbox.server import Server
from hubqueue.testing.conformance import Conformance
from hubqueue.testing.conformance.stage import Stage, staged

pytestmark = pytest.mark.slow
CLIENT = Path(__file__).parent.parent / "mlflow_client.py"
# Names that MLflow refuses, and what becomes of them.
ODD = {"a(b)": "ab", "c@d": "c_d", "/e//f": "e/f", "../g": "_/g", "n" * 300: valid("n" * 300)}
ARGS = {
    "epochs": 3,
    "lr": 0.001,
    "amp": True,
    "device": None,
    "imgsz": [640, 480],
    "name": "über all",
    **{f"many_{number}": number for number in range(250)},
}
METRICS = [(100, {"train/loss": 0.5}), (103, {"train/loss": 0.25, "lr": 1e-9, "x": 3.0})]
FILES = {"model.bin": "m" * 1000, "sub/a b.txt": "text", "empty": ""}


@pytest.fixture
def real(mlflow: MlflowServer) -> Iterator[Real]:
    made = Real(mlflow)
    yield made
    made.gateway.close()


@pytest.fixture
def stage(real: Real, tmp_path: Path) -> Iterator[Stage]:
    with staged(real, tmp_path / "stage") as made:
        yield made


class TestMlflow(Conformance):
    """The conformance tests, as far as a server can be made to fail from outside."""

    large = 8 << 20  # a server 2.x copies it twice

    @pytest.fixture
    def service(self, real: Real) -> Real:
        return real


def start(stage: Stage, **args: object) -> str:
    """A run with these arguments."""
    model = stage.declared.identify("resnet50.pt", stage.target)
    return open_run(stage.outbox, model, args, stage.target, heartbeat=False)[0]


def column(stage: Stage, run: str, name: str = "remote_id") -> str:
    """What the outbox knows of a run: MLflow's id, or the address of its page."""
    row = stage.outbox.stats.run(run)
    assert row is not None
    return str(row[name])


def test_it_writes_what_the_client_writes(stage: Stage, real: Real) -> None:
    nested = {"optimizer": {"name": "SGD", "nesterov": {"on": False}}, "long": "x" * 7000}
    run = start(stage, **ARGS, **nested, **dict.fromkeys(ODD, 1))
    for step, values in METRICS:
        stage.log_values(run, values, step=step)
    stage.log_values(run, dict.fromkeys(ODD, 0.5), step=104)
    stage.save(run, {path: text.encode() for path, text in {**FILES, "# %41": "-"}.items()}, epoch=7)
    stage.end(run)
    stage.drain()

    accepted = {"optimizer.name": "SGD", "optimizer.nesterov.on": False, "long": "x" * 6000}
    given = {
        "experiment": real.experiment,
        "ours": column(stage, run),
        "params": {**ARGS, **accepted, **dict.fromkeys(ODD.values(), 1)},
        "metrics": [*METRICS, (104, dict.fromkeys(ODD.values(), 0.5))],
        "folder": "checkpoints/epoch-0007",
        "files": FILES,
        "odd": list(ODD),
    }
    found = real.server.client(CLIENT, given)

    ours, direct = found["ours"], found["direct"]
    for each in ("params", "latest", "points", "status", "user", "experiment"):
        assert ours[each] == direct[each], each
    assert found["refused"] == list(ODD)
    assert ours["start"] <= min(ours["times"]) <= max(ours["times"]) <= ours["end"]
    for each in ("mlflow.user", "mlflow.source.type"):
        assert ours["tags"][each] == direct["tags"][each]
    assert {each for each in direct["tags"] if ".git." not in each} <= set(ours["tags"])
    assert ours["tags"]["mlflow.runName"] == ours["name"] == f"resnet50-{run}"
    others = {path: each for path, each in ours["files"].items() if path not in direct["files"]}
    assert {**direct["files"], **others} == ours["files"]
    names = ("checkpoints/epoch-0007/manifest.json", "latest.json", "checkpoints/epoch-0007/~23 ~2541")
    assert set(others) == set(names)
    assert others[names[2]] == [1, hashlib.sha256(b"-").hexdigest()]
    assert column(stage, run, "url") == found["page"].replace(real.server.url, real.gateway.url)


@pytest.mark.parametrize(
    ("lost", "times"), [("runs/create", 1), ("runs/log-batch", 3), ("runs/update", 2), ("runs/search", 2)]
)
def test_a_lost_response_leaves_one_run_and_no_point_twice(
    stage: Stage, real: Real, lost: str, times: int
) -> None:
    run = stage.start()
    stage.log(run, 0, 1, 2)
    stage.save(run, b"weights" * 1000)
    stage.end(run)
    real.gateway.lost, real.gateway.lost_path = times, lost

    stage.drain()

    assert real.gateway.lost == 0
    assert stage.reasons(), "no response was lost"
    stage.assert_arrived(run)


def test_a_training_begins_while_the_server_is_away(stage: Stage, real: Real) -> None:
    real.gateway.close()
    run = stage.start()
    stage.log(run, 0)
    stage.step()
    assert stage.count(State.DELIVERED) == 0

    real.gateway.open()
    stage.pass_time()
    stage.log(run, 1)
    stage.end(run, RunState.FAILED)
    stage.drain()

    stage.assert_arrived(run)


def test_a_second_call_for_a_step_repeats_no_point(stage: Stage) -> None:
    run = stage.start()
    stage.log(run, 5, name="loss")
    stage.drain()
    stage.log(run, 5, name="val")
    stage.drain()

    points = [values for _, values in stage.received(run).metrics]
    assert sorted(points, key=str) == [{"loss": 5.5}, {"val": 5.5}]


def test_a_deleted_run_is_held_until_it_is_restored(stage: Stage, real: Real) -> None:
    run = stage.start()
    stage.drain()
    real.server.post("runs/delete", {"run_id": column(stage, run)})
    stage.log(run, 0)
    stage.step()
    assert "was deleted" in stage.reasons()[-1]
    assert "mlflow runs restore" in stage.reasons()[-1]
    assert stage.count(State.PENDING) == 1

    real.server.post("runs/restore", {"run_id": column(stage, run)})
    stage.drain()

    stage.assert_arrived(run)


def test_a_deleted_experiment_holds_the_run_until_it_is_restored(stage: Stage, real: Real) -> None:
    experiment = real.server.post("experiments/create", {"name": real.experiment})
    real.server.post("experiments/delete", experiment)
    run = stage.start()
    stage.step()
    assert "mlflow experiments restore" in stage.reasons()[-1]

    real.server.post("experiments/restore", experiment)
    stage.drain()

    stage.assert_arrived(run)


def test_artifacts_that_are_stored_elsewhere_are_not_sent(stage: Stage, real: Real) -> None:
    real.server.post("experiments/create", {"name": real.experiment, "artifact_location": "s3://bucket/x"})
    run = stage.start()
    stage.log(run, 0)
    stage.save(run, b"weights")
    stage.end(run)

    for _ in range(4):
        stage.worker.step()
        assert stage.worker.wait_free(stage.patience)
        stage.pass_time()

    assert any("start it with --serve-artifacts" in each for each in stage.reasons())
    assert stage.count(State.DEAD, Kind.CKPT) == 1
    assert stage.count(State.PENDING) == 0
    assert [values for _, values in stage.received(run).metrics] == [{"loss": 0.5}]
    assert stage.received(run).ends == ["finished"]


# A missing artifact: 2.x responds 500. The sandbox does the same only for its own faults.
DIFFERENT = {("missing artifact", "2")}


def test_the_fake_responds_as_the_servers_do(mlflow: MlflowServer) -> None:
    """The same requests at both: the same status and code, and no field that the server does not have."""
    with Server([FakeMlflow()]) as fake:
        expected, found = conversation(mlflow.url), conversation(fake.url)

    different = []
    for name, (status, content) in found.items():
        if (name, mlflow.version) in DIFFERENT:
            continue
        real_status, real = expected[name]
        same_code = content.get("error_code") == real.get("error_code")
        if (status, fields(content) <= fields(real), same_code) != (real_status, True, True):
            different.append((name, real_status, real, status, content))
    assert different == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_with_users(version: str, tmp_path: Path) -> None:
    """It holds without a key and with a wrong one. A user who may edit, but not delete, sends everything."""
    # Servers 2.x have a password, 3.x need one that is not published.
    password = "password1234" if version == "2" else "password-of-the-tests"
    settings = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-secret-of-the-tests",
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
    }
    with running(version, "--app-name", "basic-auth", **settings) as server:
        server.log_in("admin", password)
        service = Real(server, key=None)
        experiment = server.post("experiments/create", {"name": service.experiment})["experiment_id"]
        server.post("users/create", {"username": "ann", "password": CANARY})
        server.may_edit("ann", experiment)
        with staged(service, tmp_path / "stage") as stage:
            run = stage.start()
            stage.step()
            (held,) = (each["held"] for each in stage.outbox.stats.destinations() if each["held"])
            assert held == "the key for lab is missing: 127.0.0.1 asks for one"

            stage.outbox.credentials.store(stage.target, "ann:wrong-password")
            assert "the key was refused: 401" in str(checked(stage))

            stage.outbox.credentials.store(stage.target, f"ann:{CANARY}")
            assert isinstance(checked(stage), Delivered)
            stage.log(run, 0)
            stage.save(run, b"weights" * 1000)
            stage.end(run)
            stage.drain()

            stage.assert_arrived(run)


def checked(stage: Stage) -> Outcome:
    """The outcome of the check of a transport."""
    transport = stage.transport()
    try:
        return transport.check()
    finally:
        transport.close()
