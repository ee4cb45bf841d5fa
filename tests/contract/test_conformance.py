"""The built-in destinations pass the conformance tests, over their fake services."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from hubqueue.destinations.sandbox import Sandbox
from hubqueue.testing.conformance import Conformance, Received, SandboxService, Stage

KEY = "canary-key-of-the-conformance-tests"
_ENDS = {"training_complete": "finished", "training_failed": "failed"}


class Hub(SandboxService):
    """HUB, in the sandbox."""

    type = "hub"
    secrets: Mapping[str, str] = {"key": KEY}
    server: Sandbox

    def received(self) -> Mapping[str, Received]:
        return {each: self._model(each) for each in self.server.models}

    def _model(self, model: str) -> Received:
        records = self.server.checkpoints(model)
        ckpts = [each for each in self.server.requests if (each.kind, each.model_id) == ("ckpt", model)]
        return Received(
            metrics=[(str(epoch), values) for epoch, values in self.server.metrics(model).items()],
            checkpoints=[{"": each.path.read_bytes()} for each in records],
            upload_bytes=sum(each.body_bytes for each in ckpts),
        )


class Platform(SandboxService):
    """Platform, in the sandbox."""

    type = "platform"
    secrets: Mapping[str, str] = {"key": KEY}
    server: Sandbox

    def received(self) -> Mapping[str, Received]:
        return {each: self._run(each) for each in self.server.runs}

    def _run(self, model: str) -> Received:
        run = self.server.run(model)
        puts = [each for each in self.server.requests if each.path.startswith(f"/storage/{model}/")]
        return Received(
            metrics=[
                (str(each.data["epoch"]), each.data["metrics"])
                for each in run.counted
                if each.event == "epoch_end"
            ],
            checkpoints=[{"": each.path.read_bytes()} for each in run.files if each.path is not None],
            ends=[_ENDS[each.event] for each in run.counted if each.event in _ENDS],
            upload_bytes=sum(each.body_bytes for each in puts),
        )


class _Economical(Conformance):
    """The tests of every destination; those that start processes are slow."""

    @pytest.mark.slow
    def test_a_kill_at_any_step_loses_and_repeats_nothing(self, stage: Stage) -> None:
        super().test_a_kill_at_any_step_loses_and_repeats_nothing(stage)

    @pytest.mark.slow
    def test_memory_does_not_grow_with_a_checkpoint(self, stage: Stage) -> None:
        super().test_memory_does_not_grow_with_a_checkpoint(stage)


class TestHub(_Economical):
    @pytest.fixture
    def service(self) -> Iterator[Hub]:
        with Hub(Sandbox(keys=(KEY,))) as running:
            yield running


class TestPlatform(_Economical):
    resumes = True
    twins = 1  # decision 0013

    @pytest.fixture
    def service(self) -> Iterator[Platform]:
        with Platform(Sandbox(keys=(KEY,))) as running:
            yield running
