"""The end of a run, for the script, the command line and the janitor."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from hubqueue.config.registry import absent, of_row
from hubqueue.domain.entry import Draft
from hubqueue.domain.errors import HubqueueError
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
    Raises `ConfigError` while the package of its destination cannot be loaded: only that can draft the end, and a run
    that has ended is never drafted an end again.
    """
    row, draft = outbox.stats.run(run_id), None
    if row is not None and row["state"] == RunState.RUNNING:
        if (missing := absent(row["type"])) is not None:
            raise missing.error
        draft = _drafted(row["type"], run_id, state, results, error)
    try:
        return outbox.registry.end_run(run_id, state, completion=draft)
    except HubqueueError:
        raise
    except Exception:  # a draft that no row can have
        if draft is None:
            raise
        _LOG.exception("run %s: the end that its destination drafted cannot be saved", run_id)
        return outbox.registry.end_run(run_id, state)


def _drafted(
    type: str, run_id: str, state: RunState, results: Mapping[str, object] | None, error: str | None
) -> Draft | None:
    completion = of_row(type).completion
    if completion is None:
        return None
    try:
        return completion(state, results=results, error=error)
    except Exception:  # code of a plugin: it must not stop the janitor for all other runs
        _LOG.exception("run %s: its destination cannot draft the end", run_id)
        return None
