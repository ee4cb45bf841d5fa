"""The events of a training that runs: its epochs, lines of its output, its end, and heartbeats.

Field names are those of the contract in ultralytics-platform 0.1.99 (`training.metrics`) and of the callback in
ultralytics 8.4.190.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from hubqueue.destinations.base import Attempt, Batch, Delivered, Outcome, Rejected, Remote, RunRef
from hubqueue.destinations.platform import machine
from hubqueue.destinations.platform.webhooks import Webhooks
from hubqueue.destinations.wire.api import Told
from hubqueue.domain.redact import clean

# What the package tells beside the metrics of an epoch, under the names that its own loggers give.
_BESIDE = ("fitness", "best_fitness")
_MODEL_INFO = {
    "model/parameters": "parameters",
    "model/GFLOPs": "gflops",
    "model/speed_PyTorch(ms)": "speedMs",
}


def send_epoch(webhooks: Webhooks, batch: Batch, attempt: Attempt) -> Outcome:
    """Send the metrics of one epoch."""
    (entry,) = batch.entries
    return _deliver(webhooks, batch, attempt, "epoch_end", epoch_end(int(entry.key), entry.payload))


def send_event(webhooks: Webhooks, batch: Batch, attempt: Attempt) -> Outcome:
    """Send an event that was drafted when it happened (see `end.py`): lines of the output, or the end."""
    event = json.loads(batch.entries[0].payload)
    name = event["event"]
    return _deliver(webhooks, batch, attempt, name, bound(name, event["data"], batch.run))


def send_heartbeat(webhooks: Webhooks, batch: Batch, attempt: Attempt) -> Outcome:
    """Say that the training is alive, and the load of its machine."""
    name, run = "training_progress", batch.run
    alive = _deliver(webhooks, batch, attempt, name, bound(name, {}, run))
    if not isinstance(alive, Delivered):
        return alive
    name = "system_metrics"
    load = _deliver(webhooks, batch, attempt, name, bound(name, machine.load(), run))
    return alive if isinstance(load, Delivered | Rejected) else load


def epoch_end(epoch: int, payload: str) -> dict[str, Any]:
    """The data of an `epoch_end`: metrics, with fitness and the model's size beside them."""
    logged = json.loads(payload)
    beside = {*_BESIDE, *_MODEL_INFO}
    data: dict[str, Any] = {
        "epoch": epoch,
        "metrics": {name: value for name, value in logged.items() if name not in beside},
    }
    data |= {name: logged[name] for name in _BESIDE if name in logged}
    info = {short: logged[name] for name, short in _MODEL_INFO.items() if name in logged}
    return data | ({"modelInfo": info} if info else {})


def number_of(run: RunRef) -> str | None:
    """What the hub calls this start of the training, as JSON text; None at a hub that counts no starts."""
    return _text(run, "run")


def bound(event: str, data: Mapping[str, Any], run: RunRef) -> dict[str, Any]:
    """The data of an event with what only the hub's answers told: the number of this start, the final file."""
    told = dict(data)
    number, file = number_of(run), _text(run, "file")
    if number is not None and event != "console_output":
        told["runId"] = json.loads(number)
    if event == "training_complete" and file is not None:
        told["results"] = {**told.get("results", {}), **json.loads(file)}
    return told


def taken(webhooks: Webhooks, told: Told, what: str, remote: Remote) -> Outcome:
    """What it means that the hub has received an event: it may ignore it all the same, or report a cancelled training."""
    found = told.json or {}
    ignored = found.get("ignored")
    if ignored:
        shown = clean(str(ignored), limit=60, secrets=webhooks.keys())
        return Rejected(f"the hub ignores {what} ({shown}): this training was started anew somewhere else")
    return Delivered(dataclasses.replace(remote, cancelled=found.get("cancelled") is True))


def _deliver(
    webhooks: Webhooks, batch: Batch, attempt: Attempt, name: str, data: Mapping[str, Any]
) -> Outcome:
    told = webhooks.event(batch, attempt, name, data)
    return taken(webhooks, told, name, Remote()) if isinstance(told, Told) else told


def _text(run: RunRef, name: str) -> str | None:
    found = run.remembered.get(name)
    return found if isinstance(found, str) else None
