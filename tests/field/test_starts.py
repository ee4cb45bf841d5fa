"""The start of a run where the machine or its file system gives trouble: it is survived, said once, and nothing goes astray."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from refusing import can_refuse, refusing
from stage import environ_of, hubqueue, python

from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

needs_shim = pytest.mark.skipif(not can_refuse(), reason="needs Linux and a C compiler")

TRAINING = """
import os, sys
import hubqueue
options = {"config": os.environ["CONFIG"]} if "CONFIG" in os.environ else {}
run = hubqueue.start_run("yolov8n.pt", worker="none", **options)
saved = [run.log_metrics({"loss": 1.0}, epoch=epoch) for epoch in range(4)]
if "REFUSE_WHILE" in os.environ:
    os.remove(os.environ["REFUSE_WHILE"])
    run._saving.opening.try_again()  # some seconds later
    saved.append(run.log_metrics({"loss": 1.0}, epoch=4))
left = run.finish(timeout=0)
print("saved", sum(each is not None for each in saved), "left", left.entries, "unsaved", left.unsaved)
"""


def _train(environ: Mapping[str, str], code: str = TRAINING, *, fresh: bool = True) -> tuple[str, list[str]]:
    """The last line of a training, and what it logged before.

    It is `fresh` where what it imports meets the trouble too.
    """
    out, _ = python(code, environ, fresh=fresh).communicate(timeout=120)
    *said, last = out.strip().splitlines()
    assert "Traceback" not in out, out
    return last, said


@needs_shim
def test_a_user_without_a_home_is_told_once_and_trains(tmp_path: Path) -> None:
    environ = environ_of(tmp_path) | refusing(tmp_path, tmp_path, USER=1)
    for name in ("HOME", "HUBQUEUE_HOME", "XDG_DATA_HOME", "YOLO_CONFIG_DIR"):
        environ.pop(name, None)
    (tmp_path / "here").mkdir()

    last, said = _train(environ, f"import os; os.chdir({str(tmp_path / 'here')!r})\n{TRAINING}")

    assert last == "saved 0 left 0 unsaved 4"
    assert (
        sum("NOTHING of this run can be saved: there is no home for hubqueue" in line for line in said) == 1
    )
    assert "HUBQUEUE_HOME" in said[0]
    assert len(said) == 2, said  # and one at the end
    assert list((tmp_path / "here").iterdir()) == []  # no folder called "~"


@needs_shim
def test_a_command_without_a_home_names_the_variable(tmp_path: Path) -> None:
    environ = environ_of(Path("~/hubqueue")) | refusing(tmp_path, tmp_path, USER=1)
    environ.pop("HOME", None)

    done = hubqueue(environ, "status")

    assert done.returncode == 1
    assert "there is no home for hubqueue: this user has no home directory" in done.stderr
    assert "HUBQUEUE_HOME" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("migrated_home")
def test_a_deleted_working_directory_does_not_stop_a_training(tmp_path: Path, home: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    leave = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\n"

    last, _ = _train(environ_of(home), leave + TRAINING)
    assert last == "saved 4 left 5 unsaved 0"
    gone.mkdir()
    last, said = _train(environ_of(Path("relative")), leave + TRAINING, fresh=False)

    assert last == "saved 0 left 0 unsaved 4"
    assert "the working directory was deleted" in said[0]


@needs_shim
@pytest.mark.parametrize(
    ("error", "named"),
    [
        (errno.EACCES, False),
        pytest.param(errno.EIO, False, marks=pytest.mark.slow),
        pytest.param(errno.ESTALE, False, marks=pytest.mark.slow),
        pytest.param(errno.EMFILE, False, marks=pytest.mark.slow),
        pytest.param(errno.EACCES, True, marks=pytest.mark.slow),
        (errno.ESTALE, True),
    ],
)
def test_settings_that_cannot_be_read_for_a_while_send_nothing_astray(
    tmp_path: Path, home: Path, error: int, named: bool
) -> None:
    home.mkdir(mode=0o700)
    config = home / ("config.toml" if not named else "mine.toml")
    config.write_text(
        f"""
default_destination = "ours"
outbox.url = "sqlite:///{tmp_path / "elsewhere.db"}"
[destinations.ours]
type = "hub"
url = "http://127.0.0.1:9"
"""
    )
    config.chmod(0o600)
    (tmp_path / "trouble").touch()
    environ = environ_of(home) | refusing(
        tmp_path, home, OPEN=error, NAME=config.name, WHILE=tmp_path / "trouble"
    )
    if named:
        environ["CONFIG"] = str(config)

    last, said = _train(environ)

    assert last == "saved 1 left 6 unsaved 0"
    assert (
        sum("NOTHING of this run can be saved: cannot read the configuration" in line for line in said) == 1
    )
    assert sum("saving works again" in line for line in said) == 1
    assert not (home / "outbox.db").exists()  # the default settings were never used
    with open_outbox(home, config) as outbox:
        (run,) = outbox.stats.run_ids()
        row = outbox.stats.run(run)
        assert row is not None
        assert (row["label"], row["address"]) == ("ours", "http://127.0.0.1:9")


@needs_shim
def test_settings_that_stay_unreadable_lose_nothing_silently(tmp_path: Path, home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text("")
    environ = environ_of(home) | refusing(tmp_path, home, OPEN=errno.EACCES, NAME="config.toml")

    last, said = _train(environ)

    assert last == "saved 0 left 0 unsaved 4"
    assert len(said) == 2, said
    assert not (home / "outbox.db").exists()


def test_an_error_in_the_settings_is_still_raised(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "config.toml").write_bytes(b"\xff\xfe")

    out, _ = python(TRAINING, environ_of(home)).communicate(timeout=60)

    assert "ConfigError" in out
    assert "it is not UTF-8 text" in out


def test_a_folder_in_place_of_the_settings_is_survived(home: Path) -> None:
    (home / "config.toml").mkdir(parents=True)

    last, said = _train(environ_of(home), fresh=False)

    assert last == "saved 0 left 0 unsaved 4"
    assert "Is a directory" in said[0]


@needs_shim
def test_a_file_system_without_sync_of_folders_and_without_permissions_is_used(
    tmp_path: Path, home: Path, hub: Sandbox
) -> None:
    refused = refusing(tmp_path, tmp_path, SYNC=errno.EINVAL, CHMOD=errno.ENOTSUP)
    environ = environ_of(home, hub.url) | refused

    last, _ = _train(environ)
    assert last == "saved 4 left 5 unsaved 0"
    done = hubqueue(environ, "drain")

    assert done.returncode == 0, done.stderr
    (model,) = hub.models
    assert sorted(hub.metrics(model)) == [0, 1, 2, 3]
    assert (home / "outbox.db").stat().st_mode & 0o777 == 0o600


@needs_shim
@pytest.mark.parametrize(
    "error",
    [
        errno.ENOSYS,
        pytest.param(errno.ENOTSUP, marks=pytest.mark.slow),
        pytest.param(errno.ENOLCK, marks=pytest.mark.slow),
    ],
)
def test_a_file_system_without_locks_is_said_once(tmp_path: Path, home: Path, error: int) -> None:
    environ = environ_of(home) | refusing(tmp_path, home, FLOCK=error)

    last, said = _train(environ)
    assert last == "saved 0 left 0 unsaved 4"
    assert len(said) == 2, said
    assert "NOTHING of this run can be saved: cannot lock" in said[0]
    assert "on a file system with locks" in said[0]

    done = hubqueue(environ, "check", "--json", "--offline")

    assert any("cannot lock" in each["detail"] for each in json.loads(done.stdout) if not each["ok"])


@pytest.mark.usefixtures("migrated_home")
def test_a_process_without_free_descriptors_does_not_stop_a_training(home: Path) -> None:
    code = """
import os, resource
import hubqueue
start = hubqueue.start_run
start("first.pt", worker="none").finish(timeout=0)
first = os.open("/dev/null", os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (first + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
run = start("yolov8n.pt", worker="none")
saved = [run.log_metrics({"loss": 1.0}, epoch=epoch) for epoch in range(3)]
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
run._saving.opening.try_again()
saved.append(run.log_metrics({"loss": 1.0}, epoch=3))
left = run.finish(timeout=0)
print("saved", sum(each is not None for each in saved), "unsaved", left.unsaved)
"""
    last, said = _train(environ_of(home), code)

    assert last == "saved 1 unsaved 0"
    assert sum("NOTHING of this run can be saved" in line for line in said) == 1


SESSION = """
import os
from hubqueue import HUBTrainingSession
session = HUBTrainingSession("yolov8n.pt", worker="none")
session.create_model({"epochs": 3})
session.metrics_queue[0] = '{"loss": 1.0}'
os.remove(os.environ["REFUSE_WHILE"])
session._run._saving.opening.try_again()  # some seconds later
session.metrics_queue[1] = '{"loss": 1.0}'
session.alive = False
print("done")
"""


@needs_shim
def test_a_session_of_the_hub_waits_for_its_settings_too(tmp_path: Path, home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text(
        'default_destination = "ours"\n[destinations.ours]\ntype = "hub"\nurl = "http://127.0.0.1:9"\n'
    )
    (tmp_path / "trouble").touch()
    environ = environ_of(home, HUB_API_KEY="") | refusing(
        tmp_path, home, OPEN=errno.EIO, NAME="config.toml", WHILE=tmp_path / "trouble"
    )

    last, said = _train(environ, SESSION)

    assert last == "done"
    assert sum("NOTHING of this run can be saved" in line for line in said) == 1
    with open_outbox(home) as outbox:
        (run,) = outbox.stats.run_ids()
        row = outbox.stats.run(run)
        assert row is not None
        assert (row["label"], row["address"]) == ("ours", "http://127.0.0.1:9")
        assert [each["key"] for each in outbox.stats.entries(kind="metrics", limit=10)] in (
            ["0", "1"],
            ["1", "0"],
        )
