"""P9 under torture: canary keys against a hub that repeats them, and links at every path of a home."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage import environ_of, hubqueue
from torture import secrecy


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_key_appears_nowhere_under_torture(capsys: pytest.CaptureFixture[str]) -> None:
    failed = secrecy.main(["--seed", "4", "--scale", "quick"])

    assert failed == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", ["credentials.toml", "locks", "spool", "outbox.db", "ballast", "worker.log"])
def test_nothing_in_a_home_is_written_through_a_link(home: Path, tmp_path: Path, name: str) -> None:
    environ, elsewhere = (
        environ_of(home, "http://127.0.0.1:9", HUBQUEUE_WORKER__IDLE_EXIT="0"),
        tmp_path / "elsewhere",
    )
    elsewhere.mkdir()
    target = elsewhere / "target"
    if name in ("locks", "spool"):
        target.mkdir()
    else:
        target.write_bytes(b"theirs")
    home.mkdir(mode=0o700)
    (home / name).symlink_to(target)
    (tmp_path / "last.pt").write_bytes(b"weights")

    shown = [hubqueue(environ, "login", "hub", stdin="c0ffee" * 7)]
    shown.append(hubqueue(environ, "enqueue", "run", "yolov8n.pt"))
    run = shown[-1].stdout.strip()
    if run:
        checkpoint = ("checkpoint", "--run", run, "--epoch", "0", str(tmp_path / "last.pt"))
        shown.append(hubqueue(environ, "enqueue", *checkpoint))
    # A worker that a training starts writes a lock and a log; it must not touch links at these paths.
    quiet = (
        ("worker", "--detached", "--idle-exit", "0")
        if name in ("locks", "worker.log")
        else ("drain", "--timeout", "0.3")
    )
    shown.append(hubqueue(environ, *quiet))

    assert target.read_bytes() == b"theirs" if target.is_file() else list(target.iterdir()) == []
    assert [path.name for path in elsewhere.iterdir()] == ["target"]
    assert not any("Traceback" in each.stderr for each in shown)


@pytest.mark.parametrize("model", ["{key}_{id}", "https://hub.ultralytics.com/models/{id}?api_key={key}"])
def test_a_key_among_the_arguments_is_refused_with_the_safe_command(home: Path, model: str) -> None:
    key = "c0ffee" * 7

    shown = hubqueue(environ_of(home), "enqueue", "run", model.format(key=key, id="abcdefghij0123456789"))

    assert shown.returncode == 2
    assert "hubqueue login hub" in shown.stderr
    assert key not in shown.stdout + shown.stderr
