"""`hubqueue.ultralytics.attach`: trainings that behave like ultralytics 8.2, 8.3 and 8.4 reach the hub completely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage import environ_of, hubqueue, totals, wait_until
from trainer import V82, V83, V84, Trainer, Yolo

from hubqueue.domain.errors import ConfigError
from hubqueue.integrations.ultralytics.attachment import Attachment, attach
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")

HABITS = {"8.2": V82, "8.3": V83, "8.4": V84}


@pytest.fixture
def at_hub(home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    for name, value in environ_of(home, hub.url).items():
        monkeypatch.setenv(name, value)
    return hub


def attached(model: Any, **options: Any) -> Attachment:
    return attach(model, **{"timeout": 60.0, "worker": "thread", **options})


def only_model(hub: Sandbox) -> str:
    wait_until(lambda: hub.models)
    (model,) = hub.models
    return model


@pytest.mark.parametrize("version", HABITS)
def test_every_epoch_and_the_best_weights_arrive(version: str, at_hub: Sandbox, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train", HABITS[version])
    attached(model)

    trainer = model.train(epochs=4)

    found = at_hub.metrics(only_model(at_hub))
    assert sorted(found) == [0, 1, 2, 3, 4]  # the validation of the best model follows the last epoch
    assert found[3]["metrics/mAP50-95(B)"] == 0.4
    assert found[4]["metrics/mAP50-95(B)"] == 0.99
    final = at_hub.checkpoints(only_model(at_hub))[-1]
    assert (final.type, final.epoch, final.map) == ("final", 3, 0.99)
    assert final.path.read_bytes() == trainer.written["best.pt"]


def test_periodic_checkpoints_are_the_newest_and_the_best(
    at_hub: Sandbox, home: Path, tmp_path: Path
) -> None:
    model = Yolo(tmp_path / "train")
    seen: list[dict[str, int]] = []

    def record(_trainer: Trainer) -> None:
        with open_outbox(home) as outbox:
            seen.append(totals(outbox))

    attached(model, worker="none", timeout=0)
    model.train(epochs=2, events={"on_fit_epoch_end": record})

    # registration, last and best
    assert seen[0] == {"enqueued": 3, "pending": 3}
    with open_outbox(home) as outbox:
        kinds = [each["key"] for each in outbox.stats.entries(kind="ckpt") if each["state"] == "pending"]
    assert kinds == ["final"]


def test_a_failed_training_is_marked_as_failed_and_keeps_its_last_checkpoint(
    at_hub: Sandbox, home: Path, tmp_path: Path
) -> None:
    def fail(trainer: Trainer) -> None:
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    model = Yolo(tmp_path / "train")
    attached(model)
    with pytest.raises(KeyboardInterrupt):
        model.train(epochs=5, events={"on_train_epoch_start": fail})

    with open_outbox(home) as outbox:
        (run,) = outbox.stats.runs()
    assert run["state"] == "failed"
    assert hubqueue(environ_of(home, at_hub.url), "drain", "--timeout", "60").returncode == 0
    assert sorted(at_hub.metrics(only_model(at_hub))) == [0, 1]
    newest = max(at_hub.checkpoints(only_model(at_hub)), key=lambda record: record.epoch)
    assert newest.path.read_bytes() == b"weights of epoch 1"


@pytest.mark.parametrize("known", [True, False], ids=["registered", "offline"])
def test_a_resumed_training_continues_the_same_run(
    known: bool, at_hub: Sandbox, home: Path, tmp_path: Path
) -> None:
    if not known:
        at_hub.fail("any:reset")

    class Killed(BaseException):
        pass

    def die(trainer: Trainer) -> None:
        if trainer.epoch == 2:
            raise Killed

    first = Yolo(tmp_path / "train")
    attached(first, timeout=1)
    with pytest.raises(Killed):
        first.train(epochs=4, events={"on_train_epoch_start": die})
    at_hub.heal()

    second = Yolo(tmp_path / "train")
    attached(second)
    second.train(epochs=4, start_epoch=2, resume=True, model=str(tmp_path / "train/weights/last.pt"))

    assert sorted(at_hub.metrics(only_model(at_hub))) == [0, 1, 2, 3, 4]
    with open_outbox(home) as outbox:
        (run,) = outbox.stats.runs()
    assert (run["state"], run["model"]) == ("finished", "yolov8n.pt")


def test_a_training_resumed_on_another_machine_continues_with_its_model(
    at_hub: Sandbox, home: Path, tmp_path: Path
) -> None:
    first = Yolo(tmp_path / "train")
    attached(first)
    first.train(epochs=1)
    model = only_model(at_hub)

    second = Yolo(tmp_path / "train")
    attached(second, home=tmp_path / "another home")
    second.train(epochs=3, start_epoch=1, resume=True)

    assert at_hub.models == [model]
    assert sorted(at_hub.metrics(model)) == [0, 1, 2, 3]


def test_a_new_training_in_an_old_folder_is_a_new_run(at_hub: Sandbox, tmp_path: Path) -> None:
    for _ in range(2):
        model = Yolo(tmp_path / "train")
        attached(model)
        model.train(epochs=1)

    assert len(at_hub.models) == 2


def test_one_model_object_trained_twice_makes_two_runs(at_hub: Sandbox, home: Path, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train")
    attached(model)

    model.train(epochs=1)
    model.train(epochs=2)

    assert sorted(len(at_hub.metrics(each)) for each in at_hub.models) == [2, 3]


def test_a_missing_best_checkpoint_is_replaced_by_the_last(at_hub: Sandbox, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train")
    attached(model)

    model.train(epochs=1, events={"on_train_end": lambda trainer: trainer.best.unlink()})

    final = at_hub.checkpoints(only_model(at_hub))[-1]
    assert (final.type, final.path.read_bytes()) == ("final", b"weights of epoch 0")


def test_a_stop_requested_by_the_hub_stops_the_trainer(at_hub: Sandbox, home: Path, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train")
    attachment = attached(model, worker="none", timeout=0)

    def cancel(trainer: Trainer) -> None:
        # As the worker records it when a hub asks to stop the training.
        assert attachment.run is not None and attachment.run.outbox is not None
        with attachment.run.outbox.database.write() as tx:
            from sqlalchemy import update

            from hubqueue.outbox.database.schema import runs

            tx.execute(update(runs).values(cancelled=True))

    trainer = model.train(epochs=50, events={"on_model_save": cancel})

    assert trainer.epoch == 0


@pytest.mark.usefixtures("new_home")
def test_only_the_first_process_of_several_sends(
    at_hub: Sandbox, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    model = Yolo(tmp_path / "train")
    attached(model)

    model.train(epochs=1)

    assert not home.exists()
    assert not (tmp_path / "train" / "hubqueue.json").exists()


def test_a_training_in_other_processes_is_logged(
    at_hub: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Launcher(Trainer):
        def train(self) -> None:
            """Starts one process for each GPU; no callback of this process is called."""

    model = Yolo(tmp_path / "train", V82, Launcher)
    attached(model)

    model.train(epochs=1)

    assert "start the script with torchrun" in caplog.text


def test_no_error_reaches_the_training(
    at_hub: Sandbox, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Trainer):
        def label_loss_items(self, _loss: object, prefix: str = "train") -> dict[str, float]:
            raise RuntimeError("a trainer of another kind")

    model = Yolo(tmp_path / "train", V84, Odd)
    attached(model, timeout=5)
    trainer = model.train(epochs=2)

    assert trainer.epoch == 1
    assert "on_fit_epoch_end failed in hubqueue; the training continues" in caplog.text
    assert at_hub.checkpoints(only_model(at_hub))[-1].type == "final"


def test_metrics_that_are_no_numbers_are_left_out(
    at_hub: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Scalar:
        ndim = 0

        def item(self) -> float:
            return 0.5

    model = Yolo(tmp_path / "train")
    attached(model)
    model.train(epochs=1, metrics=lambda _epoch: {"m": Scalar(), "nan": float("nan"), "name": "text"})

    first = at_hub.metrics(only_model(at_hub))[0]
    assert (first["m"], first["nan"]) == (0.5, None)
    assert "'name' is not a number" in caplog.text


def test_the_packages_own_callbacks_for_the_same_hub_are_removed(at_hub: Sandbox, tmp_path: Path) -> None:
    called: list[str] = []

    def theirs(_trainer: object) -> None:
        called.append("theirs")

    def another(_trainer: object) -> None:
        called.append("another's")

    theirs.__module__ = "ultralytics.utils.callbacks.hub"
    model = Yolo(tmp_path / "train")
    for event in ("on_pretrain_routine_start", "on_fit_epoch_end", "on_train_end"):
        model.callbacks[event] = [theirs, another]
    attached(model)

    model.train(epochs=1)

    assert set(called) == {"another's"}


def test_an_existing_trainer_can_be_attached_to(at_hub: Sandbox, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "train", epochs=2, habits=V84)
    attached(trainer)

    trainer.train()

    assert sorted(at_hub.metrics(only_model(at_hub))) == [0, 1, 2]


def test_an_invalid_option_raises_at_once(at_hub: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        attach(Yolo(tmp_path), destination="nowhere")


def test_a_model_without_a_suffix_is_registered_as_a_file(at_hub: Sandbox, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train")
    attached(model)

    model.train(epochs=1, model="yolov8n")

    assert at_hub.model(only_model(at_hub))["meta"]["name"] == "yolov8n.pt"


def test_a_snapshot_takes_a_small_share_of_the_time() -> None:
    from hubqueue.integrations.cadence import SHARE, Cadence

    now = [0.0]
    cadence = Cadence(lambda: now[0])

    def copy() -> None:
        now[0] += 2.0

    assert cadence.is_due
    cadence.timed(copy)
    now[0] += 2.0 / SHARE - 2.0 - 0.01
    assert not cadence.is_due
    now[0] += 0.02
    assert cadence.is_due


def test_the_record_in_the_trainings_folder_names_the_run_and_its_model(
    at_hub: Sandbox, home: Path, tmp_path: Path
) -> None:
    model = Yolo(tmp_path / "train")
    attached(model)
    model.train(epochs=1)

    record = json.loads((tmp_path / "train" / "hubqueue.json").read_text())

    with open_outbox(home) as outbox:
        (run,) = outbox.stats.runs()
    assert record == {"run": run["id"], "model": "yolov8n.pt", "remote_id": only_model(at_hub)}
