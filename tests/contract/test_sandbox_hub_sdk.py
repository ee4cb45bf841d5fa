"""The sandbox against the real hub-sdk client, in a process of its own (it reads its address at import)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hubqueue.sandbox import Sandbox

KEY = "0123456789abcdef0123456789abcdef0123456789"

CREATE = """
import json
from hub_sdk import HUBClient
client = HUBClient()
model = client.model()
model.create_model({
    "config": {
        "batchSize": 16, "epochs": 3, "imageSize": 640, "patience": 100, "device": "None", "cache": "False"
    },
    "dataset": {"name": "coco8.yaml"},
    "lineage": {"architecture": {"name": "yolov8n"}, "parent": {"name": "yolov8n.pt"}},
    "meta": {"name": "yolov8n.pt"},
})
"""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(keys=(KEY,)) as sandbox:
        yield sandbox


def run_script(sandbox: Sandbox, script: str, *, folder: Path, key: str = KEY) -> Any:
    """Run a script with hub-sdk in a fresh process; returns its last line of output, parsed as JSON."""
    own = {"ULTRALYTICS_HUB_API": sandbox.url, "HUB_API_KEY": key, "NO_PROXY": "127.0.0.1"}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **own},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_the_client_logs_in_with_the_right_key_only(sandbox: Sandbox, tmp_path: Path) -> None:
    script = "from hub_sdk import HUBClient; print('true' if HUBClient().authenticated else 'false')"

    assert run_script(sandbox, script, folder=tmp_path) is True
    assert run_script(sandbox, script, folder=tmp_path, key="wrong") is False


def test_the_client_logs_in_with_a_bearer_token(sandbox: Sandbox, tmp_path: Path) -> None:
    script = f"from hub_sdk import HUBClient; print(int(HUBClient({{'id_token': '{KEY}'}}).authenticated))"

    assert run_script(sandbox, script, folder=tmp_path) == 1


def test_the_client_creates_a_model_and_reads_it(sandbox: Sandbox, tmp_path: Path) -> None:
    data = run_script(sandbox, CREATE + "print(json.dumps({'id': model.id, **model.data}))", folder=tmp_path)

    assert sandbox.models == [data["id"]] and len(data["id"]) == 20 and data["id"].isalnum()
    assert data["status"] == "new" and not data["has_last_weights"] and not data["has_best_weights"]
    assert data["config"] == {
        "batchSize": 16,
        "epochs": 3,
        "imageSize": 640,
        "patience": 100,
        "device": "None",
        "cache": "False",
    }
    assert data["train_args"]["data"] == data["data"] == "coco8.yaml" and data["cfg"] == "yolov8n.yaml"


def test_the_client_uploads_metrics_and_reads_them_back(sandbox: Sandbox, tmp_path: Path) -> None:
    script = (
        CREATE
        + """
import math
sent = {"0": json.dumps({"train/box_loss": 1.5, "lost": math.nan}), "1": json.dumps({"train/box_loss": 1.25})}
response = model.upload_metrics(sent)
model.get_data()
print(json.dumps([response.status_code, model.data["status"], sent, model.get_metrics()]))
"""
    )

    status, state, sent, series = run_script(sandbox, script, folder=tmp_path)

    assert (status, state) == (200, "training")
    assert sandbox.metrics_texts(sandbox.models[0]) == sent
    assert math.isnan(sandbox.metrics(sandbox.models[0])[0]["lost"])
    assert {each["meta"]["name"]: each["data"] for each in series} == {
        "train/box_loss": {"0": 1.5, "1": 1.25},
        "lost": {"0": None},
    }


def test_the_client_uploads_both_kinds_of_checkpoint(sandbox: Sandbox, tmp_path: Path) -> None:
    last, best = os.urandom((2 << 20) + 5), os.urandom(1000)
    (tmp_path / "last.pt").write_bytes(last)
    (tmp_path / "best.pt").write_bytes(best)
    script = (
        CREATE
        + """
responses = [model.upload_model(4, "last.pt", is_best=True).status_code]
model.get_data()
states = [model.data["status"], model.is_resumable(), model.get_weights_url("last"), model.is_trained()]
responses.append(model.upload_model(9, "best.pt", map=0.51, final=True).status_code)
model.get_data()
print(json.dumps([responses, states, [model.is_trained(), model.has_best_weights(), model.get_weights_url()]]))
"""
    )

    responses, during, after = run_script(sandbox, script, folder=tmp_path)

    periodic, final = sandbox.checkpoints(sandbox.models[0])
    assert responses == [200, 200]
    assert during[:2] == ["training", True] and during[2].endswith("/epoch-4.pt") and not during[3]
    assert after[:2] == [True, True]
    assert (periodic.epoch, periodic.type, periodic.is_best, periodic.map) == (4, "epoch", True, None)
    assert (final.epoch, final.type, final.map, final.filename) == (9, "final", 0.51, "best.pt")
    assert periodic.sha256 == hashlib.sha256(last).hexdigest() and periodic.path.read_bytes() == last
    for url, content in ((during[2], last), (after[2], best)):
        with urllib.request.urlopen(url, timeout=20) as weights:
            assert weights.read() == content


def test_the_client_sends_heartbeats_and_adopts_the_agent_id(sandbox: Sandbox, tmp_path: Path) -> None:
    script = (
        CREATE
        + """
import os, threading, requests
address = os.environ["ULTRALYTICS_HUB_API"] + "/api/models/" + model.id
model.start_heartbeat(interval=0.05)
while requests.get(address).json()["beats"] < 3:
    threading.Event().wait(0.02)
model.stop_heartbeat()
print(json.dumps(model.hub_client.agent_id))
"""
    )

    agent_id = run_script(sandbox, script, folder=tmp_path)

    beats = sandbox.beats(sandbox.models[0])
    assert len(beats) >= 3 and {beat.agent_id for beat in beats} == {agent_id}
    assert beats[0].agent.startswith("python-")


def test_the_client_pages_through_its_models(sandbox: Sandbox, tmp_path: Path) -> None:
    script = (
        CREATE
        + """
for number in range(4):
    client.model().create_model({"meta": {"name": f"model {number}"}})
models = client.model_list(page_size=2)
seen = []
for _ in range(models.total_pages):
    seen.append([each["id"] for each in models.results])
    models.next()
print(json.dumps(seen))
"""
    )

    seen = run_script(sandbox, script, folder=tmp_path)

    assert [len(page) for page in seen] == [2, 2, 1]
    assert [each for page in seen for each in page] == sandbox.models


def test_the_client_updates_exports_and_deletes(sandbox: Sandbox, tmp_path: Path) -> None:
    script = (
        CREATE
        + """
responses = [model.update({"meta": {"name": "renamed"}}).status_code, model.export("onnx").status_code]
model.get_data()
name = model.data["meta"]["name"]
responses.append(model.delete(hard=True).status_code)
print(json.dumps([responses, name, model.update({}) is None]))
"""
    )

    responses, name, gone = run_script(sandbox, script, folder=tmp_path)

    assert (responses, name, gone) == ([200, 200, 200], "renamed", True)
    assert sandbox.models == []


def test_a_careless_client_takes_a_redirect_for_a_success(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.fail("metrics:redirect:to=/api/models")

    status = run_script(
        sandbox, CREATE + "print(model.upload_metrics({'0': '{}'}).status_code)", folder=tmp_path
    )

    assert status == 200
    assert sandbox.metrics(sandbox.models[0]) == {}
