"""The end of a run, for the script, the command line and the janitor.

The last explicit end counts. `finish`, a `with` block and `hubqueue enqueue end` set the state of a run that is running,
interrupted, or ended by another process. A process that ends without them replaces only `running` and `interrupted`, the
janitor that finds a process dead only `running`. While another process of the run lives, the completion waits for it, up to
`WAIT_FOR_OTHERS`: that process may log more, and then the run continues.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta

from hubqueue.config.registry import absent, of_row
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.errors import HubqueueError
from hubqueue.domain.lifecycle import RunState, State
from hubqueue.outbox import presence
from hubqueue.outbox.exits import Exit
from hubqueue.outbox.moves.enqueue import taken_back
from hubqueue.outbox.outbox import Outbox

# The states that an end may replace: of the janitor, of a process without an explicit end, of an explicit one.
RUNNING = frozenset({RunState.RUNNING})
UNSAID = RUNNING | {RunState.INTERRUPTED}
ANY = frozenset(RunState)
# The longest waits before the end of a run is sent: for another process of the run, and for the exit code of this one.
# The janitor ends the first one when it finds no process (see `Stats.waiting_ends`), the second one with the code only.
WAIT_FOR_OTHERS = timedelta(minutes=10)
WAIT_FOR_EXIT = timedelta(minutes=1)
_LOG = logging.getLogger("hubqueue")


@dataclass(frozen=True, slots=True)
class Closed:
    """What `close_run` did; true if it recorded the end.

    `before` is the state before, None for an unknown run. `was_sent`: the hub has an earlier end already. `waits`: the end
    is sent when the other processes of the run have ended.
    """

    recorded: bool
    before: RunState | None = None
    was_sent: bool = False
    waits: bool = False

    def __bool__(self) -> bool:
        return self.recorded


def close_run(
    outbox: Outbox,
    run_id: str,
    state: RunState,
    *,
    results: Mapping[str, object] | None = None,
    error: str | None = None,
    over: Collection[RunState] = UNSAID,
    wait: bool = False,
) -> Closed:
    """End a run whose state is one of `over`, and enqueue a completion for a hub that expects one.

    `results` are those of a finished training; `error` is the reason of a failed one. Durable when this returns. An end
    that adds nothing to the one on record changes nothing. `wait`: the exit code of this process may change the end.
    Raises `ConfigError` while the package of its destination cannot be loaded: only that can draft the end.
    """
    row, draft, waits, delay = outbox.stats.run(run_id), None, False, timedelta(0)
    if row is None:
        return Closed(False)
    before = RunState(row["state"])
    newest = outbox.stats.newest_end(run_id) if before is not RunState.RUNNING else None
    was_sent = newest is not None and newest["state"] == State.DELIVERED
    if before not in over or (before is state and results is None and error is None):
        return Closed(False, before, was_sent)
    if (missing := absent(row["type"])) is not None and not missing.declared:
        raise missing.error
    if of_row(row["type"]).completion is not None:
        draft = _drafted(row["type"], run_id, state, results, error)
        if state is RunState.FINISHED and results is None:
            draft = _taken_back(outbox, run_id) or draft
        waits = presence.others_live(outbox.run_lock(run_id))
        delay = WAIT_FOR_OTHERS if waits else WAIT_FOR_EXIT if wait else delay
    try:
        recorded = outbox.registry.end_run(run_id, state, completion=draft, over=over, wait=delay)
    except HubqueueError:
        raise
    except Exception:  # a draft that no row can have
        if draft is None:
            raise
        _LOG.exception("run %s: the end that its destination drafted cannot be saved", run_id)
        recorded = outbox.registry.end_run(run_id, state, over=over)
    return Closed(recorded, before, was_sent, waits and draft is not None)


def correct(outbox: Outbox, exit: Exit) -> list[str]:
    """End the runs of a process as failed that had seemed to finish, and had another exit code than 0. Returns their ids.

    A process that died after its script had reached its end has finished.
    """
    failed = []
    for run_id in exit.runs:
        error, over = f"exit code {exit.code}", {RunState.FINISHED}
        if exit.code and close_run(outbox, run_id, RunState.FAILED, error=error, over=over):
            failed.append(run_id)
        stop_waiting(outbox, run_id)
    return failed


def stop_waiting(outbox: Outbox, run_id: str) -> bool:
    """Send the end of a run now, unless a process of the run lives. Call it when a process has left the run."""
    if presence.lives(outbox.run_lock(run_id)):
        return False
    outbox.registry.end_wait(run_id)
    return True


def _taken_back(outbox: Outbox, run_id: str) -> Draft | None:
    """The end of a finished run that another process continued: its results are still those of the training."""
    newest = outbox.stats.newest_end(run_id)
    if newest is None or newest["state"] != State.SUPERSEDED:
        return None
    if newest["reason"] != taken_back(RunState.FINISHED):
        return None
    return Draft(Kind.COMPLETION, newest["key"], newest["rank"], newest["payload"])


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
