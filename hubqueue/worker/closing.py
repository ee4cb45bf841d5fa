"""The end of a run, as the script, the command line and the janitor tell it."""

from __future__ import annotations

from collections.abc import Mapping

from hubqueue.config.registry import declaration, is_known
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
    completion = declaration(row["type"]).completion if row is not None and is_known(row["type"]) else None
    if completion is not None:
        told = completion(state, results=results, error=error)
    return outbox.registry.end_run(run_id, state, told=told)
