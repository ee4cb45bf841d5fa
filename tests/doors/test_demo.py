"""The demo succeeds, and it fails when something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage import environ_of, hubqueue

from hubqueue.cli.demo import DemoFailed, _Story
from hubqueue.producer.run import start_run
from hubqueue.sandbox import Sandbox


def test_the_demo_shows_outage_kill_and_recovery(home: Path, tmp_path: Path) -> None:
    shown = hubqueue(environ_of(home), "demo", "--keep", str(tmp_path / "kept"))

    assert shown.returncode == 0, shown.stdout + shown.stderr
    for words in (
        "kill -9",
        "no worker is running",
        "20 of 20 epochs, every value equal",
        "Everything was delivered",
    ):
        assert words in shown.stdout
    assert (tmp_path / "kept" / "home" / "outbox.db").exists()


def test_the_demo_fails_when_something_is_missing(
    hub: Sandbox, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULTRALYTICS_HUB_API", hub.url)
    monkeypatch.setenv("HUB_API_KEY", "key-of-the-tests")
    story = _Story(tmp_path)
    run = start_run("yolov8n.pt", home=home, worker="thread", strict=True)
    run.log_metrics({"loss": 1.0}, epoch=0)
    run.finish(timeout=90)

    with pytest.raises(DemoFailed, match="1 of 2 epochs"):
        story._compare(hub, run, {0: {"loss": 1.0}, 1: {"loss": 0.5}}, "")
    with pytest.raises(DemoFailed, match="checkpoint"):
        story._compare(hub, run, {0: {"loss": 1.0}}, "digest of a checkpoint that was never sent")
