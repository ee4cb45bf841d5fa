"""The built-in destinations pass the conformance tests, over their fake services. `make test` runs all for the folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from layout_received import received_in
from representative import only_fast

from hubqueue.destinations.base import Kind
from hubqueue.destinations.sandbox import Sandbox
from hubqueue.testing.conformance import Conformance, Fault, Received, SandboxService

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


class Folder:
    """A folder on a disk that can be away. It is no service: nothing else can go wrong on request."""

    type = "folder"
    faults = frozenset({Fault.UNREACHABLE})
    secrets: Mapping[str, str] = {}
    environ: Mapping[str, str] = {}

    def __init__(self, folder: Path) -> None:
        self._disk, self._away = folder / "disk", folder / "away"
        self._disk.mkdir()

    @property
    def settings(self) -> Mapping[str, str]:
        return {"path": str(self._disk / "runs")}

    def fail(
        self, fault: Fault, *, kind: Kind | None = None, after: int = 0, times: int | None = None
    ) -> None:
        assert fault is Fault.UNREACHABLE
        self._disk.rename(self._away)
        self._disk.touch()  # no folder can be made there

    def heal(self) -> None:
        if self._away.exists():
            self._disk.unlink()
            self._away.rename(self._disk)

    def received(self) -> Mapping[str, Received]:
        runs = (self._away if self._away.exists() else self._disk) / "runs"
        files = {each: each.relative_to(runs).as_posix() for each in runs.rglob("*") if each.is_file()}
        return received_in({name: each.read_bytes() for each, name in files.items()})


@only_fast(
    "test_a_whole_training_arrives_once",
    "test_each_attempt_reports_its_start",
    "test_a_heartbeat_arrives_or_is_dropped",
    "test_two_runs_stay_apart",
    "test_a_refused_entry_blocks_no_other",
    "test_a_refused_checkpoint_blocks_no_other",
    "test_a_stop_ends_an_attempt",
    "test_two_workers_keep_the_pace_of_a_lane",
    "test_a_wait_that_the_service_asks_for_is_for_all_lanes",
    "test_no_secret_is_written_anywhere",
)
class TestHub(Conformance):
    @pytest.fixture
    def service(self) -> Iterator[Hub]:
        with Hub(Sandbox(keys=(KEY,))) as running:
            yield running


@only_fast(
    "test_a_whole_training_arrives_once",
    "test_a_later_value_of_an_epoch_counts",
    "test_the_end_of_a_training_arrives",
    "test_check_reports_what_the_service_does",
    "test_a_fault_delivers_and_loses_nothing",
    "test_a_slow_checkpoint_delays_no_metrics",
    "test_a_broken_off_upload_continues",
)
class TestPlatform(Conformance):
    resumes = True
    twins = 1  # decision 0013

    @pytest.fixture
    def service(self) -> Iterator[Platform]:
        with Platform(Sandbox(keys=(KEY,))) as running:
            yield running


class TestFolder(Conformance):
    @pytest.fixture
    def service(self, tmp_path: Path) -> Folder:
        return Folder(tmp_path)
