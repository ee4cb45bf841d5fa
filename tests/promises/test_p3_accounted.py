"""P3: at every moment enqueued = pending + delivered + dead + superseded + cancelled.

Random moves of many entries; after each step the equation holds, the rows agree with the counters, and no entry
has disappeared without a state.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import template
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stage import KINDS, TERMS, ckpt, log

from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import LeaseLost
from hubqueue.domain.lane import Lease
from hubqueue.domain.outcome import Remote, Scope
from hubqueue.outbox.moves.claim import Terms
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.testing import FakeClock

pytestmark = pytest.mark.usefixtures("migrated_home")

PACES = {Kind.METRICS: TERMS.lease / 20, Kind.CKPT: TERMS.lease * 15}
WORKERS = tuple(Terms(f"worker-{n}", TERMS.lease, 5, 1 << 20) for n in range(3))


class Lives(RuleBasedStateMachine):
    """Enqueue, claim, settle, expire, redrive, cancel, prune, clock jumps, several workers."""

    home: Path

    @initialize()
    def open(self) -> None:
        Lives.count = getattr(Lives, "count", 0) + 1
        self.clock = FakeClock()
        home = template.lay(self.home / str(Lives.count))
        self.outbox: Outbox = open_outbox(home, environ={}, clock=self.clock)
        self.outbox.note_destinations()
        self.runs = [
            self.outbox.registry.start_run(destination="hub", model="m", kinds=KINDS, remote_id=name)[0]
            for name in ("a", "b")
        ]
        self.leases: list[Lease] = []
        self.enqueued = 0
        self.starts: dict[int, float] = {}

    @rule(run=st.integers(0, 1), epoch=st.integers(0, 12))
    def log(self, run: int, epoch: int) -> None:
        log(self.outbox, self.runs[run], epoch)
        self.enqueued += 1

    @rule(run=st.integers(0, 1), key=st.sampled_from(["last", "best", "final"]))
    def save(self, run: int, key: str) -> None:
        ckpt(self.outbox, self.runs[run], key, final=key == "final", rank=-self.enqueued)
        self.enqueued += 1

    @rule(worker=st.sampled_from(WORKERS))
    def claim(self, worker: Terms) -> None:
        lease = self.outbox.claims.claim("hub", PACES, worker)
        if lease is None:
            return
        live = [
            each
            for each in self.leases
            if each.lane_id == lease.lane_id and each.until > self.outbox.database.now()
        ]
        assert not live, "a lane has two live leases"
        keys = [entry.key for entry in lease.batch.entries]
        assert len(keys) == len(set(keys)), "a batch has a key twice"
        final = any(entry.final for entry in lease.batch.entries)
        before, now = self.starts.get(lease.lane_id), self.clock.elapsed()
        if before is not None and not final:
            assert now - before >= PACES[lease.batch.kind].total_seconds(), "two request starts are too close"
        self.starts[lease.lane_id] = now
        self.leases.append(lease)

    @rule(
        index=st.integers(0, 5),
        how=st.sampled_from(["ack", "retry", "refuse", "release", "hold run", "hold all"]),
    )
    def settle(self, index: int, how: str) -> None:
        if index >= len(self.leases):
            return
        lease = self.leases.pop(index)
        settlement, now = self.outbox.settlement, self.outbox.database.now()
        try:
            match how:
                case "ack":
                    settlement.ack(lease, started_at=lease.claimed_at, remote=Remote())
                case "retry":
                    settlement.retry(lease, at=now, reason="503", started_at=lease.claimed_at)
                case "refuse" if len(lease.batch.entries) > 1:
                    settlement.split(lease, reason="400", started_at=lease.claimed_at)
                case "refuse":
                    settlement.bury(lease, reason="400", started_at=lease.claimed_at)
                case "release":
                    settlement.release(lease, reason="stop", started_at=lease.claimed_at)
                case "hold run":
                    settlement.release(lease, reason="404", started_at=lease.claimed_at, hold=Scope.RUN)
                case _:
                    settlement.release(
                        lease, reason="401", started_at=lease.claimed_at, hold=Scope.DESTINATION
                    )
        except LeaseLost:
            row = next(row for row in self.outbox.stats.attempts(limit=1000) if row["id"] == lease.attempt_id)
            assert row["outcome"] == "lost"

    @rule(seconds=st.sampled_from([0.5, 3, 70, 1000]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-31_536_000, -3600, 3600, 31_536_000]))
    def jump(self, seconds: float) -> None:
        self.clock.jump(seconds)

    @rule()
    def resume(self) -> None:
        self.outbox.registry.resume("hub")

    @rule()
    def redrive(self) -> None:
        self.outbox.entries.redrive()

    @rule(count=st.integers(1, 3))
    def cancel(self, count: int) -> None:
        ids = [row["id"] for row in self.outbox.stats.entries(limit=count)]
        self.outbox.entries.cancel(ids=ids)

    @rule()
    def prune(self) -> None:
        now = self.outbox.database.now()
        self.outbox.entries.prune(settled_before=now, ended_before=now)

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: Terms) -> None:
        self.outbox.claims.reclaim([worker.worker])
        self.leases = [each for each in self.leases if self._worker_of(each) != worker.worker]

    @invariant()
    def everything_is_accounted_for(self) -> None:
        counted = self.outbox.stats.totals()
        states = ("pending", "delivered", "dead", "superseded", "cancelled")
        assert counted["enqueued"] == self.enqueued == sum(counted[name] for name in states)
        assert counted["in_flight"] + counted["retrying"] <= counted["pending"]
        assert self.outbox.stats.miscounted() == []

    def teardown(self) -> None:
        self.outbox.close()

    def _worker_of(self, lease: Lease) -> str | None:
        rows = self.outbox.stats.attempts(limit=1000)
        return next((row["worker"] for row in rows if row["id"] == lease.attempt_id), None)


@pytest.mark.timeout(300)
def test_every_entry_stays_counted(tmp_path: Path) -> None:
    Lives.home = tmp_path
    machine = Lives.TestCase
    machine.settings = settings(
        max_examples=15,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )

    machine("runTest").runTest()


@pytest.mark.parametrize("state", ["dead", "superseded", "cancelled"])
def test_every_final_state_has_a_reason(outbox: Outbox, state: str) -> None:
    from stage import must_claim, new_run

    run = new_run(outbox)
    (first,) = log(outbox, run, 0)
    if state == "dead":
        outbox.settlement.bury(must_claim(outbox), reason="400 Bad Request", started_at=None)
    elif state == "superseded":
        log(outbox, run, 0)
    else:
        outbox.entries.cancel(ids=[first])

    row = next(row for row in outbox.stats.entries() if row["id"] == first)
    assert (row["state"], bool(row["reason"])) == (state, True)
