"""`HubqueueLogger` in real trainings of Lightning. In the environment of `make test-frameworks`; skipped elsewhere."""

from __future__ import annotations

import csv
import importlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from frameworks.received import Received, runs_in
from frameworks.script import digests
from stage import environ_of, files_in, platform_environ, wait_until

from hubqueue.domain.errors import ConfigError, InvalidArgument
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.filterwarnings("default")
L: Any = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: make test-frameworks")
torch: Any = importlib.import_module("torch")
other_package: Any = importlib.import_module("pytorch_lightning")
plugins: Any = importlib.import_module("lightning.pytorch.plugins.io")
HubqueueLogger: Any = importlib.import_module("hubqueue.integrations.lightning").HubqueueLogger

SCRIPT = Path(__file__).resolve().with_name("train_lightning.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


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


class At:
    """The hooks of a callback: calls a function at the start of each epoch."""

    def __init__(self, act: Callable[[Any], object]) -> None:
        self._act = act

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        self._act(trainer)


def model_of(package: Any) -> Any:
    """A small model, as a user of this package writes it."""

    class Small(package.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(width, 1)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def training_step(self, batch: Any, number: int) -> Any:
            loss = self.layer(batch[0]).square().mean()
            self.log("loss", loss, on_step=True, on_epoch=True)
            self.log("score", float(self.global_step), on_step=False, on_epoch=True)
            return loss

        def test_step(self, batch: Any, number: int) -> None:
            self.log("tested", self.layer(batch[0]).mean())

    return Small()


def data() -> Any:
    values = torch.arange(16.0).reshape(8, 2) / 16
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(values), batch_size=4)


def trainer_of(
    logger: Any, *saving: Any, act: Any = None, epochs: int = 3, package: Any = L, **more: Any
) -> Any:
    class Calling(At, package.Callback):  # type: ignore[misc, name-defined]
        pass

    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": bool(saving),
    }
    called = [Calling(act)] if act is not None else []
    return package.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[*called, *saving],
        **quiet,
        **more,
    )


def fit(logger: Any, *saving: Any, package: Any = L, resume: Path | None = None, **more: Any) -> Any:
    trainer = trainer_of(logger, *saving, package=package, **more)
    trainer.fit(model_of(package), data(), ckpt_path=None if resume is None else str(resume))
    return trainer


def saving_to(folder: Path, *, package: Any = L, **more: Any) -> Any:
    return package.callbacks.ModelCheckpoint(dirpath=folder, **{"save_top_k": -1, **more})


def runs_at(lab: Path) -> list[Received]:
    return runs_in(files_in(lab), "step")


def ending(lab: Path, run: Received) -> tuple[str, str | None]:
    found = json.loads((lab / run.name / "run.json").read_text())
    return found["state"], found.get("error")


@pytest.mark.parametrize("package", [L, other_package], ids=["lightning", "pytorch_lightning"])
def test_every_step_arrives_with_the_numbers_that_the_framework_has_logged(
    lab: Path, out: Path, package: Any
) -> None:
    witness = package.loggers.CSVLogger(out, version=0)

    fit([witness, HubqueueLogger(worker="thread")], package=package)

    (run,) = runs_at(lab)
    written = (out / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    expected: dict[int, dict[str, float]] = {}
    for row in csv.DictReader(written.splitlines()):
        numbers = {name: float(text) for name, text in row.items() if text}
        expected.setdefault(int(numbers.pop("step")), {}).update(numbers)
    assert (run.state, run.metrics) == ("finished", expected)
    described = json.loads((lab / run.name / "run.json").read_text())
    assert (described["model"], described["args"]) == ("Small", {"width": 2})


def test_it_is_a_logger_of_both_packages() -> None:
    logger = HubqueueLogger()

    assert isinstance(logger, L.loggers.Logger) and isinstance(logger, other_package.loggers.Logger)


def test_a_checkpoint_arrives_with_its_step_and_its_epoch(lab: Path, out: Path) -> None:
    fit(HubqueueLogger(worker="thread"), saving_to(out))

    (run,) = runs_at(lab)
    assert run.checkpoints is not None and 6 in run.checkpoints
    for step, found in run.checkpoints.items():
        assert found == [digests(out / f"epoch={step // 2 - 1}-step={step}.ckpt")]
    manifest = lab / run.name / "checkpoints" / "step-00000006" / "manifest.json"
    assert json.loads(manifest.read_text())["epoch"] == 2


def test_the_last_checkpoint_arrives_even_if_its_copy_was_not_due(lab: Path, out: Path) -> None:
    logger = HubqueueLogger(worker="thread")
    for cadence in logger._checkpoints._cadences.values():
        cadence.timed(lambda: None)
        cadence._next = float("inf")  # a copy that took very long

    fit(logger, saving_to(out))

    (run,) = runs_at(lab)
    assert run.checkpoints == {6: [digests(out / "epoch=2-step=6.ckpt")]}


def test_the_best_checkpoint_is_known_as_the_best(lab: Path, out: Path) -> None:
    best = saving_to(out, save_top_k=1, monitor="score", mode="min", filename="best")
    logger = HubqueueLogger(worker="thread")

    fit(logger, best, saving_to(out, filename="{step}"))

    (run,) = runs_at(lab)
    assert json.loads((lab / run.name / "best.json").read_text())["step"] == 2
    assert json.loads((lab / run.name / "latest.json").read_text())["step"] == 6
    assert run.checkpoints is not None and digests(out / "best.ckpt") in run.checkpoints[2]


class LateIO(plugins.TorchCheckpointIO):
    """Writes only when it may. `record` has the digests of each file when it is written."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.record: list[dict[str, str]] = []

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        self.may.wait(60)
        super().save_checkpoint(checkpoint, path, storage_options)
        self.record.append(digests(Path(path)))


def checkpoints(logger: Any) -> list[Any]:
    """The entries of all checkpoints that were saved until now."""
    found: list[Any] = logger.run.outbox.stats.entries(run_id=logger.run.id, kind="ckpt")
    return found


def test_a_checkpoint_that_another_thread_writes_is_saved_when_it_is_written(lab: Path, out: Path) -> None:
    io, logger, counts = LateIO(), HubqueueLogger(worker="thread"), []

    def act(trainer: Any) -> None:
        if trainer.current_epoch == 2:
            # Two checkpoints are to be written, and none is there.
            counts.append(len(checkpoints(logger)))
            io.may.set()
            wait_until(lambda: len(checkpoints(logger)) == 2, timeout=60)

    # The framework removes each of them as soon as it has requested the next one.
    saving = saving_to(out, save_top_k=1, filename="same", enable_version_counter=False)
    fit(logger, saving, act=act, plugins=[plugins.AsyncCheckpointIO(io)])

    (run,) = runs_at(lab)
    assert counts == [0]
    assert run.checkpoints is not None and run.checkpoints[6] == [io.record[2]]
    assert len({str(each) for each in io.record}) == 3
    assert all(found == [io.record[step // 2 - 1]] for step, found in run.checkpoints.items())


def test_a_failing_training_keeps_the_checkpoint_that_is_being_written(lab: Path, out: Path) -> None:
    io, logger = LateIO(), HubqueueLogger(worker="thread")

    def act(trainer: Any) -> None:
        if trainer.current_epoch == 1:
            threading.Timer(0.5, io.may.set).start()
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fit(logger, saving_to(out), act=act, plugins=[plugins.AsyncCheckpointIO(io)])

    (run,) = runs_at(lab)
    assert ending(lab, run) == ("failed", "RuntimeError")
    assert run.checkpoints == {2: io.record}


def test_a_file_that_is_copied_is_not_removed_meanwhile(tmp_path: Path) -> None:
    io = plugins.AsyncCheckpointIO(plugins.TorchCheckpointIO())
    writes = importlib.import_module("hubqueue.integrations.lightning.writes").CheckpointWrites(io)
    path, may, copying, seen = tmp_path / "a.ckpt", threading.Event(), threading.Event(), []

    def copy() -> None:
        copying.set()
        may.wait(60)
        seen.append(path.exists())

    with writes._changed:
        io.save_checkpoint({"a": 1}, str(path))
        assert writes.defers(str(path), copy)
    assert copying.wait(60)
    removing = threading.Thread(target=io.remove_checkpoint, args=(str(path),))
    removing.start()
    removing.join(0.2)
    may.set()
    removing.join(60)

    assert seen == [True]
    assert not path.exists()
    io.teardown()


def test_the_metrics_of_a_test_belong_to_the_same_run(lab: Path) -> None:
    trainer = fit(HubqueueLogger(worker="thread"))

    trainer.test(dataloaders=data(), ckpt_path=None, model=trainer.lightning_module)

    (run,) = runs_at(lab)
    assert run.state == "finished"
    assert run.metrics[6].keys() == {"tested", "epoch"}


def test_a_resumed_training_continues_its_run(lab: Path, out: Path) -> None:
    fit(HubqueueLogger(worker="thread"), saving_to(out), epochs=2)

    fit(
        HubqueueLogger(worker="thread"),
        saving_to(out),
        epochs=4,
        resume=out / "epoch=1-step=4.ckpt",
    )

    (run,) = runs_at(lab)
    assert (run.state, sorted(run.metrics)) == ("finished", list(range(8)))


def test_a_new_training_is_another_run(lab: Path, out: Path) -> None:
    for number in range(2):
        fit(HubqueueLogger(worker="thread"), saving_to(out / str(number)))

    assert [run.state for run in runs_at(lab)] == ["finished", "finished"]


def test_a_checkpoint_that_was_copied_elsewhere_starts_a_new_run(lab: Path, out: Path) -> None:
    fit(HubqueueLogger(worker="thread"), saving_to(out), epochs=2)
    (out / "elsewhere").mkdir()
    found = (out / "epoch=1-step=4.ckpt").rename(out / "elsewhere" / "last.ckpt")

    fit(HubqueueLogger(worker="thread"), saving_to(out / "new"), epochs=4, resume=found)

    assert [sorted(run.metrics) for run in runs_at(lab)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_without_a_folder_the_checkpoints_are_in_that_of_the_logger(lab: Path, out: Path) -> None:
    logger = HubqueueLogger(name="first", version="a", save_dir=out, worker="thread")

    fit(logger, L.callbacks.ModelCheckpoint())

    assert (out / "first" / "a" / "checkpoints" / "epoch=2-step=6.ckpt").is_file()
    assert [run.name for run in runs_at(lab)] == ["first"]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (RuntimeError("no"), ("failed", "RuntimeError")),
        (KeyboardInterrupt(), ("failed", "KeyboardInterrupt")),
        (SystemExit(0), ("finished", None)),
        (SystemExit(3), ("failed", "SystemExit: 3")),
    ],
    ids=["error", "Ctrl-C", "exit 0", "exit 3"],
)
def test_an_exception_ends_the_run(
    lab: Path, out: Path, error: BaseException, end: tuple[str, str | None]
) -> None:
    def act(trainer: Any) -> None:
        if trainer.current_epoch == 1:
            raise error

    # Lightning makes an exit of Ctrl-C.
    with pytest.raises((type(error), SystemExit)):
        fit(HubqueueLogger(worker="thread"), saving_to(out), act=act)

    (run,) = runs_at(lab)
    assert ending(lab, run) == end
    assert sorted(run.metrics) == [0, 1]
    assert run.checkpoints == {2: [digests(out / "epoch=0-step=2.ckpt")]}


def test_an_exception_before_the_first_step_starts_no_run(lab: Path, home: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.such\.ckpt"):
        fit(HubqueueLogger(worker="thread"), resume=Path("no.such.ckpt"))

    assert runs_at(lab) == []


def test_a_home_that_cannot_be_used_does_not_disturb_the_training(
    home: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_text("no folder")

    trainer = fit(HubqueueLogger(timeout=0), saving_to(out))

    assert trainer.current_epoch == 3
    assert "home" in caplog.text


def test_an_error_of_a_hook_does_not_reach_the_training(
    lab: Path, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saving = saving_to(out)
    monkeypatch.setattr(
        type(saving), "_last_checkpoint_saved", property(lambda _: 1 / 0, lambda *_: None), raising=False
    )

    trainer = fit(HubqueueLogger(worker="thread"), saving)

    assert trainer.current_epoch == 3
    assert "after_save_checkpoint failed in hubqueue" in caplog.text
    assert [run.state for run in runs_at(lab)] == ["finished"]


def test_a_logger_can_be_pickled_during_its_training(lab: Path) -> None:
    logger, copies = HubqueueLogger(worker="thread"), []

    fit(logger, act=lambda _: copies.append(pickle.loads(pickle.dumps(logger))))

    (run,) = runs_at(lab)
    assert {copy.run for copy in copies} == {None}
    assert run.name.endswith(str(copies[0]._last_id))


def test_a_mistake_of_a_person_raises_at_once() -> None:
    with pytest.raises(InvalidArgument, match="no option 'destinaton'; did you mean 'destination'"):
        HubqueueLogger(destinaton="lab")
    with pytest.raises(ConfigError, match="nowhere"):
        HubqueueLogger(destination="nowhere")
    with pytest.raises(InvalidArgument, match="args must be a mapping"):
        HubqueueLogger(args=["rate"])


def test_the_training_stops_when_the_hub_asks_for_it(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HUBQUEUE_DEFAULT_DESTINATION")
    with Sandbox(tmp_path / "hub") as hub:
        for name, value in platform_environ(home, hub.url).items():
            monkeypatch.setenv(name, value)
        logger = HubqueueLogger(worker="thread", model_name="tiny.pt", args={"project": "p"}, timeout=5)

        def act(trainer: Any) -> None:
            if trainer.current_epoch > 0:
                logger.run.wait(timeout=30)
            if trainer.current_epoch == 1:
                (run_id,) = hub.runs
                hub.cancel(run_id)
            threading.Event().wait(0.1)

        trainer = fit(logger, act=act, epochs=300)

    assert trainer.current_epoch < 300


# Several processes.


def train(out: Path, *launcher: str, how: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TRAIN_DEVICES": "2", "TRAIN_END": how, **settings}
    command = [sys.executable, *launcher, str(SCRIPT), "--out", str(out), "--epochs", "3"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240, check=False)
    subprocess.run([sys.executable, "-m", "hubqueue", "drain"], capture_output=True, check=True)
    return done


@pytest.mark.parametrize("launcher", [(), TORCHRUN], ids=["lightning", "torchrun"])
def test_a_process_that_dies_ends_the_run_of_all_as_failed(
    lab: Path, out: Path, launcher: tuple[str, ...]
) -> None:
    done = train(out, *launcher, how="rank")

    (run,) = runs_at(lab)
    assert done.returncode != 0
    assert ending(lab, run)[0] == "failed", done.stdout + done.stderr
    assert sorted(run.metrics) == [0, 1, 2, 3]
    assert run.checkpoints == {4: [digests(out / "checkpoints" / "epoch=0-step=4.ckpt")]}


def test_an_exception_in_one_process_ends_the_run_as_failed(lab: Path, out: Path) -> None:
    train(out, how="rank-error")

    (run,) = runs_at(lab)
    assert ending(lab, run)[0] == "failed"


def test_only_the_process_with_rank_0_sends(
    lab: Path, home: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L.utilities.rank_zero_only, "rank", 1)

    fit(HubqueueLogger(worker="thread"), saving_to(out))

    assert runs_at(lab) == []
    assert not home.exists()
