"""What a run still owes when its script is done with it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from hubqueue.errors import HubqueueError
from hubqueue.outbox import Outbox
from hubqueue.stats import Stats
from hubqueue.survival import hint_of

_LOG = logging.getLogger("hubqueue")


@dataclass(frozen=True, slots=True)
class Leftover:
    """What is still owed when `finish` returns; falsy when nothing is.

    `entries` and `bytes` wait in the outbox and are sent by the worker after this process has ended. `held` says
    why they wait for a person, if they do. `unsaved` counts metrics and checkpoints that never reached the disk.
    """

    entries: int = 0
    bytes: int = 0
    unsaved: int = 0
    held: str | None = None

    def __bool__(self) -> bool:
        return bool(self.entries or self.unsaved)


def count(stats: Stats, run_id: str, *, unsaved: int) -> Leftover:
    """What a run owes now. Raises the `OutboxError`s."""
    owed = stats.owed(run_id)
    row = stats.run(run_id)
    held = None
    if owed.held and row is not None:
        held = row["held"] or row["destination_held"] or "held"
    return Leftover(owed.entries, owed.bytes, unsaved, held)


def look(outbox: Outbox | None, run_id: str | None, *, unsaved: int) -> Leftover:
    """What a run owes now, as far as it can be told: what cannot be read counts as unsaved."""
    if outbox is None or run_id is None:
        return Leftover(unsaved=unsaved)
    try:
        return count(outbox.stats, run_id, unsaved=unsaved)
    except HubqueueError as error:
        _LOG.warning("what is left cannot be read: %s%s", error, hint_of(error))
        return Leftover(unsaved=max(1, unsaved))


def word(left: Leftover) -> str:
    """What is left, in one line with what to do."""
    parts = []
    if left.entries:
        goes_on = f"held: {left.held}" if left.held else "safe on the disk for the next worker"
        parts.append(f"{left.entries} uploads ({left.bytes} bytes) are still owed, {goes_on}")
    if left.unsaved:
        parts.append(f"{left.unsaved} could not be saved")
    return "; ".join(parts) + "; see: hubqueue status"
