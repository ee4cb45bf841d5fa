"""The end of a run, as the script, the command line and the janitor tell it."""

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
    """End a run, and owe its end to a hub that wants to hear of it; False when it had ended already.

    `results` are those of a finished training, `error` says why another one failed. Durable when this returns.
    """
    row, told = outbox.stats.run(run_id), None
    completion = of_row(row["type"]).completion if row is not None else None
    if completion is not None:
        try:
            told = completion(state, results=results, error=error)
        except (
            Exception
        ):  # a stranger's code; a run that cannot be ended would stop the janitor for all others
            _LOG.exception("run %s: its destination is not told of the end", run_id)
    return outbox.registry.end_run(run_id, state, told=told)
