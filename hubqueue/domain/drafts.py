"""What a producer's call becomes: drafts, with their place and rank in the lane. Pure rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from hubqueue.destinations.hub.registration import create_model_payload
from hubqueue.destinations.platform.start import training_started
from hubqueue.domain.arguments import hide_in, hide_secrets
from hubqueue.domain.entry import Draft, Kind, Snapshot
from hubqueue.domain.lifecycle import RunState
from hubqueue.domain.plain import plain
from hubqueue.domain.redact import hide_key

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ENDED = {RunState.FAILED: "failed", RunState.INTERRUPTED: "went away without a word"}
# Below every other rank of a checkpoint lane: a final checkpoint goes first.
FINAL_RANK = -(2**62)


def registration_draft(model: str, args: Mapping[str, object]) -> Draft:
    """The registration of a new model: the HUB's create-model payload."""
    return Draft(
        Kind.REGISTRATION, "registration", 0, json.dumps(create_model_payload(model, hide_secrets(args)))
    )


def start_draft(model: str, args: Mapping[str, object]) -> Draft:
    """The start of a training, for a hub that wants to hear of each start (Platform)."""
    return Draft(
        Kind.REGISTRATION, "registration", 0, json.dumps(training_started(model, hide_secrets(args)))
    )


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


def metrics_draft(text: str, epoch: int) -> Draft:
    """The metrics of one epoch. The lane goes by epoch."""
    return Draft(Kind.METRICS, str(epoch), epoch, text)


def ckpt_draft(
    snapshot: Snapshot, epoch: int, *, is_best: bool, map: float, final: bool, now: datetime
) -> Draft:
    """A checkpoint. Newest first; `last` and `best` have one waiting place each, and a final one replaces both.

    A periodic checkpoint after the final one would turn a finished model back into an unfinished one at the
    hub, so the final one takes the places of those that wait.
    """
    payload = {"epoch": epoch, "is_best": is_best, "map": map, "final": final}
    if final:
        return Draft(
            Kind.CKPT,
            "final",
            FINAL_RANK,
            json.dumps(payload),
            snapshot,
            final=True,
            replaces=("last", "best"),
        )
    newest_first = -((now - _EPOCH) // _MICROSECOND)
    return Draft(Kind.CKPT, "best" if is_best else "last", newest_first, json.dumps(payload), snapshot)
