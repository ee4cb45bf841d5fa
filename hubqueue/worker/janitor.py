"""The janitor: detects dead workers and trainings, and removes what is no longer needed.

Promises: it never touches an entry that is owed. Everything it removes was settled, or has no owner.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from datetime import timedelta

from hubqueue.domain.errors import ConfigError
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox import exits, presence
from hubqueue.outbox.locks import forget, is_held
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.salvage import salvage
from hubqueue.outbox.spool.ballast import Ballast
from hubqueue.worker import events
from hubqueue.worker.closing import RUNNING, WAIT_FOR_EXIT, close_run, correct, stop_waiting
from hubqueue.worker.events import Emit

# A snapshot is written before its row. It is an orphan only when it is older than any enqueue can take.
_ORPHAN_AGE = timedelta(hours=1)
_CHUNK = 1000


class Janitor:
    """Tidies one outbox."""

    def __init__(self, outbox: Outbox, emit: Emit) -> None:
        self._outbox = outbox
        self._emit = emit
        self._ballast = Ballast(outbox.home.ballast)

    def scan(self) -> None:
        """Take back the leases of dead workers, and record how the runs of dead processes ended. Cheap; often."""
        # No lock file: the worker belongs to another home on the same database, and its leases expire.
        locks = {row["id"]: self._outbox.worker_lock(row["id"]) for row in self._outbox.stats.workers()}
        gone = [worker for worker, lock in locks.items() if lock.exists() and not is_held(lock)]
        if gone:
            lanes = self._outbox.claims.reclaim(gone)
            self._outbox.registry.workers_left(gone)
            for worker in gone:
                forget(self._outbox.worker_lock(worker))
            self._emit(events.LeasesReclaimed(len(gone), lanes))
        for run_id in self._outbox.stats.running():
            lock = self._outbox.run_lock(run_id)
            # No lock file: the run belongs to another machine's home, whose janitor decides.
            if lock.exists() and not presence.lives(lock) and self._interrupt(run_id):
                self._emit(events.RunInterrupted(run_id))
        for each in exits.reported(self._outbox.home.locks):
            self._correct(each)
        for run_id in self._outbox.stats.waiting_ends(longer_than=WAIT_FOR_EXIT):
            if self._outbox.run_lock(run_id).exists():
                stop_waiting(self._outbox, run_id)
        self._outbox.registry.appoint_probes()

    def _correct(self, exit: exits.Exit) -> None:
        try:
            for run_id in correct(self._outbox, exit):
                self._emit(events.RunFailed(run_id, exit.code))
        except ConfigError:
            return  # as in `_interrupt`
        exits.forget(exit)

    def _interrupt(self, run_id: str) -> bool:
        try:
            return bool(close_run(self._outbox, run_id, RunState.INTERRUPTED, over=RUNNING))
        except ConfigError:
            return False  # `status` names the broken package; a scan after its repair ends the run

    def salvage(self) -> None:
        """Copy what can be read of damaged outboxes that were set aside. At the start, and rarely."""
        for saved in salvage(self._outbox):
            self._emit(events.Salvaged(str(saved.path), str(saved)))

    def tidy(self) -> None:
        """Prune what is finished and old, sweep orphans from the spool, keep the ballast ready. Rarely."""
        self.salvage()
        pruned = self.prune()
        swept = self._outbox.spool.sweep(self._kept, older_than=_ORPHAN_AGE, now=time.time())
        self._ballast.create()
        if pruned or swept:
            self._emit(events.Tidied(pruned, len(swept)))

    def _kept(self, names: Collection[str]) -> frozenset[str]:
        """The snapshots that are needed, and those that another outbox may need that uses the same folder."""
        kept = self._outbox.entries.snapshots_kept(names)
        if self._outbox.spool.is_alone():
            return kept
        ours = set(self._outbox.stats.run_ids())
        return kept | {name for name in names if name.partition("-")[0] not in ours}

    def prune(self) -> int:
        """Delete finished entries and attempts older than the configuration keeps. Returns how many."""
        now, keep = self._outbox.database.now(), self._outbox.config.outbox
        total = 0
        while True:
            gone = self._outbox.entries.prune(
                settled_before=now - keep.keep_delivered, ended_before=now - keep.keep_attempts, limit=_CHUNK
            )
            total += gone
            if gone < _CHUNK:
                return total
