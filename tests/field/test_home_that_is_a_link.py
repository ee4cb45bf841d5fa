"""A home that is reached by a symbolic link."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from stage import environ_of, hubqueue

import hubqueue as package
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox


def link_to(target: Path, link: Path) -> Path:
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    return link


def test_a_link_to_an_own_folder_is_a_home(
    tmp_path: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = link_to(tmp_path / "disk", tmp_path / "home")
    environ = environ_of(link, hub.url)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with package.start_run("yolov8n.pt", home=link, destination="hub", worker="none", strict=True) as run:
        run.log_metrics({"loss": 1.0}, epoch=0)
        run.finish(timeout=0)

    drained = hubqueue(environ_of(tmp_path / "disk", hub.url), "drain")
    status = json.loads(hubqueue(environ, "status", "--json").stdout)

    assert drained.returncode == 0, drained.stderr
    assert status["totals"]["delivered"] == 2


def test_a_link_above_the_home_is_followed(tmp_path: Path) -> None:
    link = link_to(tmp_path / "disk", tmp_path / "link")

    with package.start_run("yolov8n.pt", home=link / "a" / "home", worker="none", strict=True) as run:
        run.finish(timeout=0)

    assert (tmp_path / "disk" / "a" / "home" / "outbox.db").is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("given", ["link", "target"])
def test_a_link_of_or_to_somebody_else_is_refused_with_a_hint(
    tmp_path: Path, given: str, caplog: pytest.LogCaptureFixture
) -> None:
    link = link_to(tmp_path / "disk", tmp_path / "home")
    os.chown(link if given == "link" else tmp_path / "disk", 12345, 12345, follow_symlinks=False)

    refused = hubqueue(environ_of(link), "status")
    run = package.start_run("yolov8n.pt", home=link, worker="none")
    run.finish(timeout=0)

    assert refused.returncode == 1
    assert "belongs to another user" in refused.stderr
    assert "hint: " in refused.stderr
    assert any("NOTHING of this run can be saved" in each for each in caplog.messages)


def test_a_link_that_is_turned_to_another_folder_is_a_home_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = link_to(tmp_path / "disk", tmp_path / "home")
    monkeypatch.setenv("HUBQUEUE_HOME", str(link))
    run = package.start_run("yolov8n.pt", worker="none")
    run.log_metrics({"loss": 1.0}, epoch=0)

    link.unlink()
    link_to(tmp_path / "other", link)
    run.log_metrics({"loss": 1.0}, epoch=1)
    run.finish(timeout=0)

    with open_outbox(tmp_path / "other", environ={}) as outbox:
        assert sorted(row["key"] for row in outbox.stats.entries(kind="metrics")) == ["0", "1"]
