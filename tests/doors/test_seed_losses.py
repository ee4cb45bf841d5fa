"""What the seed and its SDK lose or do wrong, each done to hubqueue: the rows of docs/seed-parity.md that have no other test."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from callbacks import hub_callbacks
from stage import environ_of, hubqueue, python, wait_until
from trainer import V82, Trainer

from hubqueue import HUBTrainingSession
from hubqueue.config.home import Home
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import UnknownModel
from hubqueue.integrations.cadence import Cadence, Timers
from hubqueue.integrations.hub_session import model as hub_model
from hubqueue.outbox.uploads import Upload, upload_of
from hubqueue.producer.progress import UploadBar
from hubqueue.sandbox import Sandbox
from hubqueue.worker.daemon import worker_lives
from hubqueue.worker.events import BatchDelivered, UploadProgressed
from hubqueue.worker.progress import UploadProgress

pytestmark = pytest.mark.usefixtures("migrated_home")

EPOCHS = """
import hubqueue, os
session = hubqueue.HUBTrainingSession.create_session("yolov8n.pt", {"epochs": 3}, worker=os.environ["MODE"])
for epoch in range(3):
    session.metrics_queue[epoch] = '{"loss": 1.0}'
"""


@pytest.fixture
def at_hub(home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    for name, value in environ_of(home, hub.url).items():
        monkeypatch.setenv(name, value)
    return hub


@pytest.mark.parametrize(
    "end", ["raise SystemExit(3)", "import signal; os.kill(os.getpid(), signal.SIGKILL)"]
)
@pytest.mark.parametrize("mode", ["thread", "none"])
def test_l3_l4_an_end_right_after_an_epoch_loses_none(
    at_hub: Sandbox, home: Path, mode: str, end: str
) -> None:
    environ = environ_of(home, at_hub.url, MODE=mode)
    python(EPOCHS + end, environ).communicate(timeout=60)

    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0
    assert sorted(at_hub.metrics(at_hub.models[0])) == [0, 1, 2]


@pytest.mark.parametrize("fault", ["html", "redirect", "empty"])
def test_l13_a_captive_portal_is_no_delivery(at_hub: Sandbox, home: Path, fault: str) -> None:
    at_hub.fail(f"metrics:{fault}:times=2")
    environ = environ_of(home, at_hub.url, MODE="none")
    python(EPOCHS, environ).communicate(timeout=60)

    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0
    assert sorted(at_hub.metrics(at_hub.models[0])) == [0, 1, 2]


@pytest.mark.parametrize(
    "fault", ["ckpt:cut-body:times=1", "ckpt:silence:times=1", "ckpt:429:retry-after=1:times=1"]
)
def test_l8_l20_l22_an_odd_answer_to_the_final_upload_ends_no_training(
    at_hub: Sandbox, home: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBQUEUE_DESTINATIONS__HUB__ANSWER_TIMEOUT", "1")
    at_hub.fail(fault)

    class Session(HUBTrainingSession):
        def __init__(self, identifier: str) -> None:
            super().__init__(identifier, worker="thread", deadline=60)

    with hub_callbacks("8.2.70", Session) as callbacks:
        trainer = Trainer(tmp_path / "train", epochs=1, habits=V82, callbacks=callbacks)
        trainer.train()

    finals = [record for record in at_hub.checkpoints(at_hub.models[0]) if record.type == "final"]
    assert {record.path.read_bytes() for record in finals} == {trainer.written["best.pt"]}
    assert trainer.hub_session.alive is False


def test_l21_a_silent_hub_costs_no_threads(at_hub: Sandbox, home: Path) -> None:
    at_hub.fail("any:silence")
    session = HUBTrainingSession.create_session("yolov8n.pt", {"epochs": 30}, worker="thread")
    assert session is not None
    session.metrics_queue[0] = '{"loss": 1.0}'
    before = threading.active_count()

    for epoch in range(1, 120):
        session.metrics_queue[epoch] = '{"loss": 1.0}'
        session.upload_metrics()

    # The worker's own and the sandbox's, whose number does not grow; the original has one more for each epoch.
    assert threading.active_count() <= before + 20
    session.alive = False


@pytest.mark.parametrize(
    ("data", "args", "file"),
    [
        ({"train_args": {"data": "d.zip", "epochs": 3}, "cfg": "yolov8n.yaml"}, {"data": "d.zip", "epochs": 3}, "yolov8n.yaml"),
        ({"train_args": {"data": "d.zip"}, "cfg": "yolov5n.yaml", "is_pretrained": True, "weights": "yolov5n6.pt"}, {"data": "d.zip"}, "yolov5n6u.pt"),
        ({"has_last_weights": True, "data": "d.zip", "resume": "https://h/epoch-3.pt"}, {"data": "d.zip", "resume": True}, "https://h/epoch-3.pt"),
        ({"status": "trained", "weights": "https://h/best.pt"}, None, "https://h/best.pt"),
        ({"train_args": {"data": "d"}, "cfg": "yolov5nu.yaml"}, {"data": "d"}, "yolov5n.yaml"),
    ],
)  # fmt: skip
def test_a21_to_a24_what_a_model_begins_with(data: dict[str, object], args: object, file: str) -> None:
    assert (hub_model.train_args(data), hub_model.model_file(data)) == (args, file)


@pytest.mark.parametrize(
    "data", [{}, {"train_args": None}, {"train_args": {"epochs": 3}}, {"has_last_weights": True}]
)
def test_l31_a_model_without_data_is_one_clear_error(data: dict[str, object]) -> None:
    with pytest.raises(UnknownModel, match="no data set for this model yet") as caught:
        hub_model.train_args(data)
    assert isinstance(caught.value, ValueError)


def test_l36_the_bar_counts_what_was_sent(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    home, shown = Home(tmp_path / "home"), Terminal()
    home.create()
    progress = UploadProgress(home)
    progress.note(UploadProgressed("run", 1, 3_000_000, 4_000_000))

    with UploadBar(home, "run", stream=shown) as bar:
        assert upload_of(home, "run") == Upload(3_000_000, 4_000_000, None)
        bar.show(True)

    assert "3.00M/4.00M" in shown.getvalue()
    delivered = BatchDelivered("run", Kind.CKPT, 1, 4 << 20, timedelta(seconds=1))
    progress.note(delivered)
    assert upload_of(home, "run") is None
    unseen = io.StringIO()
    progress.note(UploadProgressed("run", 1, 3_000_000, 4_000_000))
    with UploadBar(home, "run", stream=unseen) as silent:
        silent.show(True)
    assert unseen.getvalue() == ""


def test_l36_a_detached_worker_tells_how_far_it_is(at_hub: Sandbox, home: Path, tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(bytes(6 << 20))
    at_hub.fail("ckpt:slow-read:seconds=0.005")
    seen: set[int] = set()
    session = HUBTrainingSession.create_session("yolov8n.pt", {"epochs": 1}, worker="auto", deadline=0.0)
    assert session is not None and session._run is not None

    session.upload_model(0, str(tmp_path / "best.pt"), final=True)

    def looked() -> bool:
        found = upload_of(Home(home), session._run.id)  # type: ignore[union-attr, arg-type]
        if found is not None:
            seen.add(found.sent)
        return len(seen) > 1 or bool(at_hub.checkpoints(at_hub.models[0]) if at_hub.models else False)

    wait_until(looked, timeout=90)
    assert len(seen) > 1, "the upload was over before anything was told"
    session.alive = False
    # The worker must not outlive its hub.
    assert session._run.outbox is not None
    with suppress(ProcessLookupError):  # it leaves by itself when it has been idle
        os.kill(session._run.outbox.status()["worker"]["pid"], signal.SIGTERM)
    wait_until(lambda: not worker_lives(Home(home)), timeout=90)


def test_l37_a_clock_that_is_set_back_stops_nothing() -> None:
    timers = Timers(Cadence(), {"metrics": time.time() + 1e6, "ckpt": time.time() + 1e6})

    assert time.time() - timers["metrics"] > 3
    assert time.time() - timers["ckpt"] > 900
    timers["ckpt"] = time.time()
    assert time.time() - timers["ckpt"] > 900
    with pytest.raises(KeyError):
        timers["other"]


def test_l39_a_key_in_an_address_is_in_no_file_but_the_credentials(at_hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, at_hub.url, MODE="none")
    python(EPOCHS, environ).communicate(timeout=60)
    hubqueue(environ, "drain", "--timeout", "60")
    model, key = at_hub.models[0], "k" * 42

    code = f"import hubqueue; hubqueue.HUBTrainingSession('https://hub.ultralytics.com/models/{model}?api_key={key}', worker='none')"
    out, _ = python(code, environ).communicate(timeout=60)

    assert key not in out
    holders = [path.name for path in home.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert set(holders) <= {"credentials.toml"}
