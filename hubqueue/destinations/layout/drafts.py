"""What a run owes to a folder, a bucket or a server of one's own: its start, and its end.

Promises strict JSON with masked keys, without a path of this machine in the model's name.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from os import PathLike

from hubqueue.__about__ import __version__
from hubqueue.destinations.base import (
    DestinationSettings,
    Draft,
    Identifier,
    InvalidModel,
    Kind,
    RunState,
    hide_secrets,
)
from hubqueue.domain.arguments import hide_in, hide_text, warn_lost
from hubqueue.domain.identifier import printable
from hubqueue.domain.plain import made_plain, text_of
from hubqueue.domain.redact import safe_url

# Characters of all results: the plots of a training with hundreds of classes are some megabytes.
_MOST_RESULTS = 8 << 20
# The forms of a HUB, in which a key precedes the id of a model.
_KEY_AND_ID = re.compile(r"[0-9A-Za-z]{42}_([0-9A-Za-z]{20})")
_PACKAGES = ("torch", "numpy", "transformers", "lightning", "ultralytics")


def identify(model: str | PathLike[str], _settings: DestinationSettings) -> Identifier:
    """Any name of a model, or a path of one. A key in it is removed, and of an absolute path the last part is kept.

    Raises `InvalidModel` for an empty one.
    """
    text = text_of(os.fspath(model)).strip()
    if "://" in text:
        text = safe_url(text)
    elif found := _KEY_AND_ID.fullmatch(text):
        text = found[1]
    elif re.match(r"[/\\~]|[A-Za-z]:[/\\]|\.\.?[/\\]", text):
        text = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    if not text:
        raise InvalidModel("the name of the model is empty", hint="name the model, or its file")
    return Identifier(filename=printable(hide_text(text)))


def registration(model: Identifier, args: Mapping[str, object], *, continues: bool) -> Draft:
    """The start of a training: also when its run continues, since `run.json` says whether it is running."""
    import socket  # loaded only where a run starts

    known, lost = made_plain(hide_secrets(args))
    if lost:
        warn_lost(lost)
    payload = {
        "model": model.filename or model.model_id or "",
        "args": known,
        "host": hide_text(socket.gethostname()),
        "versions": versions(),
    }
    return Draft(Kind.REGISTRATION, "registration", 0, json.dumps(payload, allow_nan=False))


def completion(state: RunState, *, results: Mapping[str, object] | None, error: str | None) -> Draft:
    """The end of a training: `results` of a finished one, `error` of another."""
    payload: dict[str, object] = {"state": str(state)}
    if results is not None:
        known, lost = made_plain(results, most=_MOST_RESULTS)
        if lost:
            warn_lost(f"results.{name}" for name in lost)
        payload["results"] = hide_in(known, most=2 * _MOST_RESULTS)
    if error is not None:
        payload["error"] = hide_text(error)
    return Draft(Kind.COMPLETION, "completion", 0, json.dumps(payload, allow_nan=False))


def versions() -> dict[str, str]:
    """The versions of hubqueue, of Python, and of the packages of trainings that this process has loaded."""
    found = {"hubqueue": __version__, "python": sys.version.split()[0]}
    for name in _PACKAGES:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = hide_text(version)
    return found
