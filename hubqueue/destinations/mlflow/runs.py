"""A run at an MLflow server: its start, how it is found again, and its end.

Promises one MLflow run for each run, whatever response is lost: each has our id as a tag, and is looked for before another
one is made. A param never changes at MLflow: what a continued training has changed is in the tag `hubqueue.params_changed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hubqueue.destinations.base import (
    Attempt,
    Batch,
    Blocked,
    Delivered,
    Outcome,
    Rejected,
    Remote,
    RunRef,
    RunState,
    Scope,
)
from hubqueue.destinations.mlflow.drafts import MODEL, RUN_ID
from hubqueue.destinations.mlflow.names import LONGEST_TAG
from hubqueue.destinations.mlflow.server import LARGE, Server, code_of, is_deleted, message_of
from hubqueue.destinations.wire.api import ApiResponse
from hubqueue.destinations.wire.kept import is_kept_id, is_kept_name
from hubqueue.domain.redact import clean

ROOT = "artifacts"
"""What is remembered of a run: the path of its artifacts at the proxy, empty if they are not stored there."""
MOST_PARAMS = 100
_PROXIED = "mlflow-artifacts:"
_STATES = {
    RunState.FINISHED: "FINISHED",
    RunState.FAILED: "FAILED",
    RunState.INTERRUPTED: "KILLED",
}
STATES = {"RUNNING": RunState.RUNNING, "SCHEDULED": RunState.RUNNING} | {
    name: state for state, name in _STATES.items()
}
"""Our states by MLflow's."""


@dataclass(frozen=True, slots=True)
class Found:
    """An MLflow run, as far as a response describes it. `root` is as of `ROOT`; None if the response has none.

    `experiment` is the id of its experiment, empty if the response has none.
    """

    id: str
    experiment: str
    name: str
    status: str
    is_deleted: bool
    root: str | None
    params: Mapping[str, str]
    tags: Mapping[str, str]

    @classmethod
    def of(cls, response: Any) -> Found | None:
        """The run in a response; None for anything else."""
        info = _object(_object(response).get("info"))
        run_id, uri = info.get("run_id") or info.get("run_uuid"), info.get("artifact_uri")
        if not is_kept_id(run_id, ()):
            return None
        data, experiment = _object(_object(response).get("data")), info.get("experiment_id")
        return cls(
            run_id,
            experiment if is_kept_id(experiment, ()) else "",
            _text(info.get("run_name")),
            _text(info.get("status")),
            info.get("lifecycle_stage") == "deleted",
            root_of(uri) if isinstance(uri, str) else None,
            _pairs(data.get("params")),
            _pairs(data.get("tags")),
        )

    @property
    def run_id(self) -> str:
        """Our id of the run; empty if it is not one of ours."""
        return self.tags.get(RUN_ID, "")

    @property
    def model(self) -> str:
        """The name of its model."""
        return self.tags.get(MODEL, "")


def root_of(uri: str) -> str:
    """The path at the proxy of an artifact address, such as `0/RUN/artifacts`; empty if it does not lead there."""
    if not uri.startswith(_PROXIED):
        return ""
    path = uri.removeprefix(_PROXIED)
    if path.startswith("//"):
        path = path.removeprefix("//").partition("/")[2]
    return path.strip("/")


# Its start.


def send_start(server: Server, experiment: str, batch: Batch, attempt: Attempt) -> Outcome:
    """Find or make the run, and log its params."""
    run, (entry,) = batch.run, batch.entries
    payload = json.loads(entry.payload)
    found = _known(server, run, attempt) if run.remote_id else _search(server, experiment, run, attempt)
    if isinstance(found, str):  # the id of the experiment
        found = _create(server, found, batch, payload["tags"], attempt)
    elif isinstance(found, Found):
        found = _continue(server, found, attempt)
    if not isinstance(found, Found):
        return found
    failed = _send_params(server, found, payload["params"], attempt)
    if failed is not None:
        return failed
    can_remember = found.root is not None and (not found.root or is_kept_name(found.root, server.secrets()))
    page = server.page(found.experiment, found.id) if found.experiment else None
    return Delivered(Remote(id=found.id, url=page, remember={ROOT: found.root} if can_remember else {}))


def _known(server: Server, run: RunRef, attempt: Attempt) -> Found | Outcome:
    found = read_run(server, run.remote_id or "", attempt)
    if isinstance(found, Found) and found.is_deleted:
        return server.deleted()
    return found


def read_run(server: Server, run_id: str, attempt: Attempt) -> Found | Outcome:
    """A run by MLflow's id."""
    response = server.get("runs/get", {"run_id": run_id}, attempt, most=LARGE)
    if not isinstance(response, ApiResponse):
        return response
    return Found.of((response.json or {}).get("run")) or server.missing("run")


def _search(server: Server, experiment: str, run: RunRef, attempt: Attempt) -> Found | str | Outcome:
    """The MLflow run with our id; the id of the experiment if it has none."""
    experiment_id = _experiment(server, experiment, attempt)
    if not isinstance(experiment_id, str):
        return experiment_id
    payload = {
        "experiment_ids": [experiment_id],
        "filter": f"tags.`{RUN_ID}` = '{run.id}'",
        "max_results": 1,
    }
    response = server.post("runs/search", payload, attempt, unknown=Scope.DESTINATION, most=LARGE)
    if not isinstance(response, ApiResponse):
        return response
    runs = (response.json or {}).get("runs")
    if not runs:
        return experiment_id
    found = Found.of(runs[0]) if isinstance(runs, list) else None
    return found if found is not None and found.run_id == run.id else server.missing("run with this tag")


def _experiment(server: Server, name: str, attempt: Attempt) -> str | Outcome:
    """The id of the experiment, which is made if there is none."""
    for _ in range(2):
        found = find_experiment(server, name, attempt)
        if found is not None:
            return found
        response = server.post("experiments/create", {"name": name}, attempt, judged=(400,))
        if not isinstance(response, ApiResponse):
            return response
        if response.status == 400 and code_of(response) != "RESOURCE_ALREADY_EXISTS":
            return _refused_experiment(name, message_of(response))
        created = (response.json or {}).get("experiment_id")
        if response.status != 400:
            return created if is_kept_id(created, ()) else server.missing("experiment_id")
    return _deleted(name, "")


def find_experiment(server: Server, name: str, attempt: Attempt) -> str | Outcome | None:
    """The id of the experiment with a name; None if there is none."""
    query = {"experiment_name": name}
    response = server.get("experiments/get-by-name", query, attempt, unknown=Scope.DESTINATION, judged=(404,))
    if not isinstance(response, ApiResponse):
        return response
    if response.status == 404:
        is_own = code_of(response) == "RESOURCE_DOES_NOT_EXIST"
        return None if is_own else Blocked("the URL is not that of an MLflow server", Scope.DESTINATION)
    experiment = _object((response.json or {}).get("experiment"))
    found = experiment.get("experiment_id")
    if not is_kept_id(found, ()):
        return server.missing("experiment_id")
    return _deleted(name, found) if experiment.get("lifecycle_stage") == "deleted" else found


def _deleted(name: str, experiment_id: str) -> Blocked:
    number = f" --experiment-id {experiment_id}" if experiment_id else ""
    hint = f"restore it (mlflow experiments restore{number}), or set another experiment"
    return Blocked(f"the experiment {clean(name, limit=80)} was deleted: {hint}", Scope.RUN)


def _refused_experiment(name: str, message: str) -> Blocked:
    shown = clean(message, limit=120)
    return Blocked(f"the experiment {clean(name, limit=80)} cannot be made: {shown}", Scope.RUN)


def _create(
    server: Server, experiment_id: str, batch: Batch, tags: Mapping[str, str], attempt: Attempt
) -> Found | Outcome:
    run, (entry,) = batch.run, batch.entries
    all_tags = {"mlflow.runName": run.shown_name, **tags, RUN_ID: run.id}
    payload = {
        "experiment_id": experiment_id,
        "run_name": run.shown_name,
        "user_id": tags.get("mlflow.user", ""),
        "start_time": entry.enqueued_at // 1000,
        "tags": _as_pairs(all_tags),
    }
    response = server.post(
        "runs/create", payload, attempt, idempotency_key=batch.idempotency_key, judged=(400,)
    )
    if not isinstance(response, ApiResponse):
        return response
    if response.status == 400:
        return (
            _deleted("of the run", experiment_id)
            if is_deleted(message_of(response))
            else server.refused(response)
        )
    return Found.of((response.json or {}).get("run")) or server.missing("run")


def _continue(server: Server, found: Found, attempt: Attempt) -> Found | Outcome:
    """A run that exists already is running again."""
    if found.status == "RUNNING":
        return found
    payload = {"run_id": found.id, "status": "RUNNING"}
    response = server.post("runs/update", payload, attempt)
    return found if isinstance(response, ApiResponse) else response


def _send_params(server: Server, found: Found, params: Mapping[str, str], attempt: Attempt) -> Outcome | None:
    """Log the params that the run does not have; None when that is done."""
    missing = {name: value for name, value in params.items() if name not in found.params}
    others = {name: value for name, value in params.items() if found.params.get(name, value) != value}
    names, refused = iter(missing), list[str]()
    while some := list(islice(names, MOST_PARAMS)):
        failed = _log_params(server, found.id, {name: missing[name] for name in some}, refused, attempt)
        if failed is not None:
            return failed
    tags = {}
    if others:
        tags["hubqueue.params_changed"] = json.dumps(others, ensure_ascii=False)[:LONGEST_TAG]
    if refused:
        tags["hubqueue.params_refused"] = json.dumps(refused, ensure_ascii=False)[:LONGEST_TAG]
    for name, value in tags.items():
        response = server.post("runs/set-tag", {"run_id": found.id, "key": name, "value": value}, attempt)
        if not isinstance(response, ApiResponse):
            return response
    return None


def _log_params(
    server: Server, run_id: str, params: Mapping[str, str], refused: list[str], attempt: Attempt
) -> Outcome | None:
    """Log params together. If they are refused, the one that this server does not accept is found, and left out."""
    response = server.post("runs/log-batch", {"run_id": run_id, "params": _as_pairs(params)}, attempt)
    if isinstance(response, ApiResponse):
        return None
    if not isinstance(response, Rejected):
        return response
    names = list(params)
    if len(names) == 1:
        refused += names
        return None
    for half in (names[: len(names) // 2], names[len(names) // 2 :]):
        failed = _log_params(server, run_id, {name: params[name] for name in half}, refused, attempt)
        if failed is not None:
            return failed
    return None


# Its end.


def send_end(server: Server, batch: Batch, attempt: Attempt) -> Outcome:
    """Note results or error as tags, and then the state."""
    run, (entry,) = batch.run, batch.entries
    payload = json.loads(entry.payload)
    for name in ("results", "error"):
        value = payload.get(name)
        if value:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            tag = {"run_id": run.remote_id, "key": f"hubqueue.{name}", "value": text[:LONGEST_TAG]}
            response = server.post("runs/set-tag", tag, attempt)
            if not isinstance(response, ApiResponse):
                return response
    state = {
        "run_id": run.remote_id,
        "status": _STATES.get(payload["state"], "FINISHED"),
        "end_time": entry.enqueued_at // 1000,
    }
    response = server.post("runs/update", state, attempt, idempotency_key=batch.idempotency_key)
    if not isinstance(response, ApiResponse):
        return response
    is_done = _object((response.json or {}).get("run_info")).get("status") == state["status"]
    return Delivered() if is_done else server.missing("status of the run")


def _as_pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": name, "value": value} for name, value in values.items()]


def _pairs(found: Any) -> dict[str, str]:
    pairs: Iterable[Any] = found if isinstance(found, list) else ()
    return {_text(_object(each).get("key")): _text(_object(each).get("value")) for each in pairs}


def _object(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _text(found: Any) -> str:
    return found if isinstance(found, str) else ""
