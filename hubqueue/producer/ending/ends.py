"""How one process ends a run, which other processes may have ended or may still be training."""

from __future__ import annotations

from contextlib import suppress

from hubqueue.domain.errors import HubqueueError
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox import presence
from hubqueue.outbox.outbox import Outbox
from hubqueue.producer.called_with import Ending
from hubqueue.producer.ending.departure import Departure
from hubqueue.producer.opening import Opening
from hubqueue.producer.sharing import SHARED
from hubqueue.producer.survival import logger
from hubqueue.worker.closing import ANY, WAIT_FOR_OTHERS, Closed, close_run, stop_waiting

_LOG = logger()


class Ends:
    """The ends of one run, as this process sees them. The lock of the run guards it.

    `leaving`: the process is ending, so what it saves now does not make a run that has ended running again.
    `other` is the state that another process had set, for `Leftover`. `waits`: the end is not sent yet, because another
    process of the run lives.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self.leaving = False
        self.other: RunState | None = None
        self.waits = False

    def end(self, ending: Ending) -> None:
        """Record the end that the script has chosen. Durable on return. Raises the `OutboxError`s."""
        outbox, run_id = self._opening.opened()
        if ending.yields and presence.others_live(outbox.run_lock(run_id)):
            self._opening.ended()
            # Checked again, as in `leave`: the other one may have ended in the same way meanwhile.
            if not stop_waiting(outbox, run_id):
                _LOG.warning("run %s: another process trains it; it decides how the run ends", run_id)
                return
        closed = close_run(outbox, run_id, ending.state, results=ending.results, error=ending.error, over=ANY)
        # Released before the look at the others: of two that end at the same time, one finds itself the last.
        self._opening.ended()
        self.waits = closed.waits
        with suppress(HubqueueError):  # the end is recorded; a worker notices that nobody is left
            if (closed.waits or not closed) and stop_waiting(outbox, run_id):
                self.waits = False
        self._report(run_id, ending.state, closed)

    def leave(self, departure: Departure) -> bool:
        """Record the end of a process that has not ended its run, unless another process decides how the run ends.

        Returns whether it was recorded, and depends on the exit code.
        """
        outbox, run_id = self._opening.outbox, self._opening.run_id
        assert outbox is not None and run_id is not None
        self._opening.leave()
        with SHARED.used(outbox):
            if not stop_waiting(outbox, run_id):
                return False
            wait = not departure.certain
            state = RunState(departure.status)
            return bool(close_run(outbox, run_id, state, error=departure.error, wait=wait)) and wait

    def continued(self, outbox: Outbox, run_id: str, ended: str) -> None:
        """Log that this process continues a run that had `ended`. Never raises, because what continues it is saved."""
        newest = None
        with suppress(HubqueueError):
            newest = outbox.stats.newest_end(run_id)
            self._opening.continued()
        sent = "; the hub has received that end already" if newest and newest["state"] == "delivered" else ""
        _LOG.warning(
            "run %s: it was set to %s while this process trains; it continues%s", run_id, ended, sent
        )

    def _report(self, run_id: str, state: RunState, closed: Closed) -> None:
        if closed.before not in (None, RunState.RUNNING):
            self.other = closed.before
            now = f"it is {state} now" if closed else "that end stays"
            sent = "; the hub has received the earlier end" if closed.was_sent else ""
            _LOG.warning("run %s: another process had set it to %s; %s%s", run_id, closed.before, now, sent)
        if self.waits:
            _LOG.warning(
                "run %s: another process of this run lives; its end is sent when that has ended, at most %d s later",
                run_id,
                WAIT_FOR_OTHERS.total_seconds(),
            )
