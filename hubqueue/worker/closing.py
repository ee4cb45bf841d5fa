"""The end of a run, for the script, the command line and the janitor."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from hubqueue.config.registry import of_row
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.outbox import Outbox

_LOG = logging.getLogger("hubqueue")


def close_run(
    outbox: Outbox,
    run_id: str,
    state: RunState,
    *,
    results: Mapping[str, object] | None = None,
    error: str | None = None,
) -> bool:
    """End a run, and enqueue a completion for a hub that expects one. False when the run had ended already.

    `results` are those of a finished training; `error` is the reason of a failed one. Durable when this returns.
    """
    row, draft = outbox.stats.run(run_id), None
    completion = of_row(row["type"]).completion if row is not None else None
    if completion is not None:
        try:
            draft = completion(state, results=results, error=error)
        except Exception:  # code of a plugin: it must not stop the janitor for all other runs
            _LOG.exception("run %s: its destination cannot draft the end", run_id)
    return outbox.registry.end_run(run_id, state, completion=draft)
