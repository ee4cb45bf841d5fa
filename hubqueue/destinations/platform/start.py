"""The start of a training: its `training_started` event, how it is sent, and the recovery from a lost response.

Promises strict JSON, the slugs that the ultralytics package makes of `project` and `name`, and masked keys. The facts
about the machine are added where the training runs (`machine/`).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hubqueue.destinations.base import (
    Attempt,
    Batch,
    Blocked,
    Delivered,
    Draft,
    Identifier,
    Kind,
    Outcome,
    Rejected,
    Remote,
    RetryLater,
    Scope,
    hide_secrets,
)
from hubqueue.destinations.platform.machine.versions import versions
from hubqueue.domain.arguments import hide_text, warn_lost
from hubqueue.domain.plain import made_plain, whole

if TYPE_CHECKING:
    # A training makes this draft, and the status reads the declaration, without loading the HTTP code.
    from hubqueue.destinations.platform.webhooks import Address, Webhooks
    from hubqueue.destinations.wire.api import ApiResponse

_NAME, _PROJECT = "train", "hubqueue"
_LONGEST = 128


def registration(model: Identifier, args: Mapping[str, object], *, continues: bool) -> Draft | None:
    """The draft for the start of a training: always `training_started`, since Platform numbers each start."""
    return start_draft(model.filename or model.model_id or "", args)


def start_draft(model: str, args: Mapping[str, object]) -> Draft:
    """The start of a training, for a hub that expects an event for each start (Platform)."""
    return Draft(
        Kind.REGISTRATION, "registration", 0, json.dumps(training_started(model, hide_secrets(args)))
    )


def training_started(model: str, args: Mapping[str, object]) -> dict[str, Any]:
    """`project`, `name` and the event's `data` for a training of `model` with these arguments.

    `project` and `name` come from the arguments; the defaults are "hubqueue" and "train".
    """
    texts, lost = made_plain({name: hide_text(value) for name, value in {"model": model, **args}.items()})
    epochs = whole(args.get("epochs"))
    lost += ["epochs"] if epochs is None and args.get("epochs") is not None else []
    if lost:
        warn_lost(lost)
    return {
        "project": project_slug(_given(args, "project")) or _PROJECT,
        "name": slug(_given(args, "name")) or _NAME,
        "data": {
            "trainArgs": texts,
            "epochs": epochs or 0,
            "device": _given(args, "device"),
            "environment": versions(),
        },
    }


def _given(args: Mapping[str, object], name: str) -> str:
    """The text of an argument; empty for one that counts as false."""
    value = args.get(name)
    try:
        return hide_text(value) if value else ""
    except Exception:  # an array of several elements is neither true nor false
        return hide_text(value)


# Sending it.


def send_start(webhooks: Webhooks, batch: Batch, attempt: Attempt) -> Outcome:
    """Send `training_started`; the model and the number of this start are in the outcome."""
    (entry,) = batch.entries
    payload = json.loads(entry.payload)
    plain = {"project": payload["project"], "name": payload["name"]}
    tries, known = tries_in(entry.progress), batch.run.remote_id
    address: Address | Outcome = {"modelId": known} if known else plain
    if not known and tries:
        address = _address_again(webhooks, plain, tries, batch, attempt)
    if not isinstance(address, Mapping):
        return address
    found = _started(webhooks, batch, attempt, address, payload["data"], tries)
    if known and not isinstance(found, Outcome) and is_over(found.status, found.json):
        # The model was deleted, or its training has ended for good: this training becomes a new model.
        found = _started(webhooks, batch, attempt, plain, payload["data"], 0)
    return found if isinstance(found, Outcome) else _bound(webhooks, found.json or {})


def _started(
    webhooks: Webhooks,
    batch: Batch,
    attempt: Attempt,
    address: Address,
    data: Mapping[str, Any],
    tries: int,
) -> ApiResponse | Outcome:
    """Send it once. A note that the hub may have received it is stored before, and removed if the hub refused it."""

    def on_start() -> None:
        attempt.on_start()
        attempt.on_progress(progress_of_tries(tries + 1))

    sending = dataclasses.replace(attempt, on_start=on_start)
    gone = (404, 410) if "modelId" in address else ()
    found = webhooks.event(batch, sending, "training_started", data, address=address, judged=gone)
    if isinstance(found, Blocked | Rejected) or (
        isinstance(found, RetryLater) and (found.scope is Scope.DESTINATION or found.foreign)
    ):
        attempt.on_progress(progress_of_tries(tries))
    return found


def _bound(webhooks: Webhooks, found: Mapping[str, Any]) -> Outcome:
    model_id, url, run = found.get("modelId"), found.get("modelUrl"), found.get("runId")
    if not webhooks.is_id(model_id):
        return webhooks.missing("valid model id")
    shown = url if webhooks.is_address(url) else None
    number = json.dumps(run) if webhooks.is_id(run) or type(run) is int else None
    cancelled = found.get("cancelled") is True
    return Delivered(Remote(id=model_id, url=shown, remember={"run": number}, cancelled=cancelled))


def is_over(status: int, response: Mapping[str, Any] | None) -> bool:
    """Whether the model of a `training_started` was deleted, or its training has ended for good."""
    return status in (404, 410) or (response or {}).get("cancelled") is True


# After a response that was lost (decision 0013).


def _address_again(
    webhooks: Webhooks, plain: Address, tries: int, batch: Batch, attempt: Attempt
) -> Address | Outcome:
    """The address of the next request, after tries that the hub may have received without a response."""
    taken = _find(webhooks, plain, attempt)
    if taken is None or (isinstance(taken, str) and tries == 1):
        return plain
    if not isinstance(taken, str):
        return taken
    own = own_name(plain, batch.run.id)
    mine = _find(webhooks, own, attempt)
    if mine is None:
        return own
    return {"modelId": mine} if isinstance(mine, str) else mine


def _find(webhooks: Webhooks, address: Address, attempt: Attempt) -> str | Outcome | None:
    """The id of the model with a name; None when there is none."""
    response = webhooks.upload_target({"filename": "best.pt", **address}, attempt, judged=(404,))
    if isinstance(response, Outcome):
        return response
    if response.status == 404:
        return None
    found = (response.json or {}).get("modelId")
    return found if webhooks.is_id(found) else webhooks.missing("valid model id")


def own_name(plain: Mapping[str, str], run_id: str) -> dict[str, str]:
    """The address of a training under a unique name."""
    return {"project": plain["project"], "name": f"{plain['name'][: _LONGEST - 13]}-{run_id[:12]}"}


def tries_in(progress: str | None) -> int:
    """How many `training_started` the hub may have received without a response."""
    return int((json.loads(progress) if progress else {}).get("tries", 0))


def progress_of_tries(tries: int) -> str | None:
    """The tries, as the progress of the entry."""
    return json.dumps({"tries": tries}) if tries else None


# Its names, as the package makes them.


def slug(text: str) -> str:
    """A slug as in the ultralytics package: lower-case letters, digits and single dashes, at most 128 characters."""
    kept = re.sub(r"[^a-z0-9\s-]", "", text.lower()).replace(" ", "-")
    return re.sub(r"-+", "-", kept).strip("-")[:_LONGEST]


def project_slug(text: str) -> str:
    """The same for a project, optionally with its owner: `bob/My Project` becomes `bob/my-project`."""
    if re.match(r"[./\\~]|[A-Za-z]:", text):
        return slug(re.split(r"[/\\]", text.rstrip("/\\"))[-1])  # a folder, as older versions used `project`
    owner, slash, rest = text.partition("/")
    return (
        f"{owner[:_LONGEST]}/{slug(rest.replace('/', '-'))}"
        if slash and owner and rest
        else slug(text.rstrip("/"))
    )
