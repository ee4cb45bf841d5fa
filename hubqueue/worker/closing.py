"""The end of a run, as the script, the command line and the janitor tell it."""

from __future__ import annotations

from collections.abc import Mapping

from hubqueue.destinations.registry import DESTINATION_KINDS
from hubqueue.domain.drafts import completion_draft
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.outbox import Outbox


def close_run(
    outbox: Outbox,
    run_id: str,
    state: RunState,
    *,
    results: Mapping[str, object] | None = None,
    error: str | None = None,
) -> bool:
    """End a run, and owe its end to a hub that wants to hear of it; False when it had ended already.

    `results` are those of a finished training, `error` says why another one failed. Durable when this returns.
    """
    row, told = outbox.stats.run(run_id), None
    if row is not None and Kind.COMPLETION in DESTINATION_KINDS.get(row["type"], ()):
        told = completion_draft(state, results=results, error=error)
    return outbox.registry.end_run(run_id, state, told=told)
