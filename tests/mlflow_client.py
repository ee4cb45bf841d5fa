"""What MLflow's own client writes and reads. Runs in an environment that has MLflow, without hubqueue.

Writes a run as `given` on stdin says, reads it and the run `ours`, and prints both as JSON, with the names that MLflow refuses
and the address of the page that the client prints.
"""

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow  # type: ignore[import-not-found]

given, client = json.load(sys.stdin), mlflow.MlflowClient()


def write() -> str:
    """A run with these params, metrics and files."""
    params = list(given["params"].items())
    with mlflow.start_run(run_name="direct") as run, tempfile.TemporaryDirectory() as folder:
        for at in range(0, len(params), 100):
            mlflow.log_params(dict(params[at : at + 100]))
        for step, values in given["metrics"]:
            mlflow.log_metrics(values, step=step)
        for path, text in given["files"].items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        mlflow.log_artifacts(folder, given["folder"])
    return str(run.info.run_id)


def read(run_id: str, folder: str) -> dict[str, Any]:
    """All that the client can read of a run. Of an artifact: its size in the list, and the hash of its bytes."""
    run = client.get_run(run_id)
    history = {name: client.get_metric_history(run_id, name) for name in run.data.metrics}
    listed = dict(below(run_id, None))
    client.download_artifacts(run_id, "", folder)
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "user": run.info.user_id,
        "start": run.info.start_time,
        "end": run.info.end_time,
        "experiment": run.info.experiment_id,
        "params": run.data.params,
        "tags": run.data.tags,
        "latest": run.data.metrics,
        "points": {name: [[each.step, each.value] for each in points] for name, points in history.items()},
        "times": [each.timestamp for points in history.values() for each in points],
        "files": {
            path: [size or 0, hashlib.sha256(Path(folder, path).read_bytes()).hexdigest()]
            for path, size in listed.items()
        },
    }


def below(run_id: str, path: str | None) -> Iterator[tuple[str, int]]:
    """The files below a path, with their sizes."""
    for each in client.list_artifacts(run_id, path):
        if each.is_dir:
            yield from below(run_id, each.path)
        else:
            yield each.path, each.file_size


def refuses(name: str, run_id: str) -> bool:
    """Whether MLflow refuses a name."""
    try:
        client.log_metric(run_id, name, 1.0)
    except Exception:
        return True
    return False


mlflow.set_experiment(given["experiment"])
with contextlib.redirect_stdout(io.StringIO()) as printed:
    direct = write()
with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
    found = {"ours": read(given["ours"], first), "direct": read(direct, second)}
page = next(each for each in printed.getvalue().split() if each.endswith(direct))
refused = [each for each in given["odd"] if refuses(each, direct)]
print(json.dumps({**found, "page": page.replace(direct, given["ours"]), "refused": refused}))
