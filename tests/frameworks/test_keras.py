"""`HubqueueCallback` in real trainings of Keras. In the environment of `make test-frameworks`; skipped elsewhere."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from frameworks.received import Received, runs_in
from frameworks.script import digests
from stage import environ_of, files_in, platform_environ

from hubqueue.domain.errors import ConfigError, InvalidArgument
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.filterwarnings("default")
os.environ.setdefault("KERAS_BACKEND", "torch")
keras: Any = pytest.importorskip("keras", reason="keras is not installed: make test-frameworks")
np: Any = importlib.import_module("numpy")
WrittenFiles: Any = importlib.import_module("hubqueue.integrations.keras.written_files").WrittenFiles
HubqueueCallback: Any = importlib.import_module("hubqueue.integrations.keras").HubqueueCallback

_SCRIPT = """
import keras, numpy as np
from hubqueue.integrations.keras import HubqueueCallback
class Failing(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise RuntimeError("the loss is strange")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", loss="mse")
def train():
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), epochs=3, verbose=0, callbacks=[HubqueueCallback(), Failing()])
"""
_CAUGHT = """
try:
    train()
except RuntimeError:
    print("caught")
"""


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
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


def fit(*callbacks: Any, epochs: int = 3, model: Any = None, **more: Any) -> Any:
    """Train a small model; return it."""
    if model is None:
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(4), keras.layers.Dense(1)], name="tiny"
        )
        model.compile(keras.optimizers.SGD(0.01), loss="mse")
    x = np.arange(16, dtype="float32").reshape(8, 2) / 16
    model.fit(x, x.sum(axis=1), epochs=epochs, verbose=0, callbacks=[*callbacks], **more)
    return model


def saving_to(lab: Path) -> list[Received]:
    return runs_in(files_in(lab), "epoch")


class At(keras.callbacks.Callback):
    """Calls a function at the end of each epoch."""

    def __init__(self, act: Callable[[int], object]) -> None:
        super().__init__()
        self._act = act

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self._act(epoch)


def raising_at(number: int, error: BaseException) -> At:
    def act(epoch: int) -> None:
        if epoch == number:
            raise error

    return At(act)


def test_every_epoch_arrives_with_the_numbers_of_the_history(lab: Path) -> None:
    model = fit(HubqueueCallback(worker="thread"))

    (run,) = saving_to(lab)
    assert run.state == "finished"
    assert run.metrics == {epoch: {"loss": loss} for epoch, loss in enumerate(model.history.history["loss"])}
    args = json.loads((lab / run.name / "run.json").read_text())["args"]
    assert args["epochs"] == 3 and args["parameters"] == 17
    assert args["optimizer"]["learning_rate"] == pytest.approx(0.01)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_checkpoint_has_the_number_of_its_epoch_wherever_the_callback_is_in_the_list(
    lab: Path, out: Path, is_first: bool
) -> None:
    saving = keras.callbacks.ModelCheckpoint(out / "m-{epoch}.keras")
    callback = HubqueueCallback(saving, worker="thread")

    fit(*([callback, saving] if is_first else [saving, callback]))

    (run,) = saving_to(lab)
    assert run.checkpoints is not None and 2 in run.checkpoints
    for epoch, found in run.checkpoints.items():
        assert found == [digests(out / f"m-{epoch + 1}.keras")]
    assert json.loads((lab / run.name / "final.json").read_text())["checkpoint"] == "epoch-0002"


def test_the_best_model_is_the_final_one(lab: Path, out: Path) -> None:
    values = iter([3.0, 1.0, 2.0, 4.0])

    class Scored(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["score"] = next(values)

    best = keras.callbacks.ModelCheckpoint(out / "b.keras", monitor="score", mode="min", save_best_only=True)
    last = keras.callbacks.ModelCheckpoint(out / "l-{epoch}.keras")

    fit(Scored(), last, best, HubqueueCallback([last, best], worker="thread"), epochs=4)

    (run,) = saving_to(lab)
    final = json.loads((lab / run.name / "final.json").read_text())
    assert final["epoch"] == 1
    assert run.checkpoints is not None and digests(out / "b.keras") in run.checkpoints[1]


def test_a_checkpoint_of_another_training_is_not_sent(lab: Path, out: Path) -> None:
    fit(keras.callbacks.ModelCheckpoint(out / "m.keras"))

    fit(HubqueueCallback(out / "m.keras", worker="thread"))

    (run,) = saving_to(lab)
    assert run.checkpoints == {}


def test_the_callback_saves_the_model_if_nothing_else_does(lab: Path) -> None:
    model = fit(HubqueueCallback(save=True, worker="thread"))

    (run,) = saving_to(lab)
    assert run.checkpoints is not None
    loaded = keras.models.load_model(lab / run.name / "checkpoints" / "epoch-0002" / "model.keras")
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        assert (one == other).all()


def test_a_backup_can_be_restored_from_what_arrived(lab: Path, out: Path) -> None:
    backup = keras.callbacks.BackupAndRestore(out / "backup")

    with pytest.raises(KeyboardInterrupt), HubqueueCallback(backup, worker="thread") as callback:
        fit(backup, callback, raising_at(1, KeyboardInterrupt()))

    (run,) = saving_to(lab)
    assert run.checkpoints is not None
    assert run.checkpoints[1] == [digests(out / "backup")]
    epochs: list[int] = []
    found = lab / run.name / "checkpoints" / "epoch-0001"
    (found / "manifest.json").unlink()
    fit(keras.callbacks.BackupAndRestore(found), At(epochs.append))
    assert epochs == [2]


def test_a_resumed_training_continues_its_run(lab: Path, out: Path) -> None:
    saving = keras.callbacks.ModelCheckpoint(out / "m-{epoch}.keras")
    fit(saving, HubqueueCallback(saving, worker="thread"), epochs=2)

    fit(
        saving,
        HubqueueCallback(saving, worker="thread"),
        model=keras.models.load_model(out / "m-2.keras"),
        initial_epoch=2,
        epochs=4,
    )

    (run,) = saving_to(lab)
    assert (run.state, sorted(run.metrics)) == ("finished", [0, 1, 2, 3])


def test_a_new_training_is_another_run(lab: Path, out: Path) -> None:
    saving = keras.callbacks.ModelCheckpoint(out / "m-{epoch}.keras")
    callback = HubqueueCallback(saving, worker="thread")

    for _ in range(2):
        fit(saving, callback)

    assert [run.state for run in saving_to(lab)] == ["finished", "finished"]


def test_an_exception_ends_the_run_as_failed_at_the_end_of_the_block(lab: Path, out: Path) -> None:
    saving = keras.callbacks.ModelCheckpoint(out / "m-{epoch}.keras")

    with pytest.raises(RuntimeError), HubqueueCallback(saving, worker="thread") as callback:
        fit(saving, callback, raising_at(1, RuntimeError("no")))

    (run,) = saving_to(lab)
    assert (run.state, sorted(run.metrics)) == ("failed", [0, 1])
    assert json.loads((lab / run.name / "run.json").read_text())["error"] == "RuntimeError"
    assert run.checkpoints is not None and max(run.checkpoints) == 1


def test_the_next_training_ends_one_that_was_interrupted(lab: Path) -> None:
    callback = HubqueueCallback(worker="thread")
    with pytest.raises(KeyboardInterrupt):
        fit(callback, raising_at(1, KeyboardInterrupt()))

    fit(callback)

    assert [run.state for run in saving_to(lab)] == ["failed", "finished"]


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [("train()", 1, "RuntimeError"), (_CAUGHT, 0, "the training did not reach its end")],
    ids=["not caught", "caught"],
)
def test_a_script_whose_training_fails_ends_the_run_as_failed(
    lab: Path, end: str, code: int, error: str
) -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT + end], capture_output=True, text=True, check=False)
    subprocess.run([sys.executable, "-m", "hubqueue", "drain"], capture_output=True, check=True)

    assert done.returncode == code, done.stderr
    (run,) = saving_to(lab)
    assert run.state == "failed"
    assert json.loads((lab / run.name / "run.json").read_text())["error"] == error


@pytest.mark.parametrize("name", ["RANK", "KERAS_DISTRIBUTION_PROCESS_ID"])
def test_only_the_main_process_sends(
    lab: Path, home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")

    fit(HubqueueCallback(save=True, worker="thread"))

    assert saving_to(lab) == []
    assert not home.exists()


def test_a_home_that_cannot_be_used_does_not_disturb_the_training(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_text("no folder")

    model = fit(HubqueueCallback(save=True, timeout=0))

    assert len(model.history.history["loss"]) == 3
    assert "home" in caplog.text


def test_an_error_in_the_callback_does_not_reach_the_training(
    lab: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Unsavable(keras.Sequential):
        def save(self, *_: object, **__: object) -> None:
            raise TypeError("this model cannot be saved")

    model = Unsavable([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")

    fit(HubqueueCallback(save=True, worker="thread"), model=model)

    (run,) = saving_to(lab)
    assert (run.state, sorted(run.metrics)) == ("finished", [0, 1, 2])
    assert "on_epoch_end failed in hubqueue; the training continues" in caplog.text


def test_a_checkpoint_that_is_copied_later_keeps_the_number_of_its_epoch(out: Path) -> None:
    files = WrittenFiles(out / "m.keras")
    out.mkdir()
    (out / "m.keras").write_bytes(b"weights")

    assert files.unsaved(4) == files.unsaved(5) == out / "m.keras"
    assert files.epoch == 4


def test_what_is_no_number_is_left_out(lab: Path) -> None:
    class Strange(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["text"] = "a"

    fit(Strange(), HubqueueCallback(worker="thread", strict=True), epochs=1)

    (run,) = saving_to(lab)
    assert list(run.metrics[0]) == ["loss"]


def test_a_mistake_of_a_person_raises_at_once() -> None:
    with pytest.raises(InvalidArgument, match="no option 'destinaton'; did you mean 'destination'"):
        HubqueueCallback(destinaton="lab")
    with pytest.raises(ConfigError, match="nowhere"):
        HubqueueCallback(destination="nowhere")
    with pytest.raises(InvalidArgument, match="cannot find the checkpoints of EarlyStopping"):
        HubqueueCallback(keras.callbacks.EarlyStopping())
    with pytest.raises(InvalidArgument, match="cannot find the checkpoints of str"):
        HubqueueCallback("gs://bucket/m.keras")
    with pytest.raises(InvalidArgument, match="invalid path of checkpoints"):
        HubqueueCallback("m-{epoch.keras")


def test_the_training_stops_when_the_hub_asks_for_it(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox(tmp_path / "hub") as hub:
        for name, value in platform_environ(home, hub.url).items():
            monkeypatch.setenv(name, value)
        callback = HubqueueCallback(worker="thread", model_name="tiny.pt", args={"project": "p"}, timeout=5)

        def cancel(epoch: int) -> None:
            if epoch == 1:
                assert callback.run is not None
                callback.run.wait(timeout=30)
                (run_id,) = hub.runs
                hub.cancel(run_id)

        def wait(epoch: int) -> None:
            if epoch >= 1 and callback.run is not None:
                callback.run.wait(timeout=30)

        model = fit(callback, At(cancel), At(wait), epochs=50)

    assert len(model.history.history["loss"]) < 50
