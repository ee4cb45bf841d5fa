"""HUBTrainingSession: the unmodified callbacks of ultralytics 8.2.70 and 8.3.253 run with it and lose nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from callbacks import VERSIONS, hub_callbacks
from stage import environ_of, hubqueue, python, totals, wait_until
from trainer import V82, V83, Habits, Trainer

from hubqueue import HUBTrainingSession
from hubqueue.domain.errors import ModelUnavailable, UnknownModel
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")

KEY = "key-of-the-tests"
WEB = "https://hub.ultralytics.com/models/"
HABITS: dict[str, Habits] = {"8.2.70": V82, "8.3.253": V83}


@pytest.fixture
def at_hub(home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A sandbox HUB that the sessions of this process send to, with short limits."""
    settings = environ_of(home, hub.url)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return hub


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., type[HUBTrainingSession]]]:
    """A function that returns a session class with these options; its sessions are ended after the test."""
    made: list[HUBTrainingSession] = []

    def configured(**options: Any) -> type[HUBTrainingSession]:
        class Session(HUBTrainingSession):
            def __init__(self, identifier: str, **more: Any) -> None:
                super().__init__(identifier, **{"worker": "thread", "deadline": 60.0, **options, **more})
                made.append(self)

        return Session

    yield configured
    for session in made:
        session.alive = False


def made_model(hub: Sandbox) -> str:
    wait_until(lambda: hub.models)
    return hub.models[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_packages_own_callbacks_deliver_every_epoch_and_the_final_checkpoint(
    version: str, at_hub: Sandbox, tmp_path: Path, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    with hub_callbacks(version, sessions()) as callbacks:
        trainer = Trainer(tmp_path / "train", epochs=5, habits=HABITS[version], callbacks=callbacks)

        trainer.train()

    model = made_model(at_hub)
    assert sorted(at_hub.metrics(model)) == [0, 1, 2, 3, 4]
    assert at_hub.metrics(model)[0]["model/parameters"] == 3157200
    assert (
        at_hub.metrics(model)[4]["metrics/mAP50-95(B)"] == 0.99
    )  # the final validation, as the callbacks write it
    final = at_hub.checkpoints(model)[-1]
    assert (final.type, final.name, final.map) == ("final", "best.pt", 0.99)
    assert final.path.read_bytes() == trainer.written["best.pt"]
    assert trainer.hub_session.model_url == f"{at_hub.url}/models/{model}"
    assert trainer.hub_session.alive is False


@pytest.mark.parametrize("version", VERSIONS)
def test_a_training_that_starts_offline_reaches_the_hub_later(
    version: str,
    at_hub: Sandbox,
    home: Path,
    tmp_path: Path,
    sessions: Callable[..., type[HUBTrainingSession]],
) -> None:
    at_hub.fail("any:reset")
    with hub_callbacks(version, sessions(worker="none")) as callbacks:
        trainer = Trainer(tmp_path / "train", epochs=3, habits=HABITS[version], callbacks=callbacks)
        trainer.train()
    assert at_hub.models == []

    at_hub.heal()
    drained = hubqueue(environ_of(home, at_hub.url), "drain", "--timeout", "60")

    assert drained.returncode == 0, drained.stderr
    model = made_model(at_hub)
    assert sorted(at_hub.metrics(model)) == [0, 1, 2]
    assert at_hub.checkpoints(model)[-1].path.read_bytes() == trainer.written["best.pt"]


def test_what_failed_is_visible_and_survives_a_restart(
    at_hub: Sandbox, home: Path, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    first = sessions()("yolov8n.pt")
    first.create_model({"epochs": 9, "data": "coco8.yaml"})
    wait_until(lambda: first.model_id)
    at_hub.fail("metrics:503")
    first.metrics_queue[0] = '{"loss": 1.0}'
    first.upload_metrics()
    wait_until(lambda: first.metrics_upload_failed_queue)
    first.alive = False

    second = sessions(worker="none")(str(first.model_id), deadline=1.0)
    assert second.metrics_upload_failed_queue == {0: '{"loss": 1.0}'}
    assert second.metrics_queue == {}

    at_hub.heal()
    assert hubqueue(environ_of(home, at_hub.url), "drain", "--timeout", "60").returncode == 0
    assert not second.metrics_upload_failed_queue
    assert at_hub.metrics(made_model(at_hub)) == {0: {"loss": 1.0}}


def test_merging_what_failed_never_brings_an_old_value_back(
    at_hub: Sandbox, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    session = sessions()("yolov8n.pt")
    session.create_model({"epochs": 9})
    wait_until(lambda: session.model_id)
    at_hub.fail("metrics:503")
    session.metrics_queue[2] = '{"loss": 1.0}'
    wait_until(lambda: session.metrics_upload_failed_queue)

    session.metrics_queue[2] = '{"loss": 0.5}'
    session.metrics_queue.update(session.metrics_upload_failed_queue)
    session.metrics_queue = {}  # type: ignore[assignment]
    at_hub.heal()

    model = made_model(at_hub)
    wait_until(lambda: at_hub.metrics(model) == {2: {"loss": 0.5}})
    assert len(session.metrics_queue) == 0


def test_an_epoch_that_the_hub_refuses_blocks_no_other(
    at_hub: Sandbox, home: Path, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    at_hub.fail("metrics:400:epoch=2")
    session = sessions()("yolov8n.pt")
    session.create_model({"epochs": 9})

    for epoch in range(6):
        session.metrics_queue[epoch] = json.dumps({"loss": float("nan") if epoch == 3 else 1.0})

    model = made_model(at_hub)
    wait_until(lambda: sorted(at_hub.metrics(model)) == [0, 1, 3, 4, 5])
    assert at_hub.metrics(model)[3] == {"loss": None}
    wait_until(lambda: session.metrics_upload_failed_queue == {2: '{"loss": 1.0}'})
    with open_outbox(home) as outbox:
        assert totals(outbox)["dead"] == 1


def test_a_checkpoint_is_what_it_was_when_it_was_saved(
    at_hub: Sandbox, tmp_path: Path, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    weights = tmp_path / "last.pt"
    at_hub.fail("ckpt:503:times=1")
    session = sessions()("yolov8n.pt")
    session.create_model({"epochs": 9})

    weights.write_bytes(b"of epoch 5")
    session.upload_model(5, str(weights), is_best=True)
    weights.write_bytes(b"of epoch 6, longer")

    model = made_model(at_hub)
    wait_until(lambda: at_hub.checkpoints(model))
    (stored,) = at_hub.checkpoints(model)
    assert (stored.epoch, stored.is_best, stored.path.read_bytes()) == (5, True, b"of epoch 5")


def test_the_first_checkpoint_does_not_wait_fifteen_minutes(
    at_hub: Sandbox, tmp_path: Path, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    saved: list[str] = []
    with hub_callbacks("8.2.70", sessions()) as callbacks:
        events = {"on_train_end": lambda trainer: saved.extend(trainer.hub_session.rate_limits)}
        trainer = Trainer(tmp_path / "train", epochs=2, callbacks=callbacks, events=events)
        trainer.train()

    model = made_model(at_hub)
    assert trainer.hub_session.rate_limits == {"metrics": 3, "ckpt": 900, "heartbeat": 300}
    wait_until(lambda: [record.type for record in at_hub.checkpoints(model)][-1:] == ["final"])
    assert saved


def test_the_end_waits_for_a_dead_hub_no_longer_than_its_deadline(
    at_hub: Sandbox,
    tmp_path: Path,
    sessions: Callable[..., type[HUBTrainingSession]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "best.pt").write_bytes(b"weights")
    session = sessions(deadline=1.0)("yolov8n.pt")
    session.create_model({"epochs": 9})
    wait_until(lambda: session.model_id)
    at_hub.fail("ckpt:503")

    session.upload_model(8, tmp_path / "best.pt", map=0.5, final=True)

    assert "waiting; saved on disk, a worker will send" in caplog.text
    assert len([each for each in at_hub.requests if each.kind == "ckpt"]) < 11


def test_a_missing_final_checkpoint_is_replaced_by_the_last_one(
    at_hub: Sandbox,
    tmp_path: Path,
    sessions: Callable[..., type[HUBTrainingSession]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = sessions()("yolov8n.pt")
    session.create_model({"epochs": 9})

    session.upload_model(8, tmp_path / "best.pt", final=True)
    assert "there is no checkpoint" in caplog.text
    (tmp_path / "last.pt").write_bytes(b"the last")
    session.upload_model(8, tmp_path / "best.pt", final=True)

    (stored,) = at_hub.checkpoints(made_model(at_hub))
    assert (stored.type, stored.name, stored.path.read_bytes()) == ("final", "best.pt", b"the last")
    assert list(tmp_path.glob("*.pt")) == [tmp_path / "last.pt"]


def test_a_session_sets_no_signal_handler_and_starts_on_any_thread(
    at_hub: Sandbox, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    found: list[HUBTrainingSession | None] = []

    thread = threading.Thread(
        target=lambda: found.append(sessions().create_session("yolov8n.pt", {"epochs": 1}))
    )
    thread.start()
    thread.join()

    assert found[0] is not None
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before
    wait_until(lambda: at_hub.beats(made_model(at_hub)))


def test_ending_a_session_ends_its_heartbeats(
    at_hub: Sandbox,
    home: Path,
    sessions: Callable[..., type[HUBTrainingSession]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HUBQUEUE_RATE_LIMITS__HEARTBEAT", "0.1")
    session = sessions()("yolov8n.pt")
    session.create_model({"epochs": 1})
    wait_until(lambda: len(at_hub.beats(made_model(at_hub))) > 1)

    def ended() -> bool:
        # It waits only a tenth of a second for the database, in which a worker writes. A further try saves the end.
        session.alive = False
        with open_outbox(home) as outbox:
            (run,) = outbox.stats.runs()
        return run["state"] == "finished"

    wait_until(ended)
    assert not session.alive
    session.metrics_queue[0] = '{"loss": 1}'  # a script that logs after the end continues its run
    assert session.alive


# Models that the hub already has.


def model_of(hub: Sandbox, environ: dict[str, str], *steps: str) -> str:
    """A model at the hub, after a run with these steps."""
    code = "\n".join(
        [
            "import hubqueue, pathlib, sys, tempfile",
            "folder = pathlib.Path(tempfile.mkdtemp())",
            "(folder / 'last.pt').write_bytes(b'last'); (folder / 'best.pt').write_bytes(b'best')",
            "run = hubqueue.start_run('yolov8n.pt', args={'data': 'coco8.yaml', 'epochs': 3}, strict=True)",
            *steps,
            "assert not run.finish(timeout=60)",
        ]
    )
    process = python(code, environ)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0, out
    return hub.models[-1]


def test_a_model_that_can_be_resumed_begins_with_its_last_weights(
    at_hub: Sandbox, home: Path, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    model = model_of(at_hub, environ_of(home, at_hub.url), "run.save_checkpoint(folder / 'last.pt', epoch=1)")

    session = sessions().create_session(WEB + model)

    assert session is not None
    assert session.train_args == {"data": session.model.data["data"], "resume": True}
    assert session.model_file == session.model.data["resume"]
    assert (session.model_id, session.model.id, session.model_url) == (
        model,
        model,
        f"{at_hub.url}/models/{model}",
    )


def test_a_trained_model_is_only_loaded(
    at_hub: Sandbox, home: Path, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    step = "run.save_checkpoint(folder / 'best.pt', epoch=2, final=True)"
    model = model_of(at_hub, environ_of(home, at_hub.url), step)
    beats = len(at_hub.beats(model))

    session = sessions()(f"{WEB}{model}/")

    assert session.model.is_trained()
    assert session.model_file == session.model.data["weights"]
    assert session.train_args is None
    assert len(at_hub.beats(model)) == beats


def test_a_new_model_has_the_arguments_of_the_hub(
    at_hub: Sandbox, home: Path, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    model = model_of(at_hub, environ_of(home, at_hub.url))

    session = sessions().create_session(f"{WEB}{model}?api_key={KEY}")

    assert session is not None
    assert session.train_args is not None
    assert session.train_args["epochs"] == 3
    wait_until(lambda: at_hub.beats(model))
    kept = b"".join(
        path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "credentials.toml"
    )
    assert KEY.encode() not in kept


def test_no_such_model_and_no_response_are_different_errors(
    at_hub: Sandbox, sessions: Callable[..., type[HUBTrainingSession]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownModel, match="has no model"):
        sessions().create_session(WEB + "x" * 20)

    at_hub.fail("read:503")
    monkeypatch.setattr("hubqueue.integrations.hub_session.model.PATIENCE", 0.5)
    with pytest.raises(ModelUnavailable, match="cannot read model"):
        sessions().create_session(WEB + "x" * 20)


def test_uploading_to_a_model_id_needs_no_response_from_the_hub(
    at_hub: Sandbox,
    home: Path,
    sessions: Callable[..., type[HUBTrainingSession]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(at_hub, environ_of(home, at_hub.url))
    at_hub.fail("any:reset")
    monkeypatch.setattr("hubqueue.integrations.hub_session.model.PATIENCE", 0.5)

    session = sessions()(model)
    session.metrics_queue[0] = '{"loss": 1.0}'
    at_hub.heal()

    assert (session.train_args, session.model_file) == (None, None)
    wait_until(lambda: at_hub.metrics(model) == {0: {"loss": 1.0}})


@pytest.mark.parametrize("identifier", ["yolov8n", "model.onnx", ""])
def test_an_identifier_that_names_no_model_does_not_stop_the_training(
    identifier: str,
    at_hub: Sandbox,
    sessions: Callable[..., type[HUBTrainingSession]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert sessions().create_session(identifier, {"epochs": 1}) is None
    assert "is not sent to a hub" in caplog.text


def test_a_script_for_a_hub_model_without_a_key_fails_and_says_why(at_hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, at_hub.url, HUB_API_KEY="")
    code = (
        f"import hubqueue; hubqueue.HUBTrainingSession.create_session('{WEB}{'a' * 20}'); print('continued')"
    )

    process = python(code, environ)
    out, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "there is no key for hub" in out
    assert "continued" not in out


def test_the_processes_of_a_training_on_several_gpus_share_one_run(
    at_hub: Sandbox, home: Path, sessions: Callable[..., type[HUBTrainingSession]]
) -> None:
    parent = sessions().create_session("yolov8n.pt", {"epochs": 3, "device": "0,1"})
    assert parent is not None
    code = (
        "import hubqueue; s = hubqueue.HUBTrainingSession.create_session('yolov8n.pt', {'epochs': 3}, worker='none');"
        "s.metrics_queue[0] = '{\"loss\": 1}'; print(s._run.id)"
    )

    child = python(code, {**os.environ, "LOCAL_RANK": "0"})
    out, _ = child.communicate(timeout=60)

    assert out.split()[-1] == parent._run.id  # type: ignore[union-attr]
    wait_until(lambda: at_hub.metrics(made_model(at_hub)) == {0: {"loss": 1}})
    assert len(at_hub.models) == 1
    parent.alive = False
    assert "HUBQUEUE_RUN" not in os.environ


# Methods that scripts call directly.


class Response:
    """A response like those of `requests`."""

    def __init__(self, status: int, headers: dict[str, str] | None = None, text: str = "{}") -> None:
        self.status_code, self.headers, self.text = status, headers or {}, text

    def json(self) -> Any:
        return json.loads(self.text)

    def iter_content(self, chunk_size: int = 1) -> list[bytes]:
        return [self.text.encode()]


@pytest.fixture
def session(at_hub: Sandbox, sessions: Callable[..., type[HUBTrainingSession]]) -> HUBTrainingSession:
    found = sessions()("yolov8n.pt")
    found.create_model({"epochs": 9})
    return found


@pytest.mark.parametrize(
    ("status", "calls"),
    [
        (200, 1),
        (408, 2),
        (502, 2),
        pytest.param(504, 2, marks=pytest.mark.slow),
        (400, 1),
        (429, 1),
        (500, 1),
        pytest.param(503, 1, marks=pytest.mark.slow),
    ],
)
def test_a_request_is_retried_for_the_same_statuses_as_in_the_original(
    session: HUBTrainingSession, status: int, calls: int
) -> None:
    made: list[int] = []

    def request() -> Response:
        made.append(status)
        return Response(status)

    response = session.request_queue(request, retry=1, thread=False)

    assert (len(made), response.status_code) == (calls, status)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (Response(502), "Retrying 3x for 30s."),
        (Response(429), "Rate limit reached (?/?). Please retry later."),
        (
            Response(429, {"X-RateLimit-Remaining": "0", "x-ratelimit-limit": "400", "Retry-After": "7"}),
            "Rate limit reached (0/400). Please retry after 7s.",
        ),
        (Response(403, text='{"message": "not yours"}'), "not yours"),
        (Response(403, text='["odd"]'), "No JSON message."),
        (Response(403, text="<html>"), "Unable to read JSON."),
        (Response(403, text=""), "Unable to read JSON."),
    ],
)
def test_every_failed_response_has_a_message(
    session: HUBTrainingSession, response: Response, message: str
) -> None:
    assert session._get_failure_message(response, 3, 30) == message
    assert session._get_failure_message(Response(502), 0, 30) == ""


@pytest.mark.parametrize("trouble", ["none", "raises", "502", pytest.param("400", marks=pytest.mark.slow)])
def test_metrics_of_a_failed_request_are_in_the_outbox(
    at_hub: Sandbox, session: HUBTrainingSession, trouble: str
) -> None:
    def request(metrics: dict[int, str]) -> Response | None:
        if trouble == "raises":
            raise OSError("no network")
        return None if trouble == "none" else Response(int(trouble))

    session.request_queue(request, retry=0, thread=True, metrics={4: '{"loss": 0.25}'})

    model = made_model(at_hub)
    wait_until(lambda: at_hub.metrics(model) == {4: {"loss": 0.25}})


def test_requests_in_the_background_share_one_thread(session: HUBTrainingSession) -> None:
    go, done = threading.Event(), []

    def request(number: int) -> Response:
        go.wait(30)
        done.append(number)
        return Response(200)

    for number in range(30):
        session.request_queue(request, number=number)
    assert [each.name for each in threading.enumerate()].count("hubqueue-requests") == 1

    go.set()
    wait_until(lambda: done == list(range(30)))


def test_the_models_own_methods_save_to_the_outbox(
    at_hub: Sandbox, session: HUBTrainingSession, tmp_path: Path
) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")

    response = session.request_queue(session.model.upload_metrics, metrics={0: '{"loss": 1}'}, thread=False)
    session.model.upload_model(0, str(tmp_path / "last.pt"), is_best=False)

    assert response.status_code == 202
    model = made_model(at_hub)
    wait_until(lambda: at_hub.metrics(model) and at_hub.checkpoints(model))


def test_invalid_metrics_and_checkpoints_do_not_raise(
    at_hub: Sandbox, session: HUBTrainingSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")

    session.metrics_queue[0] = "no json"
    session.metrics_queue[1] = '{"loss": 1, "name": "text"}'
    session.metrics_queue["two"] = '{"loss": 1}'  # type: ignore[index]
    session.upload_model(0, tmp_path / "last.pt", map=float("nan"))
    session.upload_model(0, tmp_path)  # type: ignore[arg-type]

    model = made_model(at_hub)
    wait_until(lambda: at_hub.metrics(model) == {1: {"loss": 1}})
    assert "'name' is not a number" in caplog.text
    wait_until(lambda: at_hub.checkpoints(model))


def test_deleting_metrics_from_a_queue_cancels_nothing(at_hub: Sandbox, session: HUBTrainingSession) -> None:
    wait_until(lambda: session.model_id)
    at_hub.fail("metrics:503")
    session.metrics_queue.update({0: '{"loss": 1}', 1: '{"loss": 2}', 2: '{"loss": 3}'})
    wait_until(lambda: len(session.metrics_upload_failed_queue) == 3)

    del session.metrics_upload_failed_queue[0]
    assert sorted(session.metrics_upload_failed_queue) == [1, 2]
    session.metrics_upload_failed_queue = {}  # type: ignore[assignment]
    assert session.metrics_upload_failed_queue == {}

    at_hub.heal()
    wait_until(lambda: sorted(at_hub.metrics(made_model(at_hub))) == [0, 1, 2])


def test_the_key_of_the_ultralytics_settings_is_used(
    at_hub: Sandbox,
    tmp_path: Path,
    sessions: Callable[..., type[HUBTrainingSession]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HUB_API_KEY")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    assert not sessions()("yolov8n.pt").client.authenticated
    (tmp_path / "Ultralytics").mkdir()
    (tmp_path / "Ultralytics" / "settings.json").write_text(
        json.dumps({"hub": True, "api_key": "of-the-settings"})
    )

    session = sessions()("yolov8n.pt")
    session.create_model({"epochs": 1})

    assert session.client.authenticated
    made_model(at_hub)
