"""What arrives: a whole training, its end, folders, steps, several runs."""

from __future__ import annotations

import pytest

from hubqueue.destinations.base import Delivered, Kind, Outcome, RunState
from hubqueue.domain.lifecycle import State
from hubqueue.testing.conformance.service import DOWN, Fault
from hubqueue.testing.conformance.stage import Stage
from hubqueue.worker.events import HeartbeatDelivered

FOLDER = {"model.bin": b"m" * 70_000, "optimizer/rank 0.bin": b"o" * 50_000, "empty.txt": b""}
"""The files of a checkpoint that is a folder, by path."""


class Deliveries:
    """Tests of what arrives."""

    def test_a_whole_training_arrives_once(self, stage: Stage) -> None:
        run = stage.start()
        stage.log(run, 0, 1)
        stage.save(run, b"weights of epoch 1" * 1000, epoch=1)
        stage.drain()
        stage.log(run, 2)
        stage.save(run, b"weights of epoch 2" * 1000, epoch=2, best=True)
        stage.drain()
        stage.save(run, b"weights of the best epoch" * 1000, epoch=1, final=True)
        stage.end(run)

        stage.drain()

        stage.assert_arrived(run)
        assert stage.reasons() == [], "attempts failed without a fault"

    def test_each_attempt_reports_its_start(self, stage: Stage) -> None:
        run = stage.start()
        stage.log(run, 0)
        stage.save(run, b"weights", epoch=0)

        stage.drain()

        sent = {each.kind for each in stage.steps if each.what == "sent"}
        started = {each.kind for each in stage.steps if each.what == "request"}
        assert started == sent, "attempt.on_start was not called: a lane is paced by it"

    def test_a_later_value_of_an_epoch_counts(self, stage: Stage) -> None:
        stage.needs(Kind.METRICS)
        run = stage.start()
        stage.log(run, 0, name="loss")
        stage.drain()

        stage.log(run, 0, name="val_loss")
        stage.log(run, 0, name="loss", add=0.25)
        stage.drain()

        stage.assert_arrived(run)

    @pytest.mark.parametrize("state", [RunState.FINISHED, RunState.FAILED, RunState.INTERRUPTED], ids=str)
    def test_the_end_of_a_training_arrives(self, stage: Stage, state: RunState) -> None:
        if stage.declared.completion is None:
            pytest.skip(f"{stage.declared.type} declares no completion")
        run = stage.start()
        stage.log(run, 0)
        stage.end(run, state)

        stage.drain()

        stage.assert_arrived(run)

    def test_a_heartbeat_arrives_or_is_dropped(self, stage: Stage) -> None:
        """A late heartbeat would be wrong: after a failed one nothing is owed."""
        stage.needs(Kind.HEARTBEAT)
        stage.configure(heartbeat=300)
        run = stage.start(heartbeat=True)
        stage.step()
        stage.step()
        assert any(isinstance(fact, HeartbeatDelivered) for fact in stage.facts), "no heartbeat was delivered"

        for fault in DOWN:
            if fault in stage.service.faults:
                stage.service.fail(fault)
                stage.pass_time()
                stage.step()
                stage.service.heal()
        stage.pass_time()
        stage.drain()

        stage.assert_clear()
        stage.assert_arrived(run)

    def test_two_runs_stay_apart(self, stage: Stage) -> None:
        runs = stage.start(), stage.start()
        for number, run in enumerate(runs):
            stage.log(run, 0, 1, add=number)
            stage.save(run, f"weights of run {number}".encode() * 1000)
            stage.end(run, RunState.FAILED if number else RunState.FINISHED)

        stage.drain()

        stage.assert_arrived(*runs)

    def test_a_folder_arrives_whole(self, stage: Stage) -> None:
        _needs_folders(stage)
        run = stage.start()
        stage.save(run, FOLDER)

        stage.drain()

        stage.assert_arrived(run)

    def test_a_folder_is_there_only_when_all_its_files_are(self, stage: Stage) -> None:
        """The manifest is last: each request fails once, and a reader of the service never sees a part of a folder."""
        _needs_folders(stage)
        stage.needs_fault(Fault.ERROR)
        run = stage.start()
        stage.drain()
        stage.save(run, FOLDER)

        for failing in range(20):
            stage.service.fail(Fault.ERROR, kind=Kind.CKPT, after=failing, times=1)
            stage.step()
            stage.service.heal()
            assert len(stage.whole(run)) <= 1
            if not stage.count(State.PENDING):
                break
            stage.pass_time()

        stage.drain()
        stage.assert_arrived(run)
        assert stage.reasons(), "no request of a checkpoint has failed"

    def test_a_step_is_the_key(self, stage: Stage) -> None:
        if not stage.declared.takes_steps:
            pytest.skip(f"{stage.declared.type} does not declare takes_steps")
        run = stage.start()
        stage.log_values(run, {"loss": 0.5}, step=120)
        stage.log_values(run, {"loss": 0.25}, step=240, epoch=1)
        stage.save(run, b"weights of step 240" * 1000, epoch=None, step=240)

        stage.drain()

        stage.assert_arrived(run)

    def test_check_reports_what_the_service_does(self, stage: Stage) -> None:
        transport = stage.transport()
        try:
            assert isinstance(transport.check(), Delivered)
            for fault in DOWN:
                if fault not in stage.service.faults:
                    continue
                stage.service.fail(fault)
                found = transport.check()
                stage.service.heal()
                assert isinstance(found, Outcome), f"check returned no outcome: the service {fault}"
                assert not isinstance(found, Delivered), f"check finds nothing, and the service {fault}"
        finally:
            transport.close()


def _needs_folders(stage: Stage) -> None:
    if not stage.declared.takes_folders:
        pytest.skip(f"{stage.declared.type} does not declare takes_folders")
    stage.needs(Kind.CKPT)
