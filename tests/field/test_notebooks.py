"""In a notebook nobody knew whether a run had arrived, and a cell that ran twice made two runs of one training."""

from __future__ import annotations

import html
import re
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from stage import environ_of, hubqueue, wait_until

import hubqueue as package
from hubqueue.outbox.outbox import open_outbox
from hubqueue.producer.run import Run
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBQUEUE_HOME", str(home))
    return home


def displayed(thing: Run | package.Leftover) -> str:
    """What a notebook displays, as its reader sees it: without tags."""
    return html.unescape(re.sub(r"<[^>]*>", "|", thing._repr_html_()))


def test_the_display_of_a_run_opens_no_connection(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("the display used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run = package.start_run("yolov8n.pt", worker="none", destination="hub")

    text = displayed(run)

    assert f"run |{run.id}|" in text and "to hub, running: 1 upload" in text
    run.finish(timeout=0)


def test_the_display_and_the_status_give_the_same_reason(
    at_home: Path, hub: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = environ_of(at_home, hub.url)
    for name in environ.keys() - {"PATH"}:
        monkeypatch.setenv(name, environ[name])
    hub.fail("metrics:503")
    run = package.start_run("yolov8n.pt", worker="thread", destination="hub")
    run.log_metrics({"loss": 1.0}, epoch=0)

    wait_until(lambda: "last error" in displayed(run))
    text, status = displayed(run), hubqueue(environ, "status").stdout

    reason = re.search(r"last error: (\S+ \S+)", text)
    assert reason is not None and reason[1].startswith("503")
    assert f"last error: {reason[1]}" in status
    assert "1 upload" in text and "1 upload" in status
    assert run.url is not None and f'href="{html.escape(run.url)}"' in run._repr_html_()

    hub.heal()
    left = run.finish(timeout=60)

    assert displayed(left) == "|hubqueue: everything has arrived|"
    assert "to hub, finished: everything so far has arrived" in displayed(run)
    assert "all uploaded" in hubqueue(environ, "status").stdout


def test_a_run_that_only_saves_says_that_no_worker_sends(
    at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUBQUEUE_DESTINATIONS__LAB__TYPE", "folder")
    monkeypatch.setenv("HUBQUEUE_DESTINATIONS__LAB__PATH", str(tmp_path / "lab"))
    run = package.start_run("resnet50.pt", worker="none", destination="lab")

    assert "1 upload" in displayed(run) and "no worker is running (hubqueue drain" in displayed(run)
    run.finish(timeout=0)


def test_a_run_without_a_key_says_which_one_is_missing(at_home: Path) -> None:
    run = package.start_run("yolov8n.pt", worker="none", destination="hub")

    assert "not sent: there is no key for hub" in displayed(run)
    run.finish(timeout=0)


def test_the_command_names_a_home_that_only_the_script_knows(at_home: Path, tmp_path: Path) -> None:
    run = package.start_run("yolov8n.pt", worker="none", destination="hub", home=tmp_path / "an other")

    assert f"!hubqueue --home '{tmp_path}/an other' status --run {run.id}" in displayed(run)
    run.finish(timeout=0)


def _delete(home: Path) -> None:
    shutil.rmtree(home)


def _damage(home: Path) -> None:
    for each in home.glob("outbox.db*"):
        each.write_bytes(b"no database" * 1000)


def _replace_by_a_file(home: Path) -> None:
    shutil.rmtree(home)
    home.touch()


@pytest.mark.parametrize("ruin", [_delete, _damage, _replace_by_a_file])
@pytest.mark.parametrize("strict", [False, True])
def test_the_display_never_raises(at_home: Path, ruin: Callable[[Path], None], strict: bool) -> None:
    run = package.start_run("yolov8n.pt", worker="none", destination="hub", strict=strict)
    run.log_metrics({"loss": 1.0}, epoch=0)
    ruin(at_home)

    assert "hubqueue run" in displayed(run)
    with suppress(package.HubqueueError):  # strict
        run.finish(timeout=0)


def test_a_cell_that_runs_again_continues_its_run(at_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = []
    for _ in range(2):
        run = package.start_run("yolov8n.pt", worker="none", destination="hub", resume="last")
        run.log_metrics({"loss": 1.0}, epoch=0)
        run.finish(timeout=0)
        ids.append(run.id)

    with open_outbox() as outbox:
        (row,) = outbox.stats.runs()
    assert ids == [row["id"]] * 2 and row["state"] == "finished"
    assert "another process" not in caplog.text


def test_a_cell_that_was_interrupted_continues_its_run(at_home: Path) -> None:
    def cell() -> Run:
        with package.start_run("yolov8n.pt", worker="none", destination="hub", resume="last") as run:
            run.log_metrics({"loss": 1.0}, epoch=0)
            if not Path(at_home, "second").exists():
                Path(at_home, "second").touch()
                raise KeyboardInterrupt
        return run

    with pytest.raises(KeyboardInterrupt):
        cell()
    run = cell()

    with open_outbox() as outbox:
        (row,) = outbox.stats.runs()
    assert row["id"] == run.id and row["state"] == "finished"
