"""The events of a running training: its epochs, lines of its output, its end, and heartbeats.

Field names follow the contract in ultralytics-platform 0.1.99 (`training.metrics`) and of the callback in
ultralytics 8.4.190.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from hubqueue.destinations.base import Attempt, Batch, Delivered, Outcome, Rejected, Remote, RunRef
from hubqueue.destinations.platform.machine.description import load_in
from hubqueue.destinations.platform.machine.sampler import Sampler
from hubqueue.destinations.platform.webhooks import Webhooks
from hubqueue.destinations.wire.api import ApiResponse
from hubqueue.domain.redact import clean

# What is measured between two heartbeats of this process.
_SAMPLER = Sampler()
# The names of the load in `system_metrics` (ultralytics-platform 0.1.99), by those in `system`. A worker has no GPU load.
_LOAD = {"cpu": "cpu", "ram": "memory", "disk": "disk", "disk_io": "diskIo", "network": "network"}
# Values besides the metrics of an epoch, under the names of the package's own loggers.
_BESIDE = ("fitness", "best_fitness")
_MODEL_INFO = {
    "model/parameters": "parameters",
    "model/GFLOPs": "gflops",
    "model/speed_PyTorch(ms)": "speedMs",
}


def send_epoch(webhooks: Webhooks, batch: Batch, attempt: Attempt) -> Outcome:
    """Send the metrics of one epoch."""
    (entry,) = batch.entries
    return _deliver(
        webhooks, batch, attempt, "epoch_end", epoch_end(int(entry.key), entry.payload, entry.progress)
    )


def send_event(webhooks: Webhooks, batch: Batch, attempt: Attempt) -> Outcome:
    """Send an event that was drafted when it happened (see `end.py`): lines of the output, or the end."""
    event = json.loads(batch.entries[0].payload)
    name = event["event"]
    return _deliver(webhooks, batch, attempt, name, bound(name, event["data"], batch.run))


def send_heartbeat(webhooks: Webhooks, batch: Batch, attempt: Attempt, *, with_load: bool) -> Outcome:
    """Report that the training is running, and the load of its machine."""
    name, run = "training_progress", batch.run
    alive = _deliver(webhooks, batch, attempt, name, bound(name, {}, run))
    if not isinstance(alive, Delivered) or not with_load:
        return alive
    name = "system_metrics"
    sent = _deliver(webhooks, batch, attempt, name, bound(name, load_now(), run))
    return alive if isinstance(sent, Delivered | Rejected) else sent


def load_now() -> dict[str, Any]:
    """The data of a `system_metrics`; for the units see `Sampler.sample`."""
    found = _SAMPLER.sample()
    return {name: found[measured] for measured, name in _LOAD.items() if measured in found}


def epoch_end(epoch: int, payload: str, progress: str | None = None) -> dict[str, Any]:
    """The data of an `epoch_end`: the metrics, the fitness, the model's size, and the load when it was logged."""
    logged = json.loads(payload)
    system = load_in(progress)
    beside = {*_BESIDE, *_MODEL_INFO}
    data: dict[str, Any] = {
        "epoch": epoch,
        "metrics": {name: value for name, value in logged.items() if name not in beside},
    }
    data |= {name: logged[name] for name in _BESIDE if name in logged}
    info = {short: logged[name] for name, short in _MODEL_INFO.items() if name in logged}
    data |= {"system": system} if system is not None else {}
    return data | ({"modelInfo": info} if info else {})


def number_of(run: RunRef) -> str | None:
    """The hub's number of this start of the training, as JSON text; None at a hub that does not count starts."""
    return _text(run, "run")


def bound(event: str, data: Mapping[str, Any], run: RunRef) -> dict[str, Any]:
    """The data of an event with the values from earlier responses: the number of this start, the final file."""
    fields = dict(data)
    number, file = number_of(run), _text(run, "file")
    if number is not None and event != "console_output":
        fields["runId"] = json.loads(number)
    if event == "training_complete" and file is not None:
        fields["results"] = {**fields.get("results", {}), **json.loads(file)}
    return fields


def received(webhooks: Webhooks, response: ApiResponse, what: str, remote: Remote) -> Outcome:
    """The outcome of an event that the hub has received. It may still ignore the event, or report a cancelled training."""
    found = response.json or {}
    ignored = found.get("ignored")
    if ignored:
        shown = clean(str(ignored), limit=60, secrets=webhooks.keys())
        return Rejected(f"the hub ignores {what} ({shown}): this training was started again elsewhere")
    return Delivered(dataclasses.replace(remote, cancelled=found.get("cancelled") is True))


def _deliver(
    webhooks: Webhooks, batch: Batch, attempt: Attempt, name: str, data: Mapping[str, Any]
) -> Outcome:
    response = webhooks.event(batch, attempt, name, data)
    return received(webhooks, response, name, Remote()) if isinstance(response, ApiResponse) else response


def _text(run: RunRef, name: str) -> str | None:
    found = run.remembered.get(name)
    return found if isinstance(found, str) else None
