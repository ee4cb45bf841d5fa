"""What a run could not save: counted, with the last reason, and written down with the run as soon as that succeeds."""

from __future__ import annotations

from hubqueue.domain.redact import clean
from hubqueue.outbox.outbox import Outbox

_WHY = 300


class Unsaved:
    """The account of one run. Guarded by its run."""

    def __init__(self) -> None:
        self.lost = 0
        self.why: str | None = None
        self.noted = 0

    def lose(self) -> None:
        """Something will never be saved."""
        self.lost += 1

    def because(self, error: BaseException) -> None:
        """Why something could not be saved, for good or for now."""
        self.why = clean(str(error) or type(error).__name__, limit=_WHY)

    def note(self, outbox: Outbox, run_id: str, *, waiting: int = 0) -> None:
        """Write down with the run what is not there yet. `waiting` is lost too, unless it is saved after all.

        Raises the `OutboxError`s; then the next call does it.
        """
        more = self.lost + waiting - self.noted
        if more:
            outbox.registry.note_unsaved(run_id, more, self.why or "unknown reason")
            self.noted += more
