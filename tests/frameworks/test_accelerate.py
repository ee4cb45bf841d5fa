"""`HubqueueTracker` with a real `Accelerator`. In the environment of `make test-frameworks`; skipped elsewhere."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from frameworks.received import Received, runs_in
from stage import environ_of, files_in

from hubqueue.domain.errors import ConfigError, InvalidArgument

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("migrated_home")]
accelerate: Any = pytest.importorskip(
    "accelerate", reason="accelerate is not installed: make test-frameworks"
)
torch: Any = importlib.import_module("torch")
HubqueueTracker: Any = importlib.import_module("hubqueue.integrations.accelerate").HubqueueTracker


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the destination."""
    folder = tmp_path / "lab"
    folder.mkdir()
    given = {"HUBQUEUE_DESTINATIONS__LAB__TYPE": "folder", "HUBQUEUE_DESTINATIONS__LAB__PATH": str(folder)}
    for name, value in environ_of(home, HUBQUEUE_DEFAULT_DESTINATION="lab", **given).items():
        monkeypatch.setenv(name, value)
    yield folder
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def prepared(tracker: Any) -> Any:
    """An accelerator with a model and this tracker."""
    accelerator = accelerate.Accelerator(cpu=True, log_with=tracker)
    accelerator.register_for_checkpointing(tracker)
    accelerator.init_trackers("project", config={"lr": 0.1})
    accelerator.prepare(torch.nn.Linear(2, 1))
    return accelerator


def runs_of(lab: Path) -> list[Received]:
    return runs_in(files_in(lab), "step")


def test_what_is_logged_arrives_under_its_step(lab: Path) -> None:
    tracker = HubqueueTracker("small", args={"data": "toy"}, worker="thread")
    accelerator = prepared(tracker)
    assert tracker.run is None

    accelerator.log({"loss": torch.tensor(0.5), "note": "a text"})
    accelerator.log({"loss": 0.25}, step=7, log_kwargs={"hubqueue": {"epoch": 1}})
    accelerator.log({"loss": 0.125})
    accelerator.end_training()

    (run,) = runs_of(lab)
    assert run.state == "finished"
    assert run.metrics == {0: {"loss": 0.5}, 7: {"loss": 0.25, "epoch": 1}, 8: {"loss": 0.125}}
    found = json.loads((lab / run.name / "run.json").read_text())
    assert (found["model"], found["args"]) == ("small", {"lr": 0.1, "data": "toy"})


def test_a_checkpoint_has_the_newest_step(lab: Path, tmp_path: Path) -> None:
    tracker = HubqueueTracker("small", worker="thread")
    accelerator = prepared(tracker)
    accelerator.log({"loss": 0.5}, step=7)

    accelerator.save_state(str(tmp_path / "checkpoint"))
    tracker.save_checkpoint(tmp_path / "checkpoint")
    accelerator.end_training()

    (run,) = runs_of(lab)
    assert run.checkpoints is not None
    assert sorted(run.checkpoints) == [7]
    assert {"model.safetensors", "custom_checkpoint_0.pkl"} <= run.checkpoints[7][0].keys()


def test_a_loaded_state_continues_its_run_and_its_steps(lab: Path, tmp_path: Path) -> None:
    accelerator = prepared(HubqueueTracker("small", worker="thread"))
    accelerator.log({"loss": 0.5}, step=7)
    accelerator.save_state(str(tmp_path / "checkpoint"))
    accelerator.end_training()
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)

    accelerator = prepared(HubqueueTracker("small", worker="thread"))
    accelerator.load_state(str(tmp_path / "checkpoint"))
    accelerator.log({"loss": 0.25})
    accelerator.end_training()

    (run,) = runs_of(lab)
    assert (run.state, run.metrics) == ("finished", {7: {"loss": 0.5}, 8: {"loss": 0.25}})


def test_a_state_that_is_saved_before_the_first_value_names_the_run(lab: Path, tmp_path: Path) -> None:
    tracker = HubqueueTracker("small", worker="thread")
    accelerator = prepared(tracker)

    accelerator.save_state(str(tmp_path / "checkpoint"))

    assert tracker.run is not None
    assert tracker.state_dict() == {"run": tracker.run.id, "step": -1}
    accelerator.end_training()


def test_a_state_that_is_loaded_too_late_is_a_log_line(lab: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = HubqueueTracker("small", worker="none", timeout=0)
    accelerator = prepared(tracker)
    accelerator.log({"loss": 0.5})

    tracker.load_state_dict({"run": "1dbdb0ecee53", "step": 3})
    tracker.load_state_dict(None)

    assert "the run of the checkpoint is not continued" in caplog.text
    assert accelerator.get_tracker("hubqueue", unwrap=True).id != "1dbdb0ecee53"
    accelerator.end_training()


def test_what_cannot_be_saved_does_not_harm_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HUBQUEUE_HOME", str(tmp_path / "file" / "home"))
    tracker = HubqueueTracker("small", worker="thread", timeout=0.1)
    accelerator = prepared(tracker)

    accelerator.log({"loss": 0.5})
    accelerator.log(5)
    tracker.save_checkpoint(tmp_path / "missing")
    tracker.save_checkpoint(None)
    accelerator.end_training()
    accelerator.log({"loss": 0.5})


def test_a_mistake_raises_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="HubqueueTracker has no option 'destinaton'"):
        HubqueueTracker("small", destinaton="lab")
    with pytest.raises(ConfigError):
        HubqueueTracker("small", destination="bucket")
    monkeypatch.setenv("HUBQUEUE_DESTINATIONS__HUB__TYPE", "hub")
    accelerator = accelerate.Accelerator(
        cpu=True, log_with=HubqueueTracker("5 words, no file", destination="hub")
    )
    with pytest.raises(importlib.import_module("hubqueue.domain.errors").InvalidModel):
        accelerator.init_trackers("project")
