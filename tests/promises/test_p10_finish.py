"""P10 at the end of a run: `finish` reports what the hub rejected and what was never saved, whatever its arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import hubqueue as package
from hubqueue.domain.errors import HubqueueError
from hubqueue.outbox.outbox import open_outbox
from hubqueue.producer.leftover import Leftover, describe
from hubqueue.producer.run import Run
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")


@pytest.fixture
def at_hub(home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    monkeypatch.setenv("ULTRALYTICS_HUB_API", hub.url)
    monkeypatch.setenv("HUB_API_KEY", "key-of-the-tests")
    monkeypatch.setenv("HUBQUEUE_RATE_LIMITS__METRICS", "0.05")
    return home


@pytest.fixture
def blocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "blocked"
    file.write_text("a file where the home should be")
    monkeypatch.setenv("HUBQUEUE_HOME", str(file))
    return file


def test_a_rejected_checkpoint_is_reported_at_the_end(
    at_hub: Path, hub: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("ckpt:413:bytes=1000")
    (tmp_path / "best.pt").write_bytes(b"x" * 5000)
    run = package.start_run("yolov8n.pt", worker="thread", strict=True)
    run.save_checkpoint(tmp_path / "best.pt", epoch=0, final=True)

    left = run.finish(timeout=60)

    assert left
    assert (left.entries, left.dead) == (0, 1)
    assert "413" in left.reasons[0]
    assert f"run {run.id}: the hub refused 1 checkpoint (413" in caplog.text
    assert "see: hubqueue entries --state dead" in caplog.text


def test_a_rejected_epoch_is_reported_at_the_end(
    at_hub: Path, hub: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("metrics:400:epoch=1")
    run = package.start_run("yolov8n.pt", worker="thread", strict=True)
    for epoch in range(3):
        run.log_metrics({"loss": 1.0}, epoch=epoch)

    left = run.finish(timeout=60)

    assert (bool(left), left.entries, left.dead) == (True, 0, 1)
    assert "the hub refused 1 metrics upload (400" in caplog.text


def test_finish_without_a_limit_waits_until_everything_is_delivered(at_hub: Path, hub: Sandbox) -> None:
    run = package.start_run("yolov8n.pt", worker="thread", strict=True)
    run.log_metrics({"loss": 1.0}, epoch=0)

    assert not run.finish(timeout=None)

    assert hub.metrics(hub.models[0]) == {0: {"loss": 1.0}}


def test_a_run_without_a_worker_does_not_promise_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    monkeypatch.setenv("ULTRALYTICS_API_KEY", "key-of-the-tests")
    run = package.start_run("yolov8n.pt", worker="none")

    run.finish(timeout=0)

    assert "saved on disk; no worker is running, send them with: hubqueue drain" in caplog.text


@pytest.mark.parametrize(
    ("left", "sentence"),
    [
        (
            Leftover(1, 1059),
            "1 upload (1.1 kB) is waiting; saved on disk, a worker will send it; see: hubqueue status",
        ),
        (
            Leftover(2, 5, held="no key"),
            "2 uploads (5 B) are waiting; on hold: no key; see: hubqueue status",
        ),
        (
            Leftover(dead=3, refused={"metrics": 2, "ckpt": 1}, reasons=("400", "413")),
            "the hub refused 2 metrics uploads, 1 checkpoint (400; 413); see: hubqueue entries --state dead",
        ),
        (
            Leftover(unsaved=6, unsaved_why="disk full"),
            "6 could not be saved (disk full); see: hubqueue status",
        ),
    ],
)
def test_what_is_left_is_a_plain_sentence(left: Leftover, sentence: str) -> None:
    assert describe(left) == sentence


def test_unsaved_data_is_reported_with_its_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    monkeypatch.setenv("HUBQUEUE_SPOOL__MAX_BYTES", "10")
    (tmp_path / "last.pt").write_bytes(b"x" * 1000)
    run = package.start_run("yolov8n.pt", worker="none")
    for epoch in range(2):
        run.save_checkpoint(tmp_path / "last.pt", epoch=epoch)

    with open_outbox(home) as outbox:
        before = outbox.status()
    run.save_checkpoint(tmp_path / "last.pt", epoch=2)
    left = run.finish(timeout=0)

    assert before["runs"][0]["unsaved"] == 2
    assert left.unsaved == 3
    with open_outbox(home) as outbox:
        shown = outbox.status()
    (shown_run,) = shown["runs"]
    assert shown_run["unsaved"] == 3
    assert "does not fit" in shown_run["unsaved_why"]
    concerns = [concern["what"] for concern in shown["attention"]]
    assert any(f"run {run.id}: 3 could not be saved (a snapshot" in what for what in concerns)


def test_data_lost_while_nothing_could_be_written_is_recorded_later(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    monkeypatch.setenv("HUBQUEUE_SPOOL__MAX_BYTES", "10")
    monkeypatch.setenv("HUBQUEUE_OUTBOX__BUSY_TIMEOUT", "0.1")
    (tmp_path / "last.pt").write_bytes(b"x" * 1000)
    run = package.start_run("yolov8n.pt", worker="none")
    with open_outbox(home) as other, other.database.write():
        run.save_checkpoint(tmp_path / "last.pt", epoch=0)

    run.log_metrics({"loss": 1.0}, epoch=0)

    with open_outbox(home) as outbox:
        assert outbox.status()["runs"][0]["unsaved"] == 1


def test_an_unwritable_home_is_one_clear_line_and_one_at_the_end(
    blocked: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    run = package.start_run("yolov8n.pt")
    for epoch in range(5):
        run.log_metrics({"loss": 1.0}, epoch=epoch)
        run.save_checkpoint(tmp_path / "last.pt", epoch=epoch)

    left = run.finish(timeout=0)

    first, last = [record.getMessage() for record in caplog.records]
    assert first.startswith("NOTHING of this run can be saved: ")
    assert "(choose another home: HUBQUEUE_HOME)" in first
    assert f"{left.unsaved} could not be saved ({blocked} is not a folder)" in last
    assert left.unsaved == 10


def test_the_end_of_storage_trouble_is_reported(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    monkeypatch.setenv("HUBQUEUE_OUTBOX__BUSY_TIMEOUT", "0.05")
    run = package.start_run("yolov8n.pt", worker="none")
    caplog.clear()  # the first line of the run
    with open_outbox(home) as other, other.database.write():
        for epoch in range(3):
            run.log_metrics({"loss": 1.0}, epoch=epoch)

    run.log_metrics({"loss": 1.0}, epoch=3)

    first, last = [record.getMessage() for record in caplog.records]
    assert "could not be saved yet" in first
    assert last == f"run {run.id}: saving works again (2 more failures were not shown)"


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (lambda _run: package.start_run(None, worker="none"), ValueError),  # type: ignore[arg-type]
        (lambda _run: package.start_run("yolov8n.pt", args=[1], worker="none"), TypeError),  # type: ignore[arg-type]
        (lambda _run: package.start_run("yolov8n.pt", worker="soon"), ValueError),  # type: ignore[arg-type]
        (lambda run: run.save_checkpoint(None, epoch=0), TypeError),
    ],
)
def test_a_wrong_argument_is_one_clear_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Run], object], kind: type[Exception]
) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    run = package.start_run("yolov8n.pt", worker="none")

    with pytest.raises(HubqueueError) as raised:
        wrong(run)

    assert isinstance(raised.value, kind)
    assert raised.value.hint


@pytest.mark.parametrize(
    "wrong", [{"status": "success"}, {"results": [1]}, {"timeout": "soon"}, {"timeout": float("nan")}]
)
def test_no_wrong_argument_of_finish_leaves_a_run_running(
    home: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, object]
) -> None:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    run = package.start_run("yolov8n.pt", worker="none")

    with pytest.raises(HubqueueError, match=next(iter(wrong))) as raised:
        run.finish(**{"timeout": 0, **wrong})  # type: ignore[arg-type]

    assert raised.value.hint
    with open_outbox(home) as outbox:
        assert [row["state"] for row in outbox.stats.runs()] == ["finished"]
