"""What Platform is sent beside metrics and checkpoints: the end of a training, and lines of its output."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hubqueue.domain.arguments import hide_in
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.plain import plain
from hubqueue.domain.redact import hide_key

_ENDED = {RunState.FAILED: "failed", RunState.INTERRUPTED: "ended without reporting"}


def completion_draft(
    state: RunState, *, results: Mapping[str, object] | None = None, error: str | None = None
) -> Draft:
    """The end of a training, for a hub that wants to hear of it (Platform).

    `classNames` and `plots` in `results` stand beside them, as that hub has it.
    """
    if state is RunState.FINISHED:
        told = hide_in(plain(results or {}))
        beside = {"classNames": told.pop("classNames", None), "plots": told.pop("plots", [])}
        payload = {"event": "training_complete", "data": {"results": told, **beside}}
    else:
        payload = {
            "event": "training_failed",
            "data": {"error": hide_key(error or f"the training {_ENDED[state]}")},
        }
    return Draft(Kind.COMPLETION, "completion", 0, json.dumps(payload))


def console_draft(content: str, lines: int, chunk: int) -> Draft:
    """Some lines of the training's output. `chunk` numbers them, rising."""
    data = {"chunkId": chunk, "content": hide_key(content), "lineCount": lines}
    return Draft(Kind.EVENT, f"console-{chunk}", chunk, json.dumps({"event": "console_output", "data": data}))
