"""Counts what a run could not save, with the last reason, and records it with the run as soon as that succeeds."""

from __future__ import annotations

from hubqueue.domain.redact import clean
from hubqueue.outbox.outbox import Outbox

_WHY = 300


class Unsaved:
    """The count of one run. Not thread-safe; the lock of its run guards the counts."""

    def __init__(self) -> None:
        self.lost = 0
        self.why: str | None = None
        self.noted = 0

    def lose(self) -> None:
        """Count something that will never be saved."""
        self.lost += 1

    def because(self, error: BaseException) -> None:
        """Keep the reason why something could not be saved, permanently or for now."""
        self.why = clean(str(error) or type(error).__name__, limit=_WHY)

    def note(self, outbox: Outbox, run_id: str, *, waiting: int = 0) -> None:
        """Record losses with the run that are not recorded yet. `waiting` drafts count as lost until they are saved.

        Raises the `OutboxError`s; the next call then tries again.
        """
        more = self.lost + waiting - self.noted
        if more:
            outbox.registry.note_unsaved(run_id, more, self.why or "unknown reason")
            self.noted += more
