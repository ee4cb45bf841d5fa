"""What Platform is told about a training that begins: the `training_started` event.

Promises strict JSON, the slugs that the ultralytics package makes of `project` and `name`, and no key, if there is none
in the arguments. Refuses to tell the command line and the paths of this machine, which the package sends.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any

from hubqueue.__about__ import __version__
from hubqueue.domain.arguments import hide_secrets
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.redact import hide_key

_NAME, _PROJECT = "train", "hubqueue"
_LONGEST = 128


def registration(model: Identifier, args: Mapping[str, object], *, continues: bool) -> Draft | None:
    """What a start of a training owes: `training_started`, each time, since each start has a number at Platform."""
    return start_draft(model.filename or model.model_id or "", args)


def start_draft(model: str, args: Mapping[str, object]) -> Draft:
    """The start of a training, for a hub that wants to hear of each start (Platform)."""
    return Draft(
        Kind.REGISTRATION, "registration", 0, json.dumps(training_started(model, hide_secrets(args)))
    )


def training_started(model: str, args: Mapping[str, object]) -> dict[str, Any]:
    """`project`, `name` and the event's `data` for a training of `model` with these arguments.

    `project` and `name` are the arguments of that name; without them they are "hubqueue" and "train".
    """
    told = {"model": model, **args}
    epochs = args.get("epochs")
    return {
        "project": project_slug(str(args.get("project") or "")) or _PROJECT,
        "name": slug(str(args.get("name") or "")) or _NAME,
        "data": {
            "trainArgs": {name: hide_key(str(value)) for name, value in told.items()},
            "epochs": int(epochs) if isinstance(epochs, int | float) else 0,
            "device": str(args.get("device") or ""),
            "environment": environment(),
        },
    }


def slug(text: str) -> str:
    """As the ultralytics package has it: lower case, letters, digits and single dashes, at most 128."""
    kept = re.sub(r"[^a-z0-9\s-]", "", text.lower()).replace(" ", "-")
    return re.sub(r"-+", "-", kept).strip("-")[:_LONGEST]


def project_slug(text: str) -> str:
    """The same for a project, which may stand behind its owner: `bob/My Project` is `bob/my-project`."""
    if re.match(r"[./\\~]|[A-Za-z]:", text):
        return slug(re.split(r"[/\\]", text.rstrip("/\\"))[-1])  # a folder, as older versions used `project`
    owner, slash, rest = text.partition("/")
    return f"{owner}/{slug(rest.replace('/', '-'))}" if slash and owner and rest else slug(text.rstrip("/"))


def environment() -> dict[str, Any]:
    """This machine, as far as nothing private is in it."""
    found: dict[str, Any] = {
        "hostname": socket.gethostname(),
        "os": platform.platform(),
        "pythonVersion": platform.python_version(),
        "cpuCount": os.cpu_count() or 0,
        "hubqueueVersion": __version__,
    }
    package = sys.modules.get("ultralytics")
    version = getattr(package, "__version__", None)
    return found | ({"ultralyticsVersion": version} if isinstance(version, str) else {})
