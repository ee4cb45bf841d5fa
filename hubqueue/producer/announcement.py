"""The one line that a run begins with: what it is called, where it goes, whether there is a key, how to look at it.

It is a record of the logger "hubqueue", of level INFO, or WARNING where something is missing. Where no logging is set up
at all, Python would drop the former: then it is written to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import sys

from hubqueue.config.reader import DestinationSettings
from hubqueue.domain.account import origin
from hubqueue.outbox.addresses import Address
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.reach import cure, obstacle

_LOG = logging.getLogger("hubqueue")


def announce(
    outbox: Outbox, target: DestinationSettings, run_id: str, *, continues: bool, resume: str | None = None
) -> None:
    """Say that a run has begun, or continues."""
    row = outbox.stats.run(run_id)
    if row is None:
        return
    address = Address.of_run(row)
    begun = f"run {run_id}" + (" continues" if continues else "")
    where = f"{target.name} ({origin(address.url)})"
    if resume not in (None, "last", run_id):
        _say(logging.WARNING, f"there is no run {resume} of {where} with this key; a new one begins")
    missing = obstacle(outbox, address)
    if row["destination_held"]:
        why = f"on hold: {row['destination_held']}"
        advice = f"everything is saved; {cure(target.name, target.url, row['destination_held'])}"
    elif missing is not None:
        why, advice = missing.what, f"everything is saved until then; {missing.hint}"
    else:
        why = "key found"
        advice = f'look: hubqueue status --run {run_id}; continue it later: resume="{run_id}"'
    level = logging.INFO if why == "key found" else logging.WARNING
    _say(level, f"{begun} to {where}, {why}; {advice}")


def _say(level: int, text: str) -> None:
    if _LOG.isEnabledFor(level) and (_LOG.hasHandlers() or level >= logging.WARNING):
        _LOG.log(level, "%s", text)
    elif not _LOG.hasHandlers() and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # a full disk, a closed pipe
            sys.stderr.write(f"hubqueue: {text}\n")
