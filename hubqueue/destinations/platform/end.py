"""Drafts for Platform besides metrics and checkpoints: the end of a training, and lines of its output."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hubqueue.domain.arguments import hide_in, hide_text, warn_lost
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.plain import made_plain
from hubqueue.domain.redact import hide_key

_ENDED = {RunState.FAILED: "failed", RunState.INTERRUPTED: "ended without reporting"}


def completion_draft(
    state: RunState, *, results: Mapping[str, object] | None = None, error: str | None = None
) -> Draft:
    """The end of a training, for a hub that expects it (Platform).

    `classNames` and `plots` move from `results` to the data around it, as that hub expects.
    """
    if state is RunState.FINISHED:
        known, lost = made_plain(results or {})
        if lost:
            warn_lost(f"results.{name}" for name in lost)
        safe = hide_in(known)
        beside = {"classNames": safe.pop("classNames", None), "plots": safe.pop("plots", [])}
        payload = {"event": "training_complete", "data": {"results": safe, **beside}}
    else:
        payload = {
            "event": "training_failed",
            "data": {"error": hide_text(error or f"the training {_ENDED[state]}")},
        }
    return Draft(Kind.COMPLETION, "completion", 0, json.dumps(payload))


def console_draft(content: str, lines: int, chunk: int) -> Draft:
    """Some lines of the training's output. `chunk` is their rising number."""
    data = {"chunkId": chunk, "content": hide_key(content), "lineCount": lines}
    return Draft(Kind.EVENT, f"console-{chunk}", chunk, json.dumps({"event": "console_output", "data": data}))
