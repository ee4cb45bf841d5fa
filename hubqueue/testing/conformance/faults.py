"""What goes wrong: each fault is an outcome with a clear reason, nothing counts as delivered, and nothing is lost."""

from __future__ import annotations

from datetime import timedelta

import pytest

from hubqueue.destinations.base import Kind
from hubqueue.domain.lifecycle import State
from hubqueue.testing.conformance.service import BAD_EPOCH, BAD_MARK, Fault
from hubqueue.testing.conformance.stage import Stage
from hubqueue.worker.events import AttemptStarted, BatchDelivered

_TRANSIENT = (
    Fault.UNREACHABLE,
    Fault.SLOW_DOWN,
    Fault.ERROR,
    Fault.BROKEN_OFF,
    Fault.LOST,
    Fault.NONSENSE,
    Fault.KEY_REFUSED,
)


class Faults:
    """Tests of faults (P2, P4)."""

    @pytest.mark.parametrize("fault", _TRANSIENT, ids=lambda fault: fault.name.lower())
    def test_a_fault_delivers_and_loses_nothing(self, stage: Stage, fault: Fault) -> None:
        """While the service fails, whatever it does, nothing is delivered; afterwards everything arrives once."""
        stage.needs_fault(fault)
        run = stage.start()
        _fails(stage, fault)
        stage.log(run, 0, 1)
        stage.save(run, b"weights" * 1000)
        _fails(stage, fault)
        stage.end(run)
        _fails(stage, fault)

        stage.assert_arrived(run)
        stage.assert_clear()

    def test_a_refused_entry_blocks_no_other(self, stage: Stage) -> None:
        stage.needs(Kind.METRICS)
        stage.needs_fault(Fault.ENTRY_REFUSED)
        run = stage.start()
        stage.service.fail(Fault.ENTRY_REFUSED)
        stage.log(run, BAD_EPOCH - 1, BAD_EPOCH + 1)
        stage.log(run, BAD_EPOCH, name=BAD_MARK)
        stage.save(run, b"weights" * 1000)

        stage.drain()

        assert stage.count(State.DEAD, Kind.METRICS) == 1, "the refused entry is not dead"
        del stage.logged[run][str(BAD_EPOCH)]
        stage.assert_arrived(run)
        stage.assert_clear()

    def test_a_refused_checkpoint_blocks_no_other(self, stage: Stage) -> None:
        stage.needs(Kind.CKPT)
        stage.needs_fault(Fault.ENTRY_REFUSED)
        run = stage.start()
        stage.drain()
        stage.service.fail(Fault.ENTRY_REFUSED)
        stage.save(run, BAD_MARK.encode() + b"weights" * 1000, epoch=BAD_EPOCH)
        stage.log(run, 0)
        stage.drain()
        if not stage.count(State.DEAD, Kind.CKPT):
            pytest.skip(f"the service of {stage.declared.type} refuses no checkpoint")

        stage.save(run, b"other weights" * 1000, epoch=BAD_EPOCH + 1)
        stage.drain()

        stage.assert_arrived(run)
        stage.assert_clear()

    def test_a_slow_checkpoint_delays_no_metrics(self, stage: Stage) -> None:
        stage.needs(Kind.CKPT, Kind.METRICS)
        stage.needs_fault(Fault.HANG)
        run = stage.start()
        stage.drain()
        stage.service.fail(Fault.HANG, kind=Kind.CKPT)
        stage.save(run, b"weights" * 1000)
        stage.worker.step()
        assert stage.wait_for(lambda fact: isinstance(fact, AttemptStarted) and fact.kind is Kind.CKPT)

        stage.log(run, 0)
        stage.worker.step()
        arrived = stage.wait_for(lambda fact: isinstance(fact, BatchDelivered) and fact.kind is Kind.METRICS)

        assert arrived, "the metrics have waited for a checkpoint"
        assert stage.worker.busy == 1, "the checkpoint was not being sent"
        stage.service.heal()
        stage.restart()
        stage.drain()
        stage.assert_arrived(run)

    @pytest.mark.parametrize("kind", [Kind.METRICS, Kind.CKPT], ids=str)
    def test_a_stop_ends_an_attempt(self, stage: Stage, kind: Kind) -> None:
        stage.needs(kind)
        stage.needs_fault(Fault.HANG)
        run = stage.start()
        stage.drain()
        stage.service.fail(Fault.HANG, kind=kind)
        if kind is Kind.CKPT:
            stage.save(run, b"weights" * 1000)
        else:
            stage.log(run, 0)
        stage.worker.step()
        assert stage.wait_for(lambda fact: isinstance(fact, AttemptStarted) and fact.kind is kind)

        stage.worker.stop(timedelta(0))  # it waits for 5 seconds; on a machine that is not busy one is enough

        stage.service.heal()
        assert not stage.worker.busy, "attempt.stop was set, and the transport has not returned"
        stage.restart()
        stage.drain()
        stage.assert_arrived(run)
        stage.assert_clear()


def _fails(stage: Stage, fault: Fault) -> None:
    """Let the service fail for two attempts of what waits; then it is delivered."""
    waiting, delivered = stage.count(State.PENDING), stage.count(State.DELIVERED)
    stage.service.fail(fault)
    for _ in range(2):
        while stage.worker.step():
            assert stage.worker.wait_free(stage.patience), "an attempt did not end"
        stage.assert_clear()
        assert stage.count(State.DELIVERED) == delivered, f"delivered, and the service {fault}"
        assert stage.count(State.PENDING) == waiting, f"not owed any more, and the service {fault}"
        stage.pass_time()
    stage.service.heal()
    stage.drain()
