"""The rows of destinations, runs and workers. Their holds are lifted here; a worker sets them when it settles."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Select, Update, and_, delete, insert, or_, select, update

from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.database.database import Database
from hubqueue.outbox.database.schema import EPOCH, destinations, lanes, runs, workers
from hubqueue.outbox.moves import remembered
from hubqueue.outbox.moves.counting import lock_lanes
from hubqueue.outbox.moves.enqueue import Entries
from hubqueue.outbox.moves.holds import any_held, appoint
from hubqueue.outbox.moves.readiness import OWING
from hubqueue.outbox.moves.saved import find_saved


@dataclass(frozen=True, slots=True)
class Lifted:
    """What `resume` lifted: the reason that held the destination, and how many runs were held."""

    destination: str | None
    runs: int


class Registry:
    """The rows that entries refer to."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._entries = Entries(database)

    def start_run(
        self,
        *,
        destination: str,
        model: str,
        kinds: Iterable[Kind],
        remote_id: str | None = None,
        url: str | None = None,
        resume: str | None = None,
        among: Collection[str] = (),
        new_id: str | None = None,
        name: str | None = None,
        together: str | None = None,
        registration: Mapping[bool, Draft] | None = None,
        unsure_after: int | None = None,
    ) -> tuple[str, bool]:
        """A new run with its lanes, or one that continues: `resume`, or the latest of the same remote model.

        Returns its id, and whether it continues. `destination` is the name of a row (see addresses.py); `resume` is the
        id of a run ("last": the newest one) of that row or of one `among` others; a run of any other row is ignored. The id
        of its sibling at another destination will do too.
        `new_id` is the id of a new run. If the outbox has it already, an earlier call saved the run and its confirmation
        was lost. When a run continues, a completion that waits is not sent any more. A run continues under its own
        `new_id` in an outbox that is an older copy: there it gets the `remote_id` that it had.
        Without a registration lane no response will name the model: a new run goes under its own id.
        `name` is that of a new run. `together` is the id of the first of the runs of one training at several destinations
        (for the first itself: its `new_id`); a run that continues is joined to them, with its siblings.
        `registration` is what the run owes its destination first, by whether it continues. It is saved in the same
        transaction: nothing of a run without it is ever sent. It is not saved again when an entry with an id above
        `unsure_after` has it.
        """
        kinds = tuple(kinds)
        with self.database.write() as tx:
            now = self.database.now()
            found = self._resumable(tx, (destination, *among), resume, remote_id)
            if found is not None:
                tx.execute(_again(found))
                self._entries.outdate(tx, found, Kind.COMPLETION, "the run continues")
                if new_id == found and remote_id is not None:
                    self._name(tx, found, remote_id, url)
                if together is not None:
                    _join(tx, found, found if together == new_id else together)
                run_id = found
            elif new_id is not None and tx.execute(_again(new_id)).rowcount:
                run_id = new_id
            else:
                run_id = new_id or new_run_id()
                if Kind.REGISTRATION not in kinds:
                    remote_id = remote_id or run_id
                row = {"destination": destination, "model": model, "remote_id": remote_id, "url": url}
                row |= {"name": name, "together": None if together is None else _common(tx, together)}
                tx.execute(insert(runs).values(id=run_id, state=RunState.RUNNING, created_at=now, **row))
            _add_lanes(tx, run_id, kinds)
            draft = (registration or {}).get(found is not None)
            if draft is not None and (
                unsure_after is None or find_saved(tx, run_id, draft, after=unsure_after) is None
            ):
                self._entries.put(tx, run_id, draft)
            return run_id, found is not None

    def _name(self, tx: Connection, run_id: str, remote_id: str, url: str | None) -> None:
        """Note the model of a run in an outbox that is older than its registration, which would make another model."""
        unnamed = and_(runs.c.id == run_id, runs.c.remote_id.is_(None))
        if tx.execute(update(runs).where(unnamed).values(remote_id=remote_id, url=url)).rowcount:
            self._entries.outdate(tx, run_id, Kind.REGISTRATION, "the hub has this model")

    def adopt_run(self, run: Mapping[str, Any], *, kinds: Iterable[Kind], drafts: Collection[Draft]) -> bool:
        """Take over a run from another outbox, with what it owes, in one transaction; False when it is here already.

        Its training process has lost its outbox, so a run that had not ended counts as interrupted.
        """
        with self.database.write() as tx:
            if tx.scalar(select(runs.c.id).where(runs.c.id == run["id"])) is not None:
                return False
            kept = ("id", "destination", "model", "remote_id", "url")
            ended = run["state"] if run["state"] != RunState.RUNNING else RunState.INTERRUPTED
            now = self.database.now()
            row = {each: run[each] for each in kept} | _texts(run, "name", "together")
            row |= {"state": ended, "created_at": now, "finished_at": now}
            tx.execute(insert(runs).values(row))
            newest, *before = (run[column.name] for column in remembered.COLUMNS)
            known = remembered.read(newest, *before) or remembered.read(None, *before)
            if known:
                tx.execute(update(runs).where(runs.c.id == run["id"]).values(remembered.written(known)))
            wanted = {*kinds, *(draft.kind for draft in drafts)}
            tx.execute(insert(lanes), [{"run_id": run["id"], "kind": kind} for kind in sorted(wanted)])
            for draft in drafts:
                self._entries.put(tx, run["id"], draft)
            return True

    def revive(self, run_id: str) -> None:
        """Mark an interrupted run as running again: its process lives and holds a lock of the run."""
        with self.database.write() as tx:
            self._entries.continue_run(tx, run_id, RunState.INTERRUPTED)

    def end_run(
        self,
        run_id: str,
        state: RunState,
        *,
        completion: Draft | None = None,
        over: Collection[RunState] = (RunState.RUNNING,),
        wait: timedelta = timedelta(0),
    ) -> bool:
        """Record how a run ended; False, and nothing is changed, unless its state is one of `over`.

        `completion` is what the hub expects about the end, saved in the same transaction. It replaces an end that was
        not sent yet, and is not sent before `wait` is over.
        """
        with self.database.write() as tx:
            now = self.database.now()
            which = and_(runs.c.id == run_id, runs.c.state.in_(over))
            if tx.execute(update(runs).where(which).values(state=state, finished_at=now)).rowcount == 0:
                return False
            if completion is not None:
                # A newer version of a destination may expect an end that its older runs have no lane for.
                _add_lanes(tx, run_id, [completion.kind])
                self._entries.outdate(tx, run_id, completion.kind, f"replaced: the run is {state}")
                self._entries.put(tx, run_id, completion)
                lane = and_(lanes.c.run_id == run_id, lanes.c.kind == completion.kind)
                tx.execute(update(lanes).where(lane).values(retry_at=now + wait if wait else EPOCH))
            return True

    def end_wait(self, run_id: str) -> None:
        """Let the end of a run be sent now: there is no other process to wait for."""
        with self.database.write() as tx:
            lane = and_(
                lanes.c.run_id == run_id, lanes.c.kind == Kind.COMPLETION, lanes.c.failures == 0, OWING
            )
            tx.execute(update(lanes).where(lane).values(retry_at=EPOCH))

    def note_unsaved(self, run_id: str, count: int, why: str) -> None:
        """Record that `count` more metrics and checkpoints of a run could not be saved, and the reason for the last one."""
        with self.database.write() as tx:
            more = {"unsaved": runs.c.unsaved + count, "unsaved_why": why}
            tx.execute(update(runs).where(runs.c.id == run_id).values(more))

    def resume(self, destination: str) -> Lifted:
        """Lift the hold of a destination and those of its runs, and end their backoff: they are tried now.

        This applies to all rows of that destination, at any address. Paces, and a wait that the hub asked for, stay.
        """
        theirs = select(destinations.c.name).where(destinations.c.label == destination)
        with self.database.write() as tx:
            again = lanes.c.run_id.in_(select(runs.c.id).where(runs.c.destination.in_(theirs)))
            waits = and_(again, or_(OWING, lanes.c.kind == Kind.HEARTBEAT))
            lock_lanes(tx, waits)
            tx.execute(update(lanes).where(waits).values(retry_at=EPOCH))
            which = and_(destinations.c.label == destination, destinations.c.held.is_not(None))
            held = tx.scalar(select(destinations.c.held).where(which).limit(1))
            tx.execute(update(destinations).where(which).values(held=None, held_at=None))
            freed = update(runs).where(runs.c.destination.in_(theirs), runs.c.held.is_not(None))
            # A run may be held because this is damaged: resuming it replaces the damaged value.
            repaired = {"held": None, "remembered": remembered.REPAIRED}
            return Lifted(held, tx.execute(freed.values(repaired)).rowcount)

    def appoint_probes(self) -> int:
        """Let other lanes probe a hold whose own lanes cannot (see holds.py). Returns how many lanes may."""
        with self.database.read() as connection:
            if not any_held(connection):
                return 0
        with self.database.write() as tx:
            return appoint(tx, self.database.now())

    def worker_started(self, worker: str, *, pid: int, host: str, version: str) -> None:
        """Add a worker to the list."""
        with self.database.write() as tx:
            now = self.database.now()
            tx.execute(
                insert(workers).values(
                    id=worker, pid=pid, host=host, version=version, started_at=now, seen_at=now
                )
            )

    def worker_seen(self, worker: str) -> None:
        """Record that a worker is running."""
        with self.database.write() as tx:
            tx.execute(update(workers).where(workers.c.id == worker).values(seen_at=self.database.now()))

    def workers_left(self, gone: Iterable[str]) -> None:
        """Remove workers from the list: one that stopped, or those whose process is gone."""
        with self.database.write() as tx:
            tx.execute(delete(workers).where(workers.c.id.in_(list(gone))))

    def _resumable(
        self, tx: Connection, among: Collection[str], resume: str | None, remote_id: str | None
    ) -> str | None:
        theirs = select(runs.c.id).where(runs.c.destination.in_(among))
        newest = theirs.order_by(runs.c.created_at.desc(), runs.c.id).limit(1)
        if resume == "last":
            found = tx.scalar(newest)
        elif resume is not None:
            found = tx.scalar(theirs.where(runs.c.id == resume)) or tx.scalar(_sibling(theirs, resume))
        else:
            found = None
        if found is None and remote_id is not None:
            found = tx.scalar(newest.where(runs.c.remote_id == remote_id))
        return found


def new_run_id() -> str:
    """An id for a run, before it is in any outbox."""
    return secrets.token_hex(6)


def _texts(run: Mapping[str, Any], *columns: str) -> dict[str, str | None]:
    """Columns that may be missing or damaged."""
    return {each: found if isinstance(found := run.get(each), str) else None for each in columns}


def _sibling(theirs: Select[tuple[str]], run_id: str) -> Select[tuple[str]]:
    """Of some runs, the newest of the same training as another one."""
    common = select(runs.c.together).where(runs.c.id == run_id).scalar_subquery()
    return theirs.where(runs.c.together == common).order_by(runs.c.created_at.desc(), runs.c.id).limit(1)


def _common(tx: Connection, first: str) -> str:
    """What the runs of one training have in `together`: the id of the first one, unless that was joined to others."""
    found: str | None = tx.scalar(select(runs.c.together).where(runs.c.id == first))
    return found or first


def _join(tx: Connection, run_id: str, first: str) -> None:
    """Make a run that existed before, and its siblings, runs of the same training as the first one."""
    common = _common(tx, first)
    before = tx.scalar(select(runs.c.together).where(runs.c.id == run_id))
    if before is not None and tx.scalar(select(runs.c.id).where(runs.c.id == first)) is None:
        return  # the first one is not here yet: it will be joined to this one
    which = runs.c.id == run_id if before is None else runs.c.together == before
    if before != common:
        tx.execute(update(runs).where(which).values(together=common))


def _again(run_id: str) -> Update:
    return update(runs).where(runs.c.id == run_id).values(state=RunState.RUNNING, finished_at=None)


def _add_lanes(tx: Connection, run_id: str, kinds: Iterable[Kind]) -> None:
    """Give a run the lanes of these kinds that it has not."""
    have = set(tx.scalars(select(lanes.c.kind).where(lanes.c.run_id == run_id)))
    missing = [{"run_id": run_id, "kind": kind} for kind in kinds if kind not in have]
    if missing:
        tx.execute(insert(lanes), missing)
