"""Requests to Platform's webhooks: their address and event, checked; their label, without a check."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hubqueue.sandbox.request import Body
from hubqueue.sandbox.response import Refused
from hubqueue.sandbox.routes import Label

# The events of a training, with the kind of request of each.
EVENTS: dict[str, str] = {
    "training_started": "registration",
    "training_progress": "heartbeat",
    "epoch_end": "metrics",
    "system_metrics": "event",
    "console_output": "event",
    "checkpoint_saved": "ckpt",
    "training_complete": "completion",
    "training_failed": "completion",
}
_DEFAULT_NAME = "train"


@dataclass(frozen=True, slots=True)
class Event:
    """One event, its shape checked. `run_id` comes from the data, None if they name no run."""

    name: str
    data: dict[str, Any]
    address: Address
    run_id: int | None


@dataclass(frozen=True, slots=True)
class Address:
    """The training that a request is about: a model id, or a project with a name."""

    model_id: str | None
    project: str | None
    name: str


def understood(body: dict[str, Any]) -> Event:
    """An event, checked. Raises `Refused` (400)."""
    name, data = body.get("event"), body.get("data")
    if not isinstance(name, str) or name not in EVENTS:
        raise Refused(400, "event has to be one of " + ", ".join(EVENTS))
    if not isinstance(data, dict):
        raise Refused(400, "data has to be an object")
    run_id = data.get("runId")
    if run_id is not None and not is_whole(run_id):
        raise Refused(400, "runId has to be a whole number")
    if name == "epoch_end" and not (
        is_whole(data.get("epoch")) and isinstance(data.get("metrics", {}), dict)
    ):
        raise Refused(400, "epoch_end needs a whole number as epoch, and an object as metrics")
    if name == "checkpoint_saved" and not (run_id is not None and isinstance(data.get("modelPath"), str)):
        raise Refused(400, "checkpoint_saved needs runId and modelPath")
    return Event(name, data, address_in(body), run_id)


def address_in(body: dict[str, Any]) -> Address:
    model_id, project, name = body.get("modelId"), body.get("project"), body.get("name")
    for given in (model_id, project, name):
        if given is not None and not isinstance(given, str):
            raise Refused(400, "modelId, project and name have to be texts")
    if not model_id and not project:
        raise Refused(400, "modelId is needed, or project and name")
    return Address(model_id or None, project, name or _DEFAULT_NAME)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def event_label(body: Body) -> Label:
    given = _preview(body)
    event = given.get("event")
    if not isinstance(event, str) or event not in EVENTS:
        return Label("other", model_id=_id_in(given))
    return Label(EVENTS[event], event, _id_in(given))


def upload_label(body: Body) -> Label:
    return Label("ckpt", model_id=_id_in(_preview(body)))


def _id_in(given: dict[str, Any]) -> str | None:
    model_id = given.get("modelId")
    return model_id if isinstance(model_id, str) and len(model_id) <= 128 else None


def _preview(body: Body) -> dict[str, Any]:
    try:
        value = json.loads(body.preview())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
