"""Drafts for Platform besides metrics and checkpoints: the end of a training, and lines of its output."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hubqueue.domain.arguments import hide_in, hide_text, warn_lost
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.plain import made_plain, text_of
from hubqueue.domain.redact import clean, hide_key

_MOST_BARS, _LONGEST_BAR = 16, 500
# Characters of all results: the plots of a training with hundreds of classes are some megabytes.
_MOST_RESULTS = 8 << 20
_ENDED = {RunState.FAILED: "failed", RunState.INTERRUPTED: "ended without reporting"}


def completion_draft(
    state: RunState, *, results: Mapping[str, object] | None = None, error: str | None = None
) -> Draft:
    """The end of a training, for a hub that expects it (Platform).

    `classNames` and `plots` move from `results` to the data around it, as that hub expects.
    """
    if state is RunState.FINISHED:
        known, lost = made_plain(results or {}, most=_MOST_RESULTS)
        if lost:
            warn_lost(f"results.{name}" for name in lost)
        safe = hide_in(known, most=2 * _MOST_RESULTS)
        beside = {"classNames": safe.pop("classNames", None), "plots": safe.pop("plots", [])}
        payload = {"event": "training_complete", "data": {"results": safe, **beside}}
    else:
        payload = {
            "event": "training_failed",
            "data": {"error": hide_text(error or f"the training {_ENDED[state]}")},
        }
    return Draft(Kind.COMPLETION, "completion", 0, json.dumps(payload))


def console_draft(
    content: str, lines: int, chunk: int, *, progress: Mapping[str, str] | None = None
) -> Draft:
    """Some lines of the training's output, with the progress bars of that moment.

    `chunk` is their rising number (milliseconds since 1970). `progress` is the text of each bar that is shown, by its
    name; at most 16 bars of 500 characters. Names and form are those of ultralytics 8.4.190. Progress without lines
    replaces earlier progress that still waits.
    """
    bars = list((progress or {}).items())[:_MOST_BARS]
    frames = {
        clean(text_of(name), limit=60): clean(text_of(frame), limit=_LONGEST_BAR) for name, frame in bars
    }
    data = {"chunkId": chunk, "content": hide_key(content), "lineCount": lines, "progress": frames}
    payload = json.dumps({"event": "console_output", "data": data})
    if not content:
        return Draft(Kind.EVENT, "progress", 0, payload)
    return Draft(Kind.EVENT, f"console-{chunk}", chunk, payload)
