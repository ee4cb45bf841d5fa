"""What a run owes to MLflow: its start, with params and tags, and its end.

Promises strict JSON with masked keys, and no path of this machine but those in the arguments.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Mapping

from hubqueue.__about__ import __version__
from hubqueue.destinations.base import Draft, Identifier, Kind, hide_secrets
from hubqueue.destinations.mlflow.names import LONGEST_PARAM, LONGEST_TAG, flat, named
from hubqueue.domain.arguments import hide_text, warn_lost
from hubqueue.domain.plain import made_plain

RUN_ID, MODEL = "hubqueue.run_id", "hubqueue.model"
"""The tags by which a run is found again."""


def registration(model: Identifier, args: Mapping[str, object], *, continues: bool) -> Draft:
    """The start of a training: also when its run continues, since MLflow shows whether it is running."""
    known, lost = made_plain(hide_secrets(args))
    # As the MLflow client writes them: the text of the Python value.
    texts = {name: str(value) for name, value in flat(known).items()}
    lost += [name for name, text in texts.items() if len(text) > LONGEST_PARAM]
    if lost:
        warn_lost(lost)
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": _script(),
        "mlflow.source.type": "LOCAL",
        MODEL: hide_text(model.filename or model.model_id or ""),
        "hubqueue.host": hide_text(socket.gethostname()),
        "hubqueue.version": __version__,
    }
    payload = {
        "params": {name: text[:LONGEST_PARAM] for name, text in named(texts).items()},
        "tags": {name: text[:LONGEST_TAG] for name, text in tags.items() if text},
    }
    return Draft(Kind.REGISTRATION, "registration", 0, json.dumps(payload))


def _user() -> str:
    import getpass  # slow to load

    try:
        return hide_text(getpass.getuser())
    except Exception:  # a user without a name, as in a container
        return ""


def _script() -> str:
    """The name of the script, without its folders."""
    return hide_text(re.split(r"[/\\]", sys.argv[0] if sys.argv else "")[-1])
