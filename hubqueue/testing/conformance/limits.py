"""Limits: the pace of a lane, the wait that a service asks for, memory."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

from hubqueue.destinations.base import Kind
from hubqueue.domain.lifecycle import State
from hubqueue.testing.child import Plan
from hubqueue.testing.conformance.service import WAIT, Fault
from hubqueue.testing.conformance.stage import Stage
from hubqueue.testing.forks import work

_MIB = 1 << 20


class Limits:
    """Tests of limits (P5, P8).

    A checkpoint of `large` bytes is sent with at most `memory` bytes, of which libraries that are loaded meanwhile need
    some.
    """

    large = 48 * _MIB
    memory = 20 * _MIB

    def test_two_workers_keep_the_pace_of_a_lane(self, stage: Stage) -> None:
        stage.needs(Kind.METRICS)
        stage.configure(metrics=3)
        run = stage.start()
        stage.drain()
        second = stage.new_worker()
        stage.starts.clear()

        for second_of_time in range(16):
            stage.log(run, second_of_time)
            for worker in (stage.worker, second):
                worker.step()
                assert worker.wait_free(stage.patience)
            stage.pass_time(1)
        second.stop(timedelta(0))
        starts = stage.starts[Kind.METRICS]

        assert len(starts) >= 5, "the allowed pace was not used"
        assert min(later - earlier for earlier, later in pairwise(starts)) >= 3, "a request started too early"
        stage.drain()
        stage.assert_arrived(run)

    def test_a_wait_that_the_service_asks_for_is_for_all_lanes(self, stage: Stage) -> None:
        stage.needs(Kind.METRICS, Kind.CKPT)
        stage.needs_fault(Fault.SLOW_DOWN)
        run = stage.start()
        stage.drain()
        stage.service.fail(Fault.SLOW_DOWN, kind=Kind.METRICS, times=1)
        stage.log(run, 0)
        stage.step()
        asked_at = stage.clock.elapsed()
        stage.starts.clear()

        stage.save(run, b"weights" * 1000)
        for _ in range(12):
            stage.step()
            stage.pass_time(WAIT / 10)
        stage.drain()

        started = [each for starts in stage.starts.values() for each in starts]
        assert min(started) >= asked_at + WAIT, "an attempt started before the wait was over"
        stage.assert_arrived(run)
        stage.assert_clear()

    def test_memory_does_not_grow_with_a_checkpoint(self, stage: Stage) -> None:
        stage.needs(Kind.CKPT)
        run = stage.start()
        stage.drain()
        stage.worker.stop()
        stage.save(run, b"0123456789abcdef" * (self.large // 16))

        done = work(Plan(stage.home, stage.environ, stage.clock.elapsed() - 1000))

        assert stage.count(State.PENDING) == 0, f"still owed: {stage.reasons()}"
        assert done.peak <= self.memory, f"{done.peak} bytes of memory for a checkpoint of {self.large} bytes"
        stage.assert_arrived(run)
