"""Who sends for a run: its worker for all destinations, made when it is first needed."""

from __future__ import annotations

from hubqueue.config.home import Home
from hubqueue.producer.ending import unfinished
from hubqueue.producer.senders import InProcess, NoSender, Sender, WorkerMode, sender
from hubqueue.producer.several.savings import Savings
from hubqueue.worker.daemon import worker_lives


class Sending:
    """The sender of one run. Nothing here raises a storage error, unless `strict`."""

    def __init__(self, savings: Savings, mode: WorkerMode, home: Home, config: str | None) -> None:
        self._savings, self._mode = savings, mode
        self._home, self._config = home, config
        self.sender: Sender | None = None

    @property
    def can_arrive(self) -> bool:
        """Whether something is sent while this process waits."""
        no_thread = isinstance(self.sender, InProcess) and not self.sender.sends
        return self._mode != "none" and not no_thread

    @property
    def has_worker(self) -> bool:
        """Whether a worker sends what is left."""
        return self._mode != "none" or worker_lives(self._home)

    def nudge(self) -> None:
        """Something was enqueued, or is waited for."""
        unfinished.abandon_dropped()
        self._savings.first.attempt("worker", lambda: self._made().nudge())

    def finish(self) -> None:
        """The run has ended: make sure that a worker sends what is left."""
        self._savings.first.attempt("worker", lambda: self._made().finish())

    def close(self, deadline: float) -> bool:
        """Stop before `deadline`, a moment of `time.monotonic()`. Returns whether something may have been sent meanwhile."""
        closed, self.sender = self.sender, None
        if closed is None:
            return False
        closed.close(deadline)
        return closed.sends

    def only_save(self) -> None:
        """From now on, this process sends nothing for the run, whatever the mode."""
        self.sender = NoSender()

    def _made(self) -> Sender:
        if self.sender is None:
            self._savings.first.opening.opened()
            self.sender = sender(self._mode, self._home, self._config, self._rows)
        return self.sender

    def _rows(self) -> list[str | None]:
        return [each.opening.column("destination") for each in self._savings.each]
