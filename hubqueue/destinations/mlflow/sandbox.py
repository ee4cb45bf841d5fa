"""The fake MLflow server of the sandbox: tracking and artifacts, as MLflow 3.17 responds.

It honours no Idempotency-Key: MLflow has none. Promises that a refused request leaves no trace. Differences from the
servers: it accepts a key without an account, and knows of a search only what hubqueue asks for.
"""

from __future__ import annotations

import json
import re
import uuid
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hubqueue.destinations.mlflow import fake_page
from hubqueue.destinations.mlflow.fake_artifacts import (
    INVALID,
    PROXY,
    UNKNOWN,
    FakeArtifacts,
    MlflowDialect,
    error_body,
    last,
)
from hubqueue.destinations.mlflow.fake_runs import FakeRun
from hubqueue.destinations.mlflow.names import LONGEST_PARAM, valid
from hubqueue.sandbox.archive import Fact
from hubqueue.sandbox.request import Body, Request
from hubqueue.sandbox.response import Refused, Response, as_json
from hubqueue.sandbox.routes import Entrance, Label, Prepared, now_text, responding
from hubqueue.sandbox.service import RunDetail, RunSummary

_API = r"/api/2\.0/mlflow/"
_MOST = {"metrics": 1000, "params": 100, "tags": 100}


class FakeMlflow(FakeArtifacts):
    """The routes of an MLflow server. Without a key every request counts as one of the same user.

    `runs_by_id` are its runs by id, oldest first, `experiments` its experiments by id: name and whether it was deleted;
    read them under `Archive.changed`. With `refuses_repeats` a point that is stored already is refused: 2.22 does so for NaN.
    Without `serves_artifacts` it runs as with `--no-serve-artifacts`.
    """

    name = "mlflow"
    title = "MLflow"
    events: Mapping[str, str] = {}
    facts = frozenset(
        {"mlflow_experiment", "mlflow_run", "mlflow_state", "mlflow_logged", "mlflow_file", "mlflow_deleted"}
    )
    key_headers = ("authorization",)
    dialect = MlflowDialect(done=as_json(200, {}), null=b"{}", error=error_body)

    def __init__(self, *, refuses_repeats: bool = False, serves_artifacts: bool = True) -> None:
        self.refuses_repeats, self.serves_artifacts = refuses_repeats, serves_artifacts
        self.runs_by_id = {}
        self.experiments: dict[str, tuple[str, bool]] = {}
        self.reset()
        tables: tuple[tuple[str, str, str, Callable[[Request, str], Prepared]], ...] = (
            ("GET", _API + "experiments/get-by-name", "registration", self._find_experiment),
            ("POST", _API + "experiments/create", "registration", self._create_experiment),
            ("POST", _API + "runs/create", "registration", self._create),
            ("POST", _API + "runs/search", "registration", self._search),
            ("GET", _API + "runs/get", "registration", self._get),
            ("POST", _API + "runs/update", "other", self._update),
            ("POST", _API + "runs/set-tag", "other", self._set_tag),
            ("POST", _API + "runs/log-batch", "other", self._log_batch),
            ("GET", _API + "metrics/get-history", "metrics", self._history),
            ("GET", PROXY, "ckpt", self.list_artifacts),
            ("PUT", PROXY + r"/[^/]+/([^/]+)/.+", "ckpt", self.store_artifact),
            ("GET", PROXY + r"/[^/]+/([^/]+)/.+", "ckpt", self.serve_artifact),
            ("DELETE", PROXY + r"/[^/]+/([^/]+)/.+", "ckpt", self.delete_artifact),
        )
        super().__init__(
            Entrance(method, re.compile(path), kind, take, label=_label if kind == "other" else None)
            for method, path, kind, take in tables
        )

    def variables(self, url: str, key: str) -> dict[str, str]:
        """The environment variables that make a training send to `url`, with `key`."""
        return {"MLFLOW_TRACKING_URI": url, "MLFLOW_TRACKING_TOKEN": key}

    def key_of(self, request: Request) -> str:
        """The token of a request, or `USER:PASSWORD`."""
        scheme, _, rest = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                return b64decode(rest, validate=True).decode()
            except ValueError:
                return ""
        return request.bearer() or "no-account"

    # --- state

    def reset(self) -> None:
        """Clear the state. Called before the archive reads its facts back."""
        self.runs_by_id.clear()
        self.experiments.clear()
        self.experiments["0"] = ("Default", False)

    def apply(self, fact: Fact) -> None:
        """Apply one fact."""
        if fact["fact"] == "mlflow_experiment":
            self.experiments[fact["experiment"]] = (fact["name"], fact["deleted"])
        elif fact["fact"] == "mlflow_run":
            self.runs_by_id[fact["run"]] = FakeRun.of(fact)
        else:
            run = self.runs_by_id[fact["run"]]
            run.apply(fact, self._archive.folder_of(run.id))

    def delete_experiment(self, experiment: str, *, deleted: bool = True) -> None:
        """Delete an experiment and its runs as a person does, or restore them."""
        name, _ = self.experiments[experiment]
        self.experiments[experiment] = (name, deleted)
        for run in self.runs_by_id.values():
            if run.experiment == experiment:
                run.is_deleted = deleted

    # --- experiments and runs

    def _find_experiment(self, request: Request, _: str) -> Prepared:
        request.body.drain()
        name = last(request, "experiment_name")
        for experiment, (known, deleted) in self.experiments.items():
            if known == name:
                stage = "deleted" if deleted else "active"
                root = f"mlflow-artifacts:/{experiment}"
                found = {"experiment_id": experiment, "name": known, "artifact_location": root}
                return responding(as_json(200, {"experiment": {**found, "lifecycle_stage": stage}}))
        raise Refused(404, f"{UNKNOWN}: Could not find experiment with name {name!r}")

    def _create_experiment(self, request: Request, _: str) -> Prepared:
        name = request.json_object().get("name")
        if not isinstance(name, str) or not name:
            raise Refused(400, f"{INVALID}: Invalid experiment name")

        def make() -> tuple[Fact, Response]:
            if name in (each for each, _deleted in self.experiments.values()):
                raise Refused(400, f"RESOURCE_ALREADY_EXISTS: Experiment(name={name}) already exists.")
            experiment = str(len(self.experiments))
            fact = {"fact": "mlflow_experiment", "experiment": experiment, "name": name, "deleted": False}
            return fact, as_json(200, {"experiment_id": experiment})

        return self.prepared(make)

    def _create(self, request: Request, _: str) -> Prepared:
        given = request.json_object()
        tags = _pairs(given.get("tags"))
        for name in tags:
            _check_name(name)
        experiment = str(given.get("experiment_id"))

        def make() -> tuple[Fact, Response]:
            if experiment not in self.experiments:
                raise Refused(404, f"{UNKNOWN}: No Experiment with id={experiment} exists")
            if self.experiments[experiment][1]:
                state = "must be in the 'active' state. Current state is deleted."
                raise Refused(400, f"{INVALID}: The experiment {experiment} {state}")
            fact = {
                "fact": "mlflow_run",
                "run": uuid.uuid4().hex,
                "experiment": experiment,
                "name": str(given.get("run_name") or tags.get("mlflow.runName") or "run"),
                "user": str(given.get("user_id") or ""),
                "started": int(given.get("start_time") or 0),
                "tags": tags,
                "at": now_text(),
                "root": f"mlflow-artifacts:/{experiment}" if self.serves_artifacts else "/mlruns",
            }
            return fact, as_json(200, {"run": FakeRun.of(fact).document()})

        return self.prepared(make)

    def _search(self, request: Request, _: str) -> Prepared:
        given = request.json_object()
        wanted = re.fullmatch(r"tags\.`([^`]+)` (=|LIKE) '([^']*)'", str(given.get("filter", "")))
        if wanted is None:
            raise Refused(400, f"{INVALID}: the sandbox does not know this filter")
        with self._archive.changed:
            found = [
                each.document()
                for each in self.runs_by_id.values()
                if each.experiment in given.get("experiment_ids", ())
                and not each.is_deleted
                and wanted[1] in each.tags
                and (wanted[2] == "LIKE" or each.tags[wanted[1]] == wanted[3])
            ]
        start, most = int(given.get("page_token") or 0), int(given.get("max_results", 1000))
        page: dict[str, Any] = {"runs": found[start : start + most]} if found[start:] else {}
        if found[start + most :]:
            page["next_page_token"] = str(start + most)
        return responding(as_json(200, page))

    def _get(self, request: Request, _: str) -> Prepared:
        request.body.drain()
        run = self.known(last(request, "run_id"), active=False)
        return responding(as_json(200, {"run": run.document()}))

    def _update(self, request: Request, _: str) -> Prepared:
        given = request.json_object()

        def make() -> tuple[Fact, Response]:
            run = self.known(given.get("run_id"))
            changes = {name: given[name] for name in ("status", "end_time") if name in given}
            fact = {"fact": "mlflow_state", "run": run.id, "at": now_text(), "changes": changes}
            return fact, as_json(200, {"run_info": {**run.document()["info"], **changes}})

        return self.prepared(make)

    def _set_tag(self, request: Request, _: str) -> Prepared:
        given = request.json_object()
        tag = {str(given.get("key")): str(given.get("value"))}
        _check_name(*tag)
        return self._logging(given.get("run_id"), tags=tag)

    # --- metrics and params

    def _log_batch(self, request: Request, _: str) -> Prepared:
        given = request.json_object()
        for kind, most in _MOST.items():
            some = given.get(kind, [])
            if not isinstance(some, list) or len(some) > most:
                what = f"A batch logging request can contain at most {most} {kind}. Got {len(some)} {kind}."
                raise Refused(400, f"{INVALID}: {what}")
            for each in some:
                _check_name(str(each.get("key")))
        points = [_point(each) for each in given.get("metrics", [])]
        params = _pairs(given.get("params"))
        for name, value in params.items():
            if len(value) > LONGEST_PARAM:
                raise Refused(400, f"{INVALID}: 'Param value' exceeds the maximum length ({name})")
        return self._logging(
            given.get("run_id"), points=points, params=params, tags=_pairs(given.get("tags"))
        )

    def _logging(
        self,
        run_id: object,
        *,
        points: Sequence[Sequence[object]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Prepared:
        def make() -> tuple[Fact, Response]:
            run = self.known(run_id)
            changed = [name for name, value in (params or {}).items() if run.params.get(name, value) != value]
            if changed:
                what = f"Changing param values is not allowed. Params were already logged={changed}"
                raise Refused(400, f"{INVALID}: {what}")
            if self.refuses_repeats and any(tuple(each) in run.points for each in points):
                raise Refused(
                    400, "BAD_REQUEST: (sqlite3.IntegrityError) UNIQUE constraint failed: metrics.key"
                )
            fact = {"fact": "mlflow_logged", "run": run.id, "at": now_text(), "points": points}
            return {**fact, "params": params or {}, "tags": tags or {}}, as_json(200, {})

        steps = sorted({int(str(each[3])) for each in points})
        return Prepared(lambda: self._archive.keep(None, make), epochs=tuple(steps))

    def _history(self, request: Request, _: str) -> Prepared:
        request.body.drain()
        run, key = self.known(last(request, "run_id"), active=False), last(request, "metric_key")
        with self._archive.changed:
            found = [
                {"key": name, "value": value, "timestamp": at, "step": step}
                for name, value, at, step in run.points
                if name == key
            ]
        return responding(as_json(200, {"metrics": found} if found else {}))

    # --- what the page shows

    def runs(self) -> Sequence[RunSummary]:
        """Every run, as the page shows it."""
        return [fake_page.summary(each) for each in self.runs_by_id.values()]

    def run(self, run_id: str) -> RunDetail | None:
        """One run with all its details, or None."""
        run = self.runs_by_id.get(run_id)
        return fake_page.detail(run) if run else None

    def cancel(self, run_id: str) -> bool:
        """Always False: MLflow has no cancelling."""
        return False

    def document(self, path: str) -> Any | None:
        """None: its own API shows everything."""
        return None


def _label(body: Body) -> Label:
    """The kind of a request, which only its body shows."""
    try:
        found = json.loads(body.preview())
    except ValueError:
        return Label("other")
    if not isinstance(found, dict):
        return Label("other")
    run_id = str(found.get("run_id") or "") or None
    if "metrics" in found:
        return Label("metrics", None, run_id)
    ends = found.get("status", "RUNNING") != "RUNNING" or found.get("key") in (
        "hubqueue.results",
        "hubqueue.error",
    )
    return Label("completion" if ends else "registration", None, run_id)


def _check_name(name: str) -> None:
    if not name or valid(name) != name:
        raise Refused(
            400, f"{INVALID}: Invalid value {name!r} for parameter supplied: Names may only contain …"
        )


def _pairs(found: Any) -> dict[str, str]:
    return {str(each.get("key")): str(each.get("value", "")) for each in found or ()}


def _point(found: Mapping[str, Any]) -> tuple[str, float, int, int]:
    value = found.get("value")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Refused(400, f"{INVALID}: Invalid value {value!r} for parameter 'value' supplied")
    return str(found["key"]), float(value), int(found.get("timestamp", -1)), int(found.get("step", 0))
