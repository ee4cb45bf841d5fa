"""The state machine: random moves of producers, workers and operators on one outbox, checked after each move."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import traceback
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import bindparam, literal_column, select, update
from stage import totals
from torture.frame import new_report

from hubqueue.config.registry import declaration
from hubqueue.domain.budget import Budget
from hubqueue.domain.drafts import FINAL_RANK, metrics_draft
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.errors import LeaseLost
from hubqueue.domain.lane import Lease
from hubqueue.domain.lifecycle import RunState, State
from hubqueue.domain.outcome import Remote, Scope
from hubqueue.outbox.database.prepared import Prepared
from hubqueue.outbox.database.schema import entries, lanes
from hubqueue.outbox.moves.claim import Terms
from hubqueue.outbox.outbox import open_outbox
from hubqueue.producer.intake import open_run
from hubqueue.testing import FakeClock
from hubqueue.worker.closing import close_run

SENTENCE = (
    "after every move the entries add up, a lane has one holder and keeps its order and its spacing, tokens only rise, a "
    "stale one settles nothing, a repeated batch has the same key, and the newest value of an epoch has every name of it"
)
_SHARE = 250  # examples per seed
_MOST_SEEDS = 8  # of a control, until its defect is noticed
SCALES = {"quick": (20, 30), "normal": (300, 60), "full": (5000, 100)}
PACES = {Kind.REGISTRATION: 0.0, Kind.METRICS: 3.0, Kind.CKPT: 900.0, Kind.EVENT: 3.0, Kind.COMPLETION: 0.0}
_PACES = {kind: timedelta(seconds=pace) for kind, pace in PACES.items()}
COUNTS: Counter[str] = Counter()
_BUDGET = Budget(requests=30, uploads=10, per_claim=declaration("platform").costs)
_YEAR = 365 * 86_400.0
_WORKERS = ("worker-1", "worker-2", "worker-3")
_SHARED = Path("/dev/shm")
# Holds are rare: a held lane does nothing until it is resumed.
_OFTEN = ("ack", "ack", "retry", "retry", "asked to wait", "split", "bury", "release")
_SETTLES = st.sampled_from((*_OFTEN, *_OFTEN, "hold run", "hold all"))


class OutboxMachine(RuleBasedStateMachine):
    """One outbox on its own clock, and the expected state."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(
            tempfile.mkdtemp(prefix="hubqueue-rules-", dir=_SHARED if _SHARED.is_dir() else None)
        )
        self.clock = FakeClock()
        self.outbox = open_outbox(self.folder / "home", environ={}, clock=self.clock)
        self.runs: list[tuple[str, str]] = []  # destination, run id
        self.leases: list[Lease] = []
        self.tokens: dict[int, int] = {}
        self.starts: dict[int, float] = {}
        self.keys: dict[tuple[int, ...], str] = {}
        self.claimed: set[int] = set()
        self.rows: dict[int, Counter[str]] = defaultdict(Counter)
        self.probes: dict[tuple[str, datetime | None], float] = {}  # by destination and beginning of its hold
        self.number = 0
        for destination in ("hub", "hub", "platform"):
            self._begin(destination, None)
            for epoch in range(5):
                self._enqueue(len(self.runs) - 1, metrics_draft("{}", epoch))

    def teardown(self) -> None:
        self.outbox.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # The producer.

    @rule(which=st.integers(0, 2), epoch=st.integers(0, 9), value=st.integers(0, 3))
    def log(self, which: int, epoch: int, value: int) -> None:
        name, run_id = ("loss", "loss", "map", "lr")[value], self.runs[which][1]
        before = self._names().get((run_id, str(epoch)), [])
        self._enqueue(which, metrics_draft(f'{{"{name}": {value}}}', epoch))
        newest = self._names()[run_id, str(epoch)][-1]
        assert newest == {name}.union(*before), "an epoch has not the names of all calls"

    @rule(which=st.integers(0, 2), key=st.sampled_from(("last", "best", "final")))
    def save(self, which: int, key: str) -> None:
        self.number += 1
        final = key == "final"
        replaces = ("last", "best") if final else ()
        rank = FINAL_RANK if final else self.number
        payload = f'{{"final": {str(final).lower()}, "epoch": {self.number}}}'
        self._enqueue(which, Draft(Kind.CKPT, key, rank, payload, final=final, replaces=replaces))

    @rule(which=st.integers(0, 2), state=st.sampled_from((RunState.FINISHED, RunState.FAILED)))
    def end(self, which: int, state: RunState) -> None:
        close_run(self.outbox, self.runs[which][1], state)

    @rule(which=st.integers(0, 2))
    def go_on(self, which: int) -> None:
        destination, run_id = self.runs[which]
        assert self._begin(destination, run_id) == run_id

    # The workers.

    @rule(
        worker=st.sampled_from(_WORKERS),
        destination=st.sampled_from(("hub", "platform")),
        late=st.sampled_from((0.0, 0.0, 4.0, 61.0)),
    )
    def claim(self, worker: str, destination: str, late: float) -> None:
        self.clock.advance(late)
        if self._claim(worker, destination) is None:
            self.outbox.registry.resume(destination)
            self._claim(worker, "platform" if destination == "hub" else "hub")

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), worker=st.sampled_from(_WORKERS), how=_SETTLES)
    def take_over_and_settle(self, data: st.DataObject, worker: str, how: str) -> None:
        """The lease expires, another worker claims the lane, and then the first one settles."""
        self.clock.advance(901.0)
        lease = data.draw(st.sampled_from(self.leases))
        for _ in range(4):
            self._claim(worker, lease.batch.run.destination)
        self._settle(lease, how)

    def _claim(self, worker: str, destination: str) -> Lease | None:
        budget = _BUDGET if destination == "platform" else Budget()
        terms = Terms(worker, timedelta(seconds=60), 3, 1 << 20, budget=budget, resumes_from_last=True)
        now = self.outbox.database.now()
        waiting = self._waiting()
        holds = {row["name"]: (row["held"], row["held_at"]) for row in self.outbox.stats.destinations()}
        lease = self.outbox.claims.claim(destination, _PACES, terms)
        if lease is None:
            return None
        COUNTS["claims"] += 1
        batch = lease.batch
        holders = [
            each
            for each in self.leases
            if each.lane_id == lease.lane_id and each.token == self.tokens[lease.lane_id]
        ]
        assert not any(each.until > now for each in holders), "two workers hold one lane"
        assert lease.token > self.tokens.get(lease.lane_id, 0), "a token did not increase"
        ranks = [waiting[entry.id] for entry in batch.entries]
        assert ranks == sorted(ranks), "a batch is out of order"
        ids = tuple(entry.id for entry in batch.entries)
        # A released batch keeps its position, whatever was logged or cancelled meanwhile.
        if self.claimed.isdisjoint(ids):
            fresh = [rank for rank, attempts in self._lane(lease.lane_id) if attempts == 0]
            assert not fresh or ranks[0] <= min(fresh), "an earlier entry was passed over"
        if batch.kind is Kind.CKPT and not batch.entries[0].final:
            rows = self.outbox.stats.entries(
                state=State.DELIVERED, run_id=batch.run.id, kind="ckpt", limit=1000
            )
            assert all(row["id"] < ids[0] for row in rows), "the hub would resume from an older checkpoint"
        self._check_turn(lease)
        elapsed = self.clock.elapsed()
        self._check_probe(lease, *holds[batch.run.destination], elapsed)
        since = elapsed - self.starts.get(lease.lane_id, -1e18)
        assert any(entry.final for entry in batch.entries) or since >= PACES[batch.kind], (
            f"{since} s after the last start"
        )
        assert self.keys.setdefault(ids, batch.idempotency_key) == batch.idempotency_key, (
            "another key for a batch"
        )
        self.claimed.update(ids)
        self.starts[lease.lane_id], self.tokens[lease.lane_id] = elapsed, lease.token
        self.leases.append(lease)
        return lease

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), how=_SETTLES)
    def settle(self, data: st.DataObject, how: str) -> None:
        self._settle(data.draw(st.sampled_from(self.leases)), how)

    def _settle(self, lease: Lease, how: str) -> None:
        self.leases.remove(lease)
        stale = lease.token != self.tokens[lease.lane_id]
        COUNTS["stale settles" if stale else "settles"] += 1
        try:
            self._settling(lease)[how]()
        except LeaseLost:
            assert stale, "the holder of the newest token was refused"
        else:
            assert not stale, "a stale token settled something"

    def _settling(self, lease: Lease) -> dict[str, Callable[[], object]]:
        settlement, now = self.outbox.settlement, self.outbox.database.now()
        remote = (
            Remote(id=f"model-{lease.batch.run.id}") if lease.batch.kind is Kind.REGISTRATION else Remote()
        )
        report: dict[str, Any] = {"reason": "refused", "started_at": lease.claimed_at}
        soon, late = now + timedelta(seconds=5), now + timedelta(seconds=40)
        several = len(lease.batch.entries) > 1
        return {
            "ack": lambda: settlement.ack(lease, started_at=lease.claimed_at, remote=remote),
            "retry": lambda: settlement.retry(lease, at=soon, **report),
            "asked to wait": lambda: settlement.retry(lease, at=late, resumes_at=late, **report),
            "split": lambda: (
                settlement.split(lease, **report) if several else settlement.bury(lease, **report)
            ),
            "bury": lambda: settlement.bury(lease, **report),
            "release": lambda: settlement.release(lease, **report),
            "hold run": lambda: settlement.release(lease, hold=Scope.RUN, **report),
            "hold all": lambda: settlement.release(lease, hold=Scope.DESTINATION, **report),
        }

    @rule(worker=st.sampled_from(_WORKERS))
    def reclaim(self, worker: str) -> None:
        self.outbox.claims.reclaim([worker])
        self.leases = [each for each in self.leases if not self._is_of(each, worker)]

    def _is_of(self, lease: Lease, worker: str) -> bool:
        found = [each for each in self.outbox.stats.attempts(limit=10_000) if each["id"] == lease.attempt_id]
        return bool(found) and found[0]["worker"] == worker

    # The operator, and time.

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        known = [each["id"] for each in self.outbox.stats.entries(limit=1000)]
        if known:
            self.outbox.entries.cancel(ids=[data.draw(st.sampled_from(known))])

    @rule(which=st.integers(0, 2))
    def cancel_run(self, which: int) -> None:
        self.outbox.entries.cancel(run_id=self.runs[which][1])

    @rule()
    def redrive(self) -> None:
        self.outbox.entries.redrive()

    @rule(destination=st.sampled_from(("hub", "platform")))
    def resume(self, destination: str) -> None:
        self.outbox.registry.resume(destination)

    @rule()
    def prune(self) -> None:
        now = self.outbox.database.now()
        self.outbox.entries.prune(
            settled_before=now - timedelta(seconds=30), ended_before=now - timedelta(days=400)
        )

    @rule(seconds=st.sampled_from((0.5, 1.0, 3.0, 10.0, 61.0, 901.0)))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(years=st.sampled_from((-1, 1)))
    def jump(self, years: int) -> None:
        self.clock.jump(years * _YEAR)

    @invariant()
    def adds_up(self) -> None:
        totals(self.outbox)  # asserts the identity, and that the rows say the same
        self.rows = defaultdict(Counter)
        for entry in self.outbox.stats.entries(limit=10_000):
            self.rows[entry["lane_id"]][entry["state"]] += 1
        for run in self.outbox.stats.runs(finished=None):
            for lane in run["lanes"]:
                rows = self.rows[lane["id"]]
                for state in ("pending", "dead"):
                    assert lane[state] == rows[state], f"{lane['kind']}: {state} is miscounted"
                for state in ("delivered", "superseded", "cancelled"):  # some of these were pruned
                    assert lane[state] >= rows[state], f"{lane['kind']}: {state} is miscounted"
                states = ("pending", "delivered", "dead", "superseded", "cancelled")
                assert lane["enqueued"] == sum(lane[name] for name in states)

    @invariant()
    def keeps_every_name(self) -> None:
        """Of the metrics of an epoch that wait or are delivered, the newest has all names: the hub stores what arrives last."""
        for each in self._names().values():
            assert each[-1] >= set().union(*each), (
                "a value of an epoch would be replaced by one without its names"
            )

    def _names(self) -> dict[tuple[str, str], list[set[str]]]:
        """By run and epoch: the names in the metrics that wait or are delivered, oldest first."""
        live = entries.c.state.in_(("pending", "delivered"))
        query = select(lanes.c.run_id, entries.c.key, entries.c.payload).join(lanes)
        query = query.where(live, lanes.c.kind == "metrics").order_by(entries.c.id)
        names: dict[tuple[str, str], list[set[str]]] = defaultdict(list)
        with self.outbox.database.read() as connection:
            for run_id, key, payload in connection.execute(query):
                names[run_id, key].append(set(json.loads(payload)))
        return names

    def _begin(self, destination: str, resume: str | None) -> str:
        target = self.outbox.config.destination(destination)
        model = f"{len(self.runs):020d}" if destination == "hub" and resume is None else "yolo26n.pt"
        named = declaration(target.type).identify(model, target)
        run_id, _ = open_run(self.outbox, named, {}, target, resume=resume)
        if resume is None:
            self.runs.append((destination, run_id))
        return run_id

    def _enqueue(self, which: int, draft: Draft) -> None:
        self.outbox.entries.enqueue(self.runs[which][1], draft)

    def _waiting(self) -> dict[int, tuple[int, int]]:
        found = self.outbox.stats.entries(limit=10_000)
        return {each["id"]: (each["rank"], each["id"]) for each in found if each["state"] == "pending"}

    def _lane(self, lane_id: int) -> list[tuple[tuple[int, int], int]]:
        """Rank and attempts of the entries that wait in a lane outside any batch."""
        found = self.outbox.stats.entries(limit=10_000)
        mine = [each for each in found if each["lane_id"] == lane_id and each["state"] == "pending"]
        return [((each["rank"], each["id"]), each["attempts"]) for each in mine if each["batch"] is None]

    def _check_probe(self, lease: Lease, held: str | None, since: datetime | None, elapsed: float) -> None:
        """What is on hold sends one probe, and the next one a minute later at the earliest."""
        of_destination = lease.probe is not None and lease.probe.scope is Scope.DESTINATION
        assert of_destination == (held is not None), "sent during a hold"
        if of_destination:
            hold = (lease.batch.run.destination, since)
            assert elapsed - self.probes.get(hold, -1e18) >= 60.0, "two probes of one hold"
            self.probes[hold] = elapsed

    def _check_turn(self, lease: Lease) -> None:
        """Registration before everything else, the end of a run after it."""
        (run,) = self.outbox.stats.runs(run_id=lease.batch.run.id)
        others = {lane["kind"]: lane["pending"] for lane in run["lanes"]}
        if lease.batch.kind is not Kind.REGISTRATION:
            assert lease.batch.run.remote_id is not None, "sent before it was registered"
            assert not others.get(Kind.REGISTRATION), "sent while it is registered again"
        if lease.batch.kind is Kind.COMPLETION:
            waiting = {kind: count for kind, count in others.items() if count and kind != Kind.COMPLETION}
            assert not waiting, f"the completion was sent before {waiting}"


def main(argv: list[str] | None = None) -> int:
    """Run the machine; 1 if the sentence is false."""
    report = new_report("rules", SENTENCE, argv)
    examples, steps = SCALES[report.scale]
    shares = -(-examples // _SHARE)
    with report.verdict(), ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        try:
            of_share = partial(_run, examples=examples // shares, steps=steps)
            counted = sum(pool.map(of_share, range(report.seed, report.seed + shares)), Counter())
        except AssertionError as error:
            report.require(False, f"{error}")
            raise
        counts = ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))
        report.write(f"{examples} examples of at most {steps} moves: {counts}")
        report.require(counted["stale settles"] > 0, "no stale token was tried: the moves are too simple")
        for name, found in zip(
            _CONTROLS, pool.map(partial(_control, seed_=report.seed), _CONTROLS), strict=True
        ):
            report.write(f"control: {name}: {found or 'not detected'}")
            report.require(bool(found), f"{name} was not detected")
    return report.exit_code


def _run(seed_: int, *, examples: int, steps: int) -> Counter[str]:
    """Run `examples` examples from one seed. Returns the counts. A process runs several seeds in turn."""
    COUNTS.clear()
    run_state_machine_as_test(seed(seed_)(OutboxMachine), settings=_limits(examples, steps))
    return COUNTS


def _limits(examples: int, steps: int, phases: tuple[Phase, ...] = tuple(Phase)) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def _fences_nothing(names: tuple[str, ...]) -> Prepared:
    values = {lanes.c[name]: bindparam(f"to_{name}", type_=lanes.c[name].type) for name in names}
    return Prepared(update(lanes).where(lanes.c.id == bindparam("lane")).values(values).returning(lanes.c.id))


# The defect, its location, and the replacement.
_CONTROLS: dict[str, tuple[str, object]] = {
    "a settle that compares no tokens": ("hubqueue.outbox.moves.settle._fenced", _fences_nothing),
    "a claim that keeps no spacing": (f"{__name__}._PACES", dict.fromkeys(Kind, timedelta())),
    "a move that is not counted": (
        "hubqueue.outbox.moves.counting._TALLY",
        Prepared(select(literal_column("1"))),
    ),
    "an enqueue that forgets earlier values": (
        "hubqueue.outbox.moves.merging.merged",
        lambda _tx, _lane, draft: draft,
    ),
    "a key for each attempt": (
        "hubqueue.outbox.moves.claim.idempotency_key",
        lambda *_content: str(uuid.uuid4()),
    ),
}


def _control(name: str, *, seed_: int) -> str:
    """The failed check on an outbox with a deliberate defect, or "" if no check failed: then the moves are too simple."""
    where, instead = _CONTROLS[name]
    with patch(where, instead):
        for each in range(seed_, seed_ + _MOST_SEEDS):
            try:
                run_state_machine_as_test(
                    seed(each)(OutboxMachine), settings=_limits(60, 60, phases=(Phase.generate,))
                )
            except AssertionError as noticed:
                return str(noticed).partition("\n")[0] or str(
                    traceback.extract_tb(noticed.__traceback__)[-1].line
                )
    return ""


if __name__ == "__main__":
    sys.exit(main())
