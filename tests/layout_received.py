"""What a folder or a bucket has of each run, as a reader of the layout sees it: for the conformance tests."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hubqueue.testing.conformance import Received


def received_in(objects: Mapping[str, bytes], uploaded: int | None = None) -> dict[str, Received]:
    """The runs in objects by name. `uploaded` is the number of bytes of checkpoints that arrived."""
    runs = [name.partition("/")[0] for name in objects if name.endswith("/run.json")]
    return {run: _received(run, objects, uploaded) for run in runs}


def _received(run: str, objects: Mapping[str, bytes], uploaded: int | None) -> Received:
    logs = [data for name, data in objects.items() if name.startswith(f"{run}/metrics/")]
    lines = [json.loads(line) for each in logs for line in each.splitlines()]
    state = json.loads(objects[f"{run}/run.json"])["state"]
    manifests = [
        name for name in objects if name.startswith(f"{run}/checkpoints/") and name.endswith("/manifest.json")
    ]
    return Received(
        metrics=[
            (f"step:{each['step']}" if "step" in each else str(each["epoch"]), each["metrics"])
            for each in sorted(lines, key=lambda each: each["time"])
        ],
        checkpoints=[_checkpoint(name, objects) for name in manifests],
        ends=[] if state == "running" else [state],
        upload_bytes=uploaded,
    )


def _checkpoint(manifest: str, objects: Mapping[str, bytes]) -> dict[str, bytes]:
    folder = manifest.rpartition("/")[0]
    files = json.loads(objects[manifest])["files"]
    return {each["path"]: objects[f"{folder}/{each.get('stored', each['path'])}"] for each in files}
