"""The losses of the package's own Platform callback, tried on hubqueue: the rows of docs/platform.md.

Those that concern only the protocol are in tests/contract/test_platform.py.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from platform_stage import Stage, staged
from stage import hubqueue, kill, platform_environ, python, start_worker, totals, wait_until
from trainer import V84, Trainer

from hubqueue.domain.entry import Kind
from hubqueue.integrations.ultralytics.attachment import attach
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock

pytestmark = pytest.mark.usefixtures("migrated_home")

WEIGHTS = b"weights " * 200_000


@pytest.fixture
def at(hub: Sandbox, tmp_path: Path, clock: FakeClock) -> Iterator[Stage]:
    with staged(hub, tmp_path, clock) as stage:
        stage.start()
        yield stage


@pytest.fixture
def at_hub(home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    for name, value in platform_environ(home, hub.url).items():
        monkeypatch.setenv(name, value)
    return hub


class Yolo:
    """A replacement for `YOLO(...)` with what `attach` needs."""

    def __init__(self, folder: Path, **args: Any) -> None:
        self.callbacks: dict[str, list[Callable[[Any], None]]] = {}
        self.folder, self.args = folder, args

    def train(self, **options: Any) -> Trainer:
        given = {"project": "coco", "name": "exp-1", **self.args, **options}
        trainer = Trainer(self.folder, habits=V84, callbacks=self.callbacks, **given)
        trainer.train()
        return trainer


def sent(hub: Sandbox, *names: str) -> list[dict[str, Any]]:
    (model_id,) = hub.runs
    return [each.data for each in hub.run(model_id).events if each.event in names]


@pytest.mark.parametrize(
    "fault",
    [
        "429:retry-after=1",
        "close:store=yes",
        "silence:seconds=1",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("503", "reset", "409")),
    ],
)
def test_p1_an_epoch_that_fails_once_arrives_once(at: Stage, fault: str) -> None:
    at.hub.fail(f"metrics:{fault}:times=1")
    at.log(0, 1)
    at.drain()

    assert sorted(at.events("epoch_end")) == ["epoch 0", "epoch 1"]


def test_p2_a_401_loses_nothing(at: Stage) -> None:
    at.hub.fail("metrics:401:times=1")
    at.log(0, 1)
    at.save(WEIGHTS, final=True)
    at.end()
    at.step()
    held, holds = totals(at.outbox), [each["held"] or "" for each in at.outbox.stats.destinations()]

    at.drain()  # after a while a probe gets through

    assert "the key was refused" in "".join(holds)
    assert held["pending"] >= 3
    assert at.events()[-1] == "training_complete"
    assert at.contents() == [WEIGHTS]
    assert sorted(at.events("epoch_end")) == ["epoch 0", "epoch 1"]


def test_p3_a_start_that_fails_for_long_loses_nothing(at: Stage) -> None:
    at.hub.fail("registration:503:times=8")
    at.log(0)
    at.end()
    at.drain()

    assert at.events() == ["training_started", "epoch 0", "training_complete"]


@pytest.mark.parametrize("change", ["overwritten", "shorter", "gone"])
def test_p4_p5_p9_a_file_that_changes_is_sent_as_it_was(at: Stage, change: str) -> None:
    content = WEIGHTS[:120_000]  # takes the slow reader a few seconds
    at.hub.fail("ckpt:slow-read:path=/storage/:times=1:seconds=0.001")
    path = at.save(content, final=True)
    at.end()
    at.step()  # the start of the training
    at.worker.step()
    wait_until(lambda: any(each.method == "PUT" for each in at.hub.requests))
    path.unlink() if change == "gone" else path.write_bytes(
        b"other" * (9 if change == "shorter" else 400_000)
    )
    assert at.worker.wait_free(60)
    at.drain()

    assert at.contents() == [content]
    assert at.events()[-1] == "training_complete"


def test_p6_epochs_come_in_order_and_the_end_last(at: Stage) -> None:
    at.hub.fail("metrics:slow-read:times=1:seconds=1")
    at.log(0, 1, 2)
    at.end()
    at.drain()

    assert at.events() == ["training_started", "epoch 0", "epoch 1", "epoch 2", "training_complete"]


STEPS = {
    # When the worker is killed: after the URL was issued, after the bytes arrived, after the announcement took effect.
    "url": "ckpt:silence:path=/storage/:times=1:seconds=60",
    "bytes": "ckpt:silence:event=checkpoint_saved:times=1:seconds=60",
    "announced": "ckpt:drip:event=checkpoint_saved:times=1:seconds=1",
}


@pytest.mark.parametrize("step", STEPS)
def test_p7_kill_9_at_each_step_leaves_one_promoted_file(
    step: str, home: Path, hub: Sandbox, tmp_path: Path
) -> None:
    environ = platform_environ(home, hub.url)
    (tmp_path / "best.pt").write_bytes(WEIGHTS)
    code = """
import hubqueue, sys
run = hubqueue.start_run("yolo26n.pt", args={"project": "p"}, worker="none", strict=True)
run.log_metrics({"loss": 1.0}, epoch=0)
run.save_checkpoint(sys.argv[1], epoch=0, final=True, map=0.5)
run.finish(timeout=0)
"""
    python(code, environ, str(tmp_path / "best.pt")).communicate(timeout=60)
    hub.fail(STEPS[step])
    worker = start_worker(environ)
    reached = {"url": "PUT", "bytes": "POST", "announced": "POST"}[step]
    wait_until(
        lambda: any(
            each.fault is not None and each.method == reached and (step != "announced" or _promoted(hub))
            for each in hub.requests
        )
    )
    kill(worker)

    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0

    (model_id,) = hub.runs
    run = hub.run(model_id)
    assert [each.path.read_bytes() for each in run.uploads if each.promoted_at and each.path] == [WEIGHTS]
    # Bytes that had arrived are not sent again.
    assert len([each for each in hub.requests if each.method == "PUT" and each.status == 200]) == 1
    assert [each.event for each in run.events if each.event == "training_complete"] == ["training_complete"]


def _promoted(hub: Sandbox) -> bool:
    return any(each.promoted_at for model_id in hub.runs for each in hub.run(model_id).uploads)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_p8_a_training_that_fails_is_reported_as_failed(
    error: type[BaseException], at_hub: Sandbox, home: Path, tmp_path: Path
) -> None:
    def fail(trainer: Trainer) -> None:
        if trainer.epoch == 2:
            raise error("no memory")

    model = Yolo(tmp_path / "train")
    attach(model, worker="none")
    with pytest.raises(error):
        model.train(epochs=5, events={"on_train_epoch_start": fail})
    assert hubqueue(platform_environ(home, at_hub.url), "drain", "--timeout", "60").returncode == 0

    assert sent(at_hub, "training_failed") == [{"error": error.__name__, "runId": 1}]
    assert [each["epoch"] for each in sent(at_hub, "epoch_end")] == [0, 1]


def test_p8_a_training_that_is_killed_is_reported_as_failed(at_hub: Sandbox, home: Path) -> None:
    environ = platform_environ(home, at_hub.url)
    code = """
import hubqueue, os, signal
run = hubqueue.start_run("yolo26n.pt", worker="none")
run.log_metrics({"loss": 1.0}, epoch=0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    python(code, environ).communicate(timeout=60)
    worker = start_worker(environ)
    wait_until(lambda: at_hub.runs and sent(at_hub, "training_failed"))
    worker.terminate()
    worker.communicate(timeout=60)

    assert sent(at_hub, "training_failed")[0]["error"] == "the training ended without reporting"


def test_p11_an_announcement_that_is_refused_keeps_the_bytes_for_a_person(at: Stage) -> None:
    at.hub.fail("ckpt:400:event=checkpoint_saved:times=1")
    at.save(WEIGHTS, final=True)
    at.step(3)
    assert totals(at.outbox)["dead"] == 1

    at.outbox.entries.redrive()
    at.drain()

    assert at.contents() == [WEIGHTS]


def test_p12_after_an_upload_that_failed_the_newest_goes_next_and_the_final_one_at_once(
    hub: Sandbox, tmp_path: Path, clock: FakeClock
) -> None:
    with staged(hub, tmp_path, clock, HUBQUEUE_RATE_LIMITS__CKPT="900") as at:
        at.start()
        at.step()
        hub.fail("ckpt:503:path=/storage/:times=2")
        at.save(WEIGHTS)
        at.step()
        at.save(WEIGHTS[:-8] + b"newest  ", epoch=1)
        at.step()
        at.save(WEIGHTS[:-8] + b"the last", epoch=2, final=True)
        at.clock.advance(-990)  # the limit of 900 s has not passed
        at.step()

        assert at.contents() == [WEIGHTS[:-8] + b"the last"]
        assert totals(at.outbox)["superseded"] == 2


class Float32:
    """A scalar like those of numpy: not a float, but with `item`."""

    def __init__(self, value: float) -> None:
        self._value = value

    def item(self) -> float:
        return self._value


def test_p13_scalars_of_numpy_are_numbers(at_hub: Sandbox, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train")
    attach(model, worker="thread", timeout=60)
    model.train(epochs=2, metrics=lambda epoch: {"val/box_loss": Float32(0.25), "fitness": Float32(epoch)})

    assert [each["metrics"]["val/box_loss"] for each in sent(at_hub, "epoch_end")[:2]] == [0.25, 0.25]
    assert sent(at_hub, "training_complete")[0]["results"]["bestFitness"] == 1.0


def test_p14_p17_the_console_is_sent_with_the_option_and_nothing_is_redirected(
    at_hub: Sandbox, tmp_path: Path
) -> None:
    package = logging.getLogger("ultralytics")
    level, streams = package.level, (sys.stdout, sys.stderr)
    package.setLevel(logging.INFO)
    at_hub.fail("event:503:times=2")

    def say(trainer: Trainer) -> None:
        assert (sys.stdout, sys.stderr) == streams
        for line in range(4):
            package.info("epoch %d, line %d, api_key=%s", trainer.epoch, line, "c" * 40)

    model = Yolo(tmp_path / "train")
    attach(model, worker="thread", timeout=60, console=True)
    try:
        model.train(epochs=2, events={"on_train_epoch_end": say})
    finally:
        package.setLevel(level)

    chunks = sent(at_hub, "console_output")
    lines = [line for each in chunks for line in each["content"].splitlines()]
    assert [line.partition("] ")[2][:15] for line in lines] == [
        f"epoch {epoch}, line {line}" for epoch in range(2) for line in range(4)
    ]
    assert sum(each["lineCount"] for each in chunks) == 8
    assert not any("cccc" in line for line in lines)
    assert package.handlers == []


def test_p14_without_the_option_no_console_line_is_sent(at_hub: Sandbox, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train")
    attach(model, worker="thread", timeout=60)
    model.train(
        epochs=1,
        events={"on_train_epoch_end": lambda _trainer: logging.getLogger("ultralytics").warning("x")},
    )

    assert sent(at_hub, "console_output") == []


@pytest.mark.parametrize("header", ["600", "http-date+600"])
def test_p16_a_wait_that_the_hub_asks_for_is_respected(header: str, hub: Sandbox, tmp_path: Path) -> None:
    # On the real clock, because an HTTP date refers to the wall clock.
    environ = platform_environ(tmp_path / "home", hub.url)
    hub.fail(f"registration:503:retry-after={header}")
    code = 'import hubqueue; hubqueue.start_run("yolo26n.pt", worker="none", strict=True)'
    python(code, environ).communicate(timeout=60)
    hubqueue(environ, "drain", "--timeout", "2")

    with open_outbox(tmp_path / "home", environ=environ) as outbox:
        due = outbox.stats.next_due("platform", [Kind.REGISTRATION])
        assert due is not None
        assert timedelta(seconds=500) < due - outbox.database.now() < timedelta(seconds=700)


def test_p19_a_training_of_the_packages_own_callback_is_resumed(at_hub: Sandbox, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "first")
    attach(model, worker="thread", timeout=60)
    model.train(epochs=1)
    (known,) = at_hub.runs
    # As on another machine: no outbox has the run; only the record of the package's own callback exists.
    folder = tmp_path / "copied"
    folder.mkdir()
    (folder / "platform_model_id.txt").write_text(known)

    again = Yolo(folder)
    attach(again, worker="thread", timeout=60, home=tmp_path / "other-home")
    again.train(epochs=3, start_epoch=1, resume=True)

    # The sandbox does not reopen a complete model, so the training gets a new one; its first start named the old one.
    starts = [each for each in at_hub.requests if each.event == "training_started"]
    assert starts[1].model_id == known
    assert len(at_hub.runs) == 2


def test_a_resumed_training_is_the_same_model(at_hub: Sandbox, tmp_path: Path) -> None:
    def fail(trainer: Trainer) -> None:
        if trainer.epoch == 1:
            raise RuntimeError

    folder = tmp_path / "train"
    model = Yolo(folder)
    attach(model, worker="thread", timeout=60)
    with pytest.raises(RuntimeError):
        model.train(epochs=3, events={"on_train_epoch_start": fail})
    again = Yolo(folder)
    attach(again, worker="thread", timeout=60)
    again.train(epochs=3, start_epoch=1, resume=True)

    assert [each["epoch"] for each in sent(at_hub, "epoch_end")] == [0, 1, 2, 3]
    (model_id,) = at_hub.runs
    assert at_hub.run(model_id).state == "complete"


@pytest.mark.parametrize("fault", ["redirect", "html", "204"])
def test_p20_an_invalid_response_is_retried(at: Stage, fault: str) -> None:
    at.hub.fail(f"metrics:{fault}:times=1")
    at.log(0)
    at.drain()

    assert at.events("epoch_end") == ["epoch 0"]
    assert any(each.startswith("retry: ") for each in at.reasons())


def test_the_packages_own_callback_is_removed_from_the_training(at_hub: Sandbox, tmp_path: Path) -> None:
    def theirs(_trainer: Any) -> None:
        raise AssertionError("it was not removed")

    theirs.__module__ = "ultralytics.utils.callbacks.platform"
    model = Yolo(tmp_path / "train")
    attach(model, worker="thread", timeout=60)
    for event in ("on_fit_epoch_end", "on_model_save", "on_train_end"):
        model.callbacks[event].append(theirs)
    model.train(epochs=1)

    assert [each["epoch"] for each in sent(at_hub, "epoch_end")] == [0, 1]


def test_the_end_of_a_training_carries_its_results(at_hub: Sandbox, tmp_path: Path) -> None:
    model = Yolo(tmp_path / "train")
    attach(model, worker="thread", timeout=60)
    trainer = model.train(epochs=3)

    (end,) = sent(at_hub, "training_complete")
    assert end["results"]["bestEpoch"] == 2
    assert end["results"]["metrics"]["metrics/mAP50-95(B)"] == 0.99
    assert end["results"]["modelSize"] == len(trainer.written["best.pt"])
    (start,) = sent(at_hub, "training_started")
    assert (start["epochs"], start["trainArgs"]["project"], start["trainArgs"]["imgsz"]) == (3, "coco", "64")
    assert json.dumps(start).count(str(tmp_path)) == 0
