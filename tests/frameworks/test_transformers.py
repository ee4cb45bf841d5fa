"""`HubqueueCallback` in real trainings of a `Trainer`. In the environment of `make test-frameworks`; skipped elsewhere."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from frameworks.received import Received, runs_in
from sqlalchemy import update
from stage import environ_of, files_in, hubqueue

from hubqueue.domain.errors import ConfigError, InvalidArgument
from hubqueue.integrations.record import read_record
from hubqueue.outbox.database.schema import runs
from hubqueue.sandbox import Sandbox

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("migrated_home")]
transformers: Any = pytest.importorskip(
    "transformers", reason="transformers is not installed: make test-frameworks"
)
torch: Any = importlib.import_module("torch")
HubqueueCallback: Any = importlib.import_module("hubqueue.integrations.transformers").HubqueueCallback


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the destination."""
    folder = tmp_path / "lab"
    folder.mkdir()
    given = {"HUBQUEUE_DESTINATIONS__LAB__TYPE": "folder", "HUBQUEUE_DESTINATIONS__LAB__PATH": str(folder)}
    for name, value in environ_of(home, HUBQUEUE_DEFAULT_DESTINATION="lab", **given).items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of the training."""
    return tmp_path / "out"


class Small(torch.nn.Module):
    """One layer and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        predicted = self.layer(x)
        return {"loss": torch.nn.functional.mse_loss(predicted, labels), "logits": predicted}


class At(transformers.TrainerCallback):
    """Calls a function after each step, with its number."""

    def __init__(self, act: Callable[[int], object]) -> None:
        self._act = act

    def on_step_end(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        self._act(state.global_step)


def raising_at(number: int, error: BaseException) -> At:
    def act(step: int) -> None:
        if step == number:
            raise error

    return At(act)


def trainer_of(out: Path, *callbacks: Any, **settings: Any) -> Any:
    """A trainer of four steps in two epochs."""
    usual = {"num_train_epochs": 2, "logging_steps": 1, "save_strategy": "epoch", "learning_rate": 0.01}
    x = [torch.tensor([float(each), 1.0]) for each in range(8)]
    data = [{"x": each, "labels": each.sum().reshape(1)} for each in x]
    args = transformers.TrainingArguments(
        str(out),
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{**usual, **settings},
    )
    return transformers.Trainer(
        Small(), args, train_dataset=data, eval_dataset=data, callbacks=list(callbacks)
    )


def runs_of(lab: Path) -> list[Received]:
    return runs_in(files_in(lab), "step")


def facts(lab: Path, run: Received) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab / run.name / "run.json").read_text())
    return found


def test_what_the_trainer_logs_arrives_under_its_step(lab: Path, out: Path) -> None:
    trainer = trainer_of(out, HubqueueCallback("small", args={"data": "toy"}, worker="thread"))

    trainer.train()

    (run,) = runs_of(lab)
    expected: dict[int, dict[str, Any]] = {}
    for each in trainer.state.log_history:
        expected.setdefault(each["step"], {}).update({name: each[name] for name in each if name != "step"})
    assert (run.state, run.metrics) == ("finished", expected)
    found = facts(lab, run)
    assert found["model"] == "small"
    assert found["args"]["learning_rate"] == 0.01 and found["args"]["data"] == "toy"
    assert not [name for name in found["args"] if name.endswith("_token")]


class Deletes(transformers.TrainerCallback):
    """Deletes each checkpoint as soon as it was saved, as `save_total_limit` does later."""

    def on_save(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        shutil.rmtree(Path(args.output_dir, f"checkpoint-{state.global_step}"))


def test_a_checkpoint_that_is_deleted_at_once_is_sent(lab: Path, out: Path) -> None:
    trainer_of(out, HubqueueCallback(worker="none", timeout=0), Deletes()).train()
    hubqueue(os.environ, "drain", "--timeout", "60")

    (run,) = runs_of(lab)
    assert run.checkpoints is not None
    assert sorted(run.checkpoints) == [4]  # the older one was superseded before it was sent
    assert {"model.safetensors", "trainer_state.json"} <= run.checkpoints[4][0].keys()


def test_a_resumed_training_continues_its_run(lab: Path, out: Path) -> None:
    with pytest.raises(RuntimeError):
        trainer_of(out, HubqueueCallback(worker="thread"), raising_at(3, RuntimeError("a defect"))).train()
    trainer_of(out, HubqueueCallback(worker="thread")).train(resume_from_checkpoint=True)

    (run,) = runs_of(lab)
    assert run.state == "finished"
    assert sorted(run.metrics) == [1, 2, 3, 4]
    assert read_record(out)["run"] == facts(lab, run)["id"]


def test_a_training_that_begins_again_is_another_run(lab: Path, out: Path) -> None:
    for _ in range(2):
        trainer_of(out, HubqueueCallback(worker="thread")).train()

    assert [run.state for run in runs_of(lab)] == ["finished", "finished"]


def test_a_further_training_ends_the_run_of_one_that_has_failed(lab: Path, out: Path) -> None:
    callback = HubqueueCallback(worker="thread")
    with pytest.raises(KeyboardInterrupt):
        trainer_of(out, callback, raising_at(1, KeyboardInterrupt())).train()
    assert callback.run is not None

    trainer_of(out, callback).train()

    assert [run.state for run in runs_of(lab)] == ["failed", "finished"]


def test_a_block_ends_the_run_as_soon_as_an_exception_leaves_it(lab: Path, out: Path) -> None:
    callback = HubqueueCallback(worker="thread")
    trainer = trainer_of(out, callback, raising_at(3, RuntimeError("a defect")))

    with pytest.raises(RuntimeError), callback:
        trainer.train()

    (run,) = runs_of(lab)
    assert (run.state, facts(lab, run)["error"], callback.run) == ("failed", "RuntimeError", None)


def test_an_evaluation_after_the_training_belongs_to_its_run(lab: Path, out: Path) -> None:
    trainer = trainer_of(out, HubqueueCallback(worker="thread"))
    trainer.evaluate()  # before the training: of no run
    trainer.train()

    found = trainer.evaluate(metric_key_prefix="test")

    (run,) = runs_of(lab)
    assert run.state == "finished"
    assert run.metrics[4]["test_loss"] == found["test_loss"]
    assert not [name for values in run.metrics.values() for name in values if name.startswith("eval")]


def test_an_evaluation_after_a_failure_does_not_end_the_run_as_finished(lab: Path, out: Path) -> None:
    callback = HubqueueCallback(worker="thread")
    trainer = trainer_of(out, callback, raising_at(3, RuntimeError("a defect")))
    with pytest.raises(RuntimeError), callback:
        trainer.train()

    trainer.evaluate()

    assert [run.state for run in runs_of(lab)] == ["failed"]


def test_a_smaller_batch_continues_the_run(lab: Path, out: Path) -> None:
    tries: list[int] = []

    def act(step: int) -> None:
        tries.append(step)
        if len(tries) == 2:
            raise RuntimeError("CUDA out of memory.")

    trainer = trainer_of(out, HubqueueCallback(worker="thread"), At(act), auto_find_batch_size=True)

    trainer.train()

    (run,) = runs_of(lab)
    assert run.state == "finished"
    assert len(run.metrics) > 4


def test_a_training_is_not_harmed_by_a_home_where_nothing_can_be_saved(
    home: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out.parent / "file").write_text("")
    monkeypatch.setenv("HUBQUEUE_HOME", str(out.parent / "file" / "home"))
    trainer = trainer_of(out, HubqueueCallback(worker="thread", timeout=0.1))

    assert trainer.train().global_step == 4


def test_without_checkpoints_only_metrics_are_sent(lab: Path, out: Path) -> None:
    trainer_of(out, HubqueueCallback(checkpoints=False, worker="thread")).train()

    (run,) = runs_of(lab)
    assert (sorted(run.metrics), run.checkpoints) == ([1, 2, 3, 4], {})


def test_a_hub_that_takes_one_file_gets_the_metrics_of_each_epoch(
    hub: Sandbox, home: Path, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in environ_of(home, hub.url).items():
        monkeypatch.setenv(name, value)
    trainer = trainer_of(out, HubqueueCallback(destination="hub", worker="thread", timeout=60))

    trainer.train()

    (model,) = hub.models
    assert sorted(hub.metrics(model)) == [0, 1]
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    assert [hub.metrics(model)[epoch]["loss"] for epoch in (0, 1)] == losses[1::2]
    assert "checkpoint-2" in caplog.text


def test_the_training_stops_when_the_hub_asks_for_it(lab: Path, out: Path) -> None:
    callback = HubqueueCallback(worker="thread")

    def cancel(step: int) -> None:
        if step == 1:
            with callback.run.outbox.database.write() as tx:
                tx.execute(update(runs).values(cancelled=True))

    trainer = trainer_of(out, At(cancel), callback, num_train_epochs=50)

    assert trainer.train().global_step == 1


def test_a_mistake_raises_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match="HubqueueCallback has no option 'destinaton'"):
        HubqueueCallback(destinaton="lab")
    with pytest.raises(ConfigError):
        HubqueueCallback(destination="bucket")
