"""The requests that hubqueue makes of an MLflow server, to compare the responses of the fake with those of real ones."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from typing import Any
from urllib.parse import quote


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
