"""The first log line of a run: its id, its destination, whether a key was found, and how to see its status.

It is a record of the logger "hubqueue", at level INFO, or WARNING when something is missing. Without any logging
configuration Python drops INFO records, so the line is written to stderr instead.
"""

from __future__ import annotations

import contextlib
import logging
import sys

from hubqueue.config.reader import DestinationSettings
from hubqueue.config.registry import of_row
from hubqueue.domain.account import origin
from hubqueue.outbox.addresses import Address
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.reach import cure, obstacle
from hubqueue.producer.survival import logger

_LOG = logger()


def announce(
    outbox: Outbox, target: DestinationSettings, run_id: str, *, continues: bool, resume: str | None = None
) -> None:
    """Log that a run has started or is continued."""
    row = outbox.stats.run(run_id)
    if row is None:
        return
    address = Address.of_run(row)
    run = f"run {run_id}" + (" (continued)" if continues else "")
    where = f"{target.name} ({origin(address.url)})"
    if resume not in (None, "last", run_id):
        _log(logging.WARNING, f"there is no run {resume} at {where} with this key; a new run was started")
    missing = obstacle(outbox, address)
    if row["destination_held"]:
        state = f"on hold: {row['destination_held']}"
        advice = f"everything is saved; {cure(target.name, target.url, row['destination_held'])}"
    elif missing is not None:
        state, advice = missing.what, f"everything is saved until then; {missing.hint}"
    else:
        state = "key found" if of_row(address.type).secrets else "which needs no key"
        advice = f'status: hubqueue status --run {run_id}; to continue this run later: resume="{run_id}"'
    is_ready = missing is None and not row["destination_held"]
    level = logging.INFO if is_ready else logging.WARNING
    _log(level, f"{run} to {where}, {state}; {advice}")


def _log(level: int, text: str) -> None:
    if _LOG.isEnabledFor(level) and (_LOG.hasHandlers() or level >= logging.WARNING):
        _LOG.log(level, "%s", text)
    elif not _LOG.hasHandlers() and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # a full disk, a closed pipe
            sys.stderr.write(f"hubqueue: {text}\n")
