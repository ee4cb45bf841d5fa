"""What kind of entry a commit of the fake Hub has: only its body shows it."""

from __future__ import annotations

import json
import re

from hubqueue.sandbox.request import Body
from hubqueue.sandbox.routes import Label

_FOLDER = re.compile(rb'"path": ?"([^"]*)"')
_SUMMARY = re.compile(r"hubqueue: (\w+)")
_WORDS = {"start": "registration", "metrics": "metrics", "checkpoint": "ckpt", "end": "completion"}


def label(body: Body) -> Label:
    """The kind of a commit by its title, of an announced file by its path."""
    content = body.preview()
    first = content.partition(b"\n")[0]
    try:
        value = json.loads(first).get("value", {})
        found = _SUMMARY.match(str(value.get("summary", "")))
    except (ValueError, AttributeError):
        found = None
    if found:
        return Label(_WORDS.get(found[1], "other"))
    paths = [each.decode("utf-8", "replace") for each in _FOLDER.findall(first)]
    below = [path.partition("/")[2] for path in paths]
    if any(path.startswith("metrics/") for path in below):
        return Label("metrics")
    if any(path != "run.json" for path in below):
        return Label("ckpt")
    return Label("other")
