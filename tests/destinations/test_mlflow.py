"""The mlflow destination against real servers, 2.x and 3.x: what MLflow's own client reads is what it writes itself."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow_servers import VERSIONS, Gateway, MlflowServer, environment, running

from hubqueue.destinations.base import Delivered
from hubqueue.destinations.mlflow.artifacts import escaped
from hubqueue.destinations.mlflow.sandbox import FakeMlflow
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import RunState, State
from hubqueue.producer.intake import open_run
from hubqueue.sandbox.server import Server
from hubqueue.testing.conformance import Conformance, Fault, Received
from hubqueue.testing.conformance.stage import Stage, staged

pytestmark = pytest.mark.slow
_ENDS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}
# The tests log epochs below this number, and steps from it on: MLflow has one number for both.
_FIRST_STEP = 100
ARGS = {
    "epochs": 3,
    "lr": 0.001,
    "amp": True,
    "device": None,
    "imgsz": [640, 480],
    "name": "über all",
    "optimizer": {"name": "SGD", "nesterov": {"on": False}},
    "a(b)": 1,
    "c@d": "x",
    **{f"many_{number}": number for number in range(250)},
}
METRICS = [
    (100, {"train/loss": 0.5, "metrics/mAP50(B)": 0.25}),
    (103, {"train/loss": 0.25, "lr": 1e-9, "x": 3}),
]
# What hubqueue should do, by MLflow's own client. Its names are those that MLflow accepts.
WRITE = """
import json, sys, mlflow
from mlflow.tracking import MlflowClient
given = json.loads(sys.argv[1])
mlflow.set_experiment(given["experiment"])
with mlflow.start_run(run_name="direct") as run:
    mlflow.log_params(given["params"]) if len(given["params"]) <= 100 else [
        mlflow.log_params(dict(list(given["params"].items())[at:at + 100])) for at in range(0, len(given["params"]), 100)]
    for step, values in given["metrics"]:
        mlflow.log_metrics({name.replace("(", "").replace(")", ""): value for name, value in values.items()}, step=step)
    mlflow.log_text("hello", "checkpoints/text.txt")
print(json.dumps(run.info.run_id))
"""
READ = """
import json, sys
from mlflow.tracking import MlflowClient
client, run_id = MlflowClient(), sys.argv[1]
run = client.get_run(run_id)
def below(path):
    for each in client.list_artifacts(run_id, path):
        if each.is_dir: yield from below(each.path)
        else: yield each.path, each.file_size
history = {name: [[p.step, p.value, p.timestamp] for p in client.get_metric_history(run_id, name)] for name in run.data.metrics}
print(json.dumps({"params": run.data.params, "tags": run.data.tags, "status": run.info.status, "name": run.info.run_name,
    "start": run.info.start_time, "end": run.info.end_time, "user": run.info.user_id, "history": history, "latest": run.data.metrics, "files": dict(below(None))}))
"""


class Real:
    """A `Service` that is a real server, behind a gateway. Its runs are those of an experiment of its own."""

    type = "mlflow"
    faults = frozenset({Fault.UNREACHABLE})
    secrets: Mapping[str, str] = {}
    environ: Mapping[str, str] = {}

    def __init__(self, server: MlflowServer) -> None:
        self.server, self.gateway = server, Gateway(server.url)
        self.experiment = f"conformance {uuid.uuid4().hex[:8]}"
        self.gateway.open()

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {"url": self.gateway.url, "experiment": self.experiment}

    def fail(
        self, fault: Fault, *, kind: Kind | None = None, after: int = 0, times: int | None = None
    ) -> None:
        assert fault is Fault.UNREACHABLE
        self.gateway.close()

    def heal(self) -> None:
        self.gateway.open()

    def received(self) -> Mapping[str, Received]:
        return {each["info"]["run_id"]: self._run(each) for each in self.runs()}

    def runs(self) -> list[dict[str, Any]]:
        """All runs of the experiment, as the server has them."""
        try:
            experiment = self._experiment
        except OSError:
            return []
        found = self.server.post("runs/search", {"experiment_ids": [experiment]})
        return found.get("runs", [])

    @cached_property
    def _experiment(self) -> str:
        name = self.experiment.replace(" ", "%20")
        found = self.server.get(f"mlflow/experiments/get-by-name?experiment_name={name}")
        return str(found["experiment"]["experiment_id"])

    def _run(self, run: Mapping[str, Any]) -> Received:
        info, points = run["info"], []
        for name in (each["key"] for each in run["data"].get("metrics", [])):
            target = f"mlflow/metrics/get-history?run_id={info['run_id']}&metric_key={name}"
            points += self.server.get(target)["metrics"]
        points.sort(key=lambda each: int(each["timestamp"]))
        root = info["artifact_uri"].removeprefix("mlflow-artifacts:").strip("/")
        folder = self.server.folder / "artifacts" / root
        return Received(
            metrics=[(_key(each), {each["key"]: each["value"]}) for each in points],
            checkpoints=[_checkpoint(each) for each in folder.glob("checkpoints/*/manifest.json")],
            ends=[_ENDS[info["status"]]] if info["status"] in _ENDS else [],
        )


def _key(point: Mapping[str, Any]) -> str:
    step = int(point.get("step", 0))
    return f"step:{step}" if step >= _FIRST_STEP else str(step)


def _checkpoint(manifest: Path) -> Mapping[str, bytes]:
    files = json.loads(manifest.read_bytes())["files"]
    return {
        each["path"]: (manifest.parent / escaped(each.get("stored", each["path"]))).read_bytes()
        for each in files
    }


@pytest.fixture(scope="session", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[MlflowServer]:
    if not environment(request.param).exists():
        pytest.skip(f"MLflow {request.param}.x is not installed: make test-mlflow")
    with running(request.param) as started:
        yield started


@pytest.fixture
def real(server: MlflowServer) -> Iterator[Real]:
    made = Real(server)
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


def remote(stage: Stage, run: str) -> str:
    """MLflow's id of a run."""
    row = stage.outbox.stats.run(run)
    assert row is not None
    return str(row["remote_id"])


def test_it_writes_what_the_client_writes(stage: Stage, real: Real) -> None:
    run = start(stage, **ARGS)
    for step, values in METRICS:
        stage.log_values(run, values, step=step)
    stage.save(run, {"model.bin": b"m" * 1000, "a b/# %41.txt": b"text", "empty": b""}, epoch=7)
    stage.end(run)
    stage.drain()

    ours = real.server.client(READ, remote(stage, run))
    params = {name: value for name, value in ARGS.items() if name not in ("a(b)", "c@d", "optimizer")} | {
        "ab": 1,
        "c_d": "x",
        "optimizer.name": "SGD",
        "optimizer.nesterov.on": False,
    }
    given = {"experiment": real.experiment, "params": params, "metrics": METRICS}
    direct = real.server.client(READ, real.server.client(WRITE, json.dumps(given)))

    assert ours["params"] == direct["params"]
    assert ours["latest"] == direct["latest"]
    without_times = [
        {name: [point[:2] for point in points] for name, points in each["history"].items()}
        for each in (ours, direct)
    ]
    assert without_times[0] == without_times[1]
    assert ours["status"] == direct["status"] == "FINISHED"
    assert ours["user"] == direct["user"]
    assert ours["start"] <= min(at for points in ours["history"].values() for *_, at in points) <= ours["end"]
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.runName"} <= set(ours["tags"])
    assert ours["tags"]["mlflow.runName"] == ours["name"] == f"resnet50-{run}"
    sizes = {path.removeprefix("checkpoints/epoch-0007/"): size for path, size in ours["files"].items()}
    assert {path: size or 0 for path, size in sizes.items() if path != "manifest.json"} == {
        "model.bin": 1000,
        "a b/~23 ~2541.txt": 4,
        "empty": 0,
        "latest.json": sizes["latest.json"],
    }


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
    real.server.post("runs/delete", {"run_id": remote(stage, run)})
    stage.log(run, 0)
    stage.step()
    assert "was deleted" in stage.reasons()[-1]
    assert "mlflow runs restore" in stage.reasons()[-1]
    assert stage.count(State.PENDING) == 1

    real.server.post("runs/restore", {"run_id": remote(stage, run)})
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


def test_the_fake_responds_as_the_servers_do(server: MlflowServer) -> None:
    """The same requests at both: the same status and code, and no field that the server does not have."""
    with Server([FakeMlflow()]) as fake:
        expected, found = conversation(server.url), conversation(fake.url)

    different = []
    for name, (status, content) in found.items():
        if (name, server.version) in DIFFERENT:
            continue
        real_status, real = expected[name]
        same_code = content.get("error_code") == real.get("error_code")
        if (status, fields(content) <= fields(real), same_code) != (real_status, True, True):
            different.append((name, real_status, real, status, content))
    assert different == []


# A missing artifact: 2.x responds 500. The sandbox does the same only for its own faults.
DIFFERENT = {("missing artifact", "2")}


def conversation(url: str) -> dict[str, tuple[int, dict[str, Any]]]:
    """Status and JSON object of the response to each request that hubqueue makes, and to some that are refused."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}

    def ask(name: str, method: str, target: str, content: object = None) -> dict[str, Any]:
        body = (
            content
            if isinstance(content, bytes)
            else None
            if content is None
            else json.dumps(content).encode()
        )
        request = urllib.request.Request(f"{url}/api/2.0/{quote(target, safe='/?=&')}", body, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        found[name] = status, parsed if isinstance(parsed, dict) else {}
        return found[name][1]

    def post(name: str, endpoint: str, content: object) -> dict[str, Any]:
        return ask(name, "POST", f"mlflow/{endpoint}", content)

    experiment = f"fake {uuid.uuid4().hex}"
    get = "mlflow/experiments/get-by-name?experiment_name="
    ask("no experiment", "GET", get + experiment)
    number = post("an experiment", "experiments/create", {"name": experiment})["experiment_id"]
    post("it exists", "experiments/create", {"name": experiment})
    ask("the experiment", "GET", get + experiment)
    tags = [{"key": "mlflow.runName", "value": "n"}, {"key": "hubqueue.run_id", "value": "abc"}]
    new = {
        "experiment_id": number,
        "run_name": "n",
        "user_id": "u",
        "start_time": 1_700_000_000_000,
        "tags": tags,
    }
    info = post("a run", "runs/create", new)["run"]["info"]
    run = {"run_id": info["run_id"]}
    one = {"experiment_ids": [number], "max_results": 1}
    post("search", "runs/search", {**one, "filter": "tags.`hubqueue.run_id` = 'abc'"})
    post("all of ours", "runs/search", {**one, "filter": "tags.`hubqueue.run_id` LIKE '%'"})
    post("no run", "runs/search", {**one, "filter": "tags.`hubqueue.run_id` = 'other'"})
    post("bad filter", "runs/search", {**one, "filter": "nonsense"})
    point = {"key": "a/b", "value": 1.5, "timestamp": 1_700_000_000_001, "step": 3}
    post("a point", "runs/log-batch", {**run, "metrics": [point]})
    post("a repeat", "runs/log-batch", {**run, "metrics": [point]})
    post("no points", "runs/log-batch", {**run, "metrics": []})
    post("a bad name", "runs/log-batch", {**run, "metrics": [{**point, "key": "a(b)"}]})
    post("too many", "runs/log-batch", {**run, "metrics": [point | {"step": at} for at in range(1001)]})
    ask("history", "GET", f"mlflow/metrics/get-history?run_id={info['run_id']}&metric_key=a/b&max_results=10")
    ask("no history", "GET", f"mlflow/metrics/get-history?run_id={info['run_id']}&metric_key=c")
    post("a param", "runs/log-batch", {**run, "params": [{"key": "p", "value": "1"}]})
    post("the same param", "runs/log-batch", {**run, "params": [{"key": "p", "value": "1"}]})
    post("another value", "runs/log-batch", {**run, "params": [{"key": "p", "value": "2"}]})
    post("a tag", "runs/set-tag", {**run, "key": "t", "value": "1"})
    post("unknown run", "runs/log-batch", {"run_id": "0" * 32, "metrics": [point]})
    ask("the run", "GET", f"mlflow/runs/get?run_id={info['run_id']}")
    ask("unknown", "GET", f"mlflow/runs/get?run_id={'0' * 32}")
    post("the end", "runs/update", {**run, "status": "FINISHED", "end_time": 1_700_000_001_000})
    proxy, root = "mlflow-artifacts/artifacts", info["artifact_uri"].removeprefix("mlflow-artifacts:/")
    ask("an artifact", "PUT", f"{proxy}/{root}/a/b.bin", b"0123456789")
    ask("an empty one", "PUT", f"{proxy}/{root}/a/empty", b"")
    ask("a bad path", "PUT", f"{proxy}/{root}/a/b#c", b"1")
    ask("list", "GET", f"{proxy}?path={root}/a")
    ask("list of folders", "GET", f"{proxy}?path={root}")
    ask("empty list", "GET", f"{proxy}?path={root}/none")
    ask("missing artifact", "GET", f"{proxy}/{root}/none")
    ask("delete", "DELETE", f"{proxy}/{root}/a/b.bin")
    ask("delete again", "DELETE", f"{proxy}/{root}/a/b.bin")
    return found


def fields(content: object, path: str = "") -> set[str]:
    """The paths of all fields of a JSON value, with the types of their values."""
    if isinstance(content, dict):
        return {each for name, value in content.items() for each in fields(value, f"{path}.{name}")}
    if isinstance(content, list):
        return {each for value in content for each in fields(value, f"{path}[]")}
    return {f"{path}: {type(content).__name__}"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_without_artifacts_still_gets_metrics(version: str, tmp_path: Path) -> None:
    if not environment(version).exists():
        pytest.skip(f"MLflow {version}.x is not installed: make test-mlflow")
    with (
        running(version, "--no-serve-artifacts", "--default-artifact-root", str(tmp_path / "root")) as server,
        staged(Real(server), tmp_path / "stage") as stage,
    ):
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


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_with_users_holds_without_a_key_and_takes_user_and_password(
    version: str, tmp_path: Path
) -> None:
    if not environment(version).exists():
        pytest.skip(f"MLflow {version}.x is not installed: make test-mlflow")
    # Servers 2.x have a password, 3.x need one that is not published.
    password = "password1234" if version == "2" else "password-of-the-tests"
    secrets = {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-secret-of-the-tests",
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
    }
    with running(version, "--app-name", "basic-auth", **secrets) as server:
        service = Real(server)
        with staged(service, tmp_path / "stage") as stage:
            stage.start()
            stage.step()
            (held,) = (each["held"] for each in stage.outbox.stats.destinations() if each["held"])
            assert held == "the key for lab is missing: 127.0.0.1 asks for one"

            stage.outbox.credentials.store(stage.target, "admin:wrong-password")
            refused = stage.transport()
            assert "the key was refused: 401" in str(refused.check())
            refused.close()

            stage.outbox.credentials.store(stage.target, f"admin:{password}")
            accepted = stage.transport()
            assert isinstance(accepted.check(), Delivered)
            accepted.close()
