"""A run that is sent to another process: what that process logs belongs to the run, and its end stays with the first."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stage import environ_of, hubqueue, python

import hubqueue as package
from hubqueue.domain import errors
from hubqueue.domain.errors import HubqueueError, OutboxUnavailable, RunFinished
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")

SCRIPT = """
import logging, multiprocessing, sys
import hubqueue

def work(run, epoch):
    logging.basicConfig(format="%(message)s")
    with run:
        saved = run.log_metrics({"loss": 1.0}, epoch=epoch)
        open(f"{epoch}.pt", "wb").write(b"weights")
        checkpoint = run.save_checkpoint(f"{epoch}.pt", epoch=epoch)
    return saved is not None and checkpoint is not None, run.id, run.finish().unsaved

if __name__ == "__main__":
    run = hubqueue.start_run("yolov8n.pt", worker="none")
    run.log_metrics({"loss": 1.0}, epoch=0)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(work, [(run, 1), (run, 2)])
    assert found == [(True, run.id, 0)] * 2, found
    run.log_metrics({"loss": 1.0}, epoch=3)
    run.finish(timeout=0)
    print("done", run.id)
"""


def _unpickle(home: Path, pickled: bytes, code: str, *, fresh: bool = False) -> str:
    """The output of another process that has the run; `fresh` if what unpickling imports matters."""
    path = home.parent / "pickled"
    path.write_bytes(pickled)
    begin = f"import pickle; run = pickle.loads(open({str(path)!r}, 'rb').read())\n"
    out, _ = python(begin + code, environ_of(home), fresh=fresh).communicate(timeout=90)
    return str(out)


def test_spawned_processes_save_to_the_run_and_do_not_end_it(
    home: Path, tmp_path: Path, hub: Sandbox
) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environ = environ_of(home, hub.url)

    done = subprocess.run(
        [sys.executable, str(script)],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.stdout.startswith("done"), done.stderr
    assert "Traceback" not in done.stderr
    assert hubqueue(environ, "drain").returncode == 0
    (model,) = hub.models
    assert sorted(hub.metrics(model)) == [0, 1, 2, 3]
    with open_outbox(home) as outbox:
        (run_id,) = outbox.stats.run_ids()
        row = outbox.stats.run(run_id)
    assert row is not None
    assert row["state"] == "finished"


def test_in_its_own_process_a_pickled_run_is_the_same_object(home: Path) -> None:
    run = package.start_run("yolov8n.pt", home=home, worker="none")

    assert pickle.loads(pickle.dumps(run)) is run
    assert copy.deepcopy({"run": run})["run"] is run
    assert copy.copy(run) is run


def test_a_pickled_run_contains_no_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_API_KEY", "a-key-that-nobody-sees")
    secret, model = "nobody" * 7, "abcdefghij0123456789"
    run = package.start_run(f"{secret}_{model}", home=home, worker="none", destination="hub")

    pickled = pickle.dumps(run)

    assert b"nobody" not in pickled


def test_the_child_reads_the_state_of_the_run(home: Path) -> None:
    run = package.start_run("yolov8n.pt", home=home, worker="none")

    code = "print(run.id, run.cancelled, run.remote_id, run.outbox is not None)"

    out = _unpickle(home, pickle.dumps(run), code, fresh=True)

    assert out.strip() == f"{run.id} False None True"


def test_a_run_pickled_before_its_storage_could_be_opened_is_reported_once(
    tmp_path: Path, home: Path
) -> None:
    (tmp_path / "blocked").write_text("a file in place of a home")
    run = package.start_run("yolov8n.pt", home=tmp_path / "blocked", worker="none")
    code = "for epoch in range(3): run.log_metrics({'loss': 1.0}, epoch=epoch)\nprint('left', run.finish().unsaved)"

    out = _unpickle(home, pickle.dumps(run), code)

    assert "left 3" in out
    assert "Traceback" not in out
    assert out.count("could not be saved yet") == 1


def test_a_run_unpickled_without_its_home_makes_no_new_one(home: Path, tmp_path: Path) -> None:
    run = package.start_run("yolov8n.pt", home=home, worker="none")
    pickled = pickle.dumps(run)
    run.finish(timeout=0)
    home.rename(tmp_path / "elsewhere")

    out = _unpickle(
        home, pickled, "run.log_metrics({'loss': 1.0}, epoch=1)\nprint('left', run.finish().unsaved)"
    )

    assert "left 1" in out
    assert "the outbox of a pickled run is not here" in out
    assert not home.exists()


def test_a_run_unpickled_after_its_end_saves_nothing(home: Path) -> None:
    run = package.start_run("yolov8n.pt", home=home, worker="none")
    pickled = pickle.dumps(run)
    run.finish(timeout=0)

    out = _unpickle(
        home, pickled, "print(run.log_metrics({'loss': 1.0}, epoch=1))\nprint(run.finish().unsaved)"
    )

    assert f"run {run.id} is finished" in out
    assert out.strip().splitlines()[-1] == "1"


def test_a_strict_run_raises_in_the_child_too(home: Path, tmp_path: Path) -> None:
    run = package.start_run("yolov8n.pt", home=home, worker="none", strict=True)
    pickled = pickle.dumps(run)
    run.finish(timeout=0)

    out = _unpickle(home, pickled, "run.log_metrics({'loss': 1.0}, epoch=1)")

    assert RunFinished.__name__ in out


@pytest.mark.parametrize("name", [each for each in dir(errors) if isinstance(getattr(errors, each), type)])
def test_an_error_reaches_another_process_with_its_hint(name: str) -> None:
    kind = getattr(errors, name)
    if not issubclass(kind, HubqueueError):
        return
    error = kind(("problem",) if name == "ConfigError" else "problem", hint="hint")

    found = pickle.loads(pickle.dumps(error))

    assert (type(found), str(found), found.hint) == (kind, "problem", "hint")
    assert isinstance(found, OutboxUnavailable) == isinstance(error, OutboxUnavailable)


def test_what_a_child_saved_is_in_an_outbox_that_was_restored_before_its_finish(
    home: Path, tmp_path: Path
) -> None:
    run = package.start_run("yolov8n.pt", destination="hub", worker="none", home=home)
    shutil.copytree(home, tmp_path / "backup")
    code = f"""
import shutil
run.log_metrics({{"loss": 1.0}}, epoch=7)
shutil.rmtree({str(home)!r})
shutil.copytree({str(tmp_path / "backup")!r}, {str(home)!r})
print("unsaved:", run.finish(timeout=0).unsaved)
"""

    assert "unsaved: 0" in _unpickle(home, pickle.dumps(run), code)

    run.finish(timeout=0)
    with open_outbox(home) as outbox:
        assert [row["key"] for row in outbox.stats.entries(kind="metrics")] == ["7"]
