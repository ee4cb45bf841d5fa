"""A folder as a destination, from the configuration to the files, as a person uses it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from stage import ROOT, environ_of, hubqueue, python, wait_until

PAGE = (ROOT / "docs" / "folder.md").read_text()
TRAIN = """
import hubqueue, sys
run = hubqueue.start_run("resnet50", name=sys.argv[3] if sys.argv[3:] else None, args={"lr": 0.1, "token": "a-secret-of-mine"}, destination="box", worker="none")
for epoch in range(3):
    run.log_metrics({"loss": 1 / (epoch + 1)}, epoch=epoch)
run.save_checkpoint(sys.argv[1], epoch=2)
run.save_checkpoint(sys.argv[2], epoch=2, is_best=True, map=0.5)
run.finish(timeout=0)
"""


@pytest.fixture
def environ(home: Path, tmp_path: Path) -> dict[str, str]:
    """The configuration of the page, with another path."""
    (table,) = re.findall(r"^```toml\n# config.toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    home.mkdir(mode=0o700)
    (home / "config.toml").write_text(table.replace("/mnt/nas", str(tmp_path)))
    return environ_of(home)


def test_a_training_is_in_the_folder_as_documented(
    environ: dict[str, str], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights" * 400_000)
    (tmp_path / "shards" / "optim").mkdir(parents=True)
    (tmp_path / "shards" / "model.bin").write_bytes(b"m")
    (tmp_path / "shards" / "optim" / "0.bin").write_bytes(b"o")

    before = hubqueue(environ, "check")
    trained = python(TRAIN, environ, str(tmp_path / "last.pt"), str(tmp_path / "shards"))
    out, _ = trained.communicate(timeout=90)
    drained = hubqueue(environ, "drain", "--timeout", "60")
    after = hubqueue(environ, "check")
    status = json.loads(hubqueue(environ, "status", "--json").stdout)

    folder = tmp_path / "trainings"
    assert (trained.returncode, drained.returncode) == (0, 0), out + drained.stderr
    assert (before.returncode, after.returncode) == (0, 0), before.stdout + after.stdout
    assert f"box at {folder} accepts requests" in after.stdout
    assert (status["healthy"], status["destinations"][0]["url"]) == (True, str(folder))
    (run,) = (each for each in folder.iterdir() if each.is_dir())
    assert run.name == f"resnet50-{status['runs'][0]['id']}" == status["runs"][0]["remote_id"]
    record = json.loads((run / "run.json").read_text())
    assert (record["state"], record["args"]) == ("finished", {"lr": 0.1, "token": "***"})
    (metrics,) = (run / "metrics").iterdir()
    assert [json.loads(line)["metrics"]["loss"] for line in metrics.read_text().splitlines()] == [
        1,
        0.5,
        1 / 3,
    ]
    latest = json.loads((run / "latest.json").read_text())["checkpoint"]
    best = json.loads((run / "best.json").read_text())["checkpoint"]
    assert {latest, best} == {"epoch-0002", "epoch-0002.2"}
    assert (run / "checkpoints" / latest / "checkpoint.pt").read_bytes() == (
        tmp_path / "last.pt"
    ).read_bytes()
    assert (run / "checkpoints" / best / "optim" / "0.bin").read_bytes() == b"o"
    for each in (*folder.rglob("*"), *home.rglob("*")):
        assert not each.is_file() or b"a-secret-of-mine" not in each.read_bytes(), each
    assert not list(folder.rglob("*.part")) and not list(folder.rglob("uploading-*"))


def test_a_checkpoint_is_pulled_and_verified(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("con", "A.bin", "a.bin"):
        (tmp_path / "shards" / name).write_bytes(name.encode())
    (tmp_path / "last.pt").write_bytes(b"weights")
    python(TRAIN, environ, str(tmp_path / "last.pt"), str(tmp_path / "shards")).communicate(timeout=90)
    hubqueue(environ, "drain", "--timeout", "60")
    (run,) = (each for each in (tmp_path / "trainings").iterdir() if each.is_dir())

    pulled = hubqueue(
        environ, "pull", "box", "--run", run.name, "--which", "best", "--to", str(tmp_path / "out")
    )
    verified = hubqueue(environ, "verify", "box", "--run", run.name)
    (stored,) = run.rglob("_con")
    stored.write_bytes(b"c0n")
    altered = hubqueue(environ, "verify", "box", "--run", run.name)

    assert (pulled.returncode, verified.returncode, altered.returncode) == (0, 0, 1), (
        pulled.stderr + verified.stdout
    )
    names = {each.name: each.read_bytes() for each in (tmp_path / "out").rglob("*") if each.is_file()}
    assert names == {name: name.encode() for name in ("con", "A.bin", "a.bin")}
    assert "con: its bytes are not those that were saved" in altered.stdout


def test_a_run_with_a_name_and_steps(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    code = TRAIN.replace("epoch=epoch)", "epoch=epoch, step=10 * epoch)").replace(
        "epoch=2, is", "step=20, is"
    )

    for _ in range(2):
        trained = python(code, environ, str(tmp_path / "last.pt"), str(tmp_path / "last.pt"), "first try")
        assert trained.communicate(timeout=90) and trained.returncode == 0
    drained = hubqueue(environ, "drain", "--timeout", "60")

    assert drained.returncode == 0, drained.stderr
    one, two = sorted(
        (each for each in (tmp_path / "trainings").iterdir() if each.is_dir()), key=lambda p: len(p.name)
    )
    assert (one.name, two.name.startswith("first try-")) == ("first try", True)
    (metrics,) = (one / "metrics").iterdir()
    assert metrics.name.startswith("00000000-00000020.")
    assert [(line["step"], line["epoch"]) for line in map(json.loads, metrics.read_text().splitlines())] == [
        (0, 0),
        (10, 1),
        (20, 2),
    ]
    assert sorted(each.name for each in (one / "checkpoints").iterdir()) == ["epoch-0002", "step-00000020"]


@pytest.mark.skipif(not shutil.which("jq") or not shutil.which("sha256sum"), reason="needs jq and sha256sum")
def test_the_commands_of_the_page_restore_a_checkpoint(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    python(TRAIN, environ, str(tmp_path / "last.pt"), str(tmp_path / "last.pt")).communicate(timeout=90)
    hubqueue(environ, "drain", "--timeout", "60")
    (console,) = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^\$ (.*)$", console, re.MULTILINE)[1:]
    (run,) = (each for each in (tmp_path / "trainings").iterdir() if each.is_dir())
    script = "\n".join(["set -e", *commands]).replace("~", str(tmp_path)).replace("epoch-0012", "epoch-0002")

    found = subprocess.run(["sh", "-c", script], cwd=run, capture_output=True, text=True, check=False)

    assert (found.returncode, found.stdout) == (0, "epoch-0002\ncheckpoint.pt: OK\n"), found.stderr


def test_while_the_disk_is_away_the_status_says_so_and_nothing_is_lost(
    environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    train = [TRAIN, environ, str(tmp_path / "last.pt"), str(tmp_path / "last.pt")]
    python(*train).communicate(timeout=90)
    hubqueue(environ, "drain", "--timeout", "60")
    (tmp_path / "trainings").rename(tmp_path / "away")

    python(*train).communicate(timeout=90)

    def fails() -> bool:
        """On a busy machine a drain may end before its first attempt."""
        assert hubqueue(environ, "drain", "--timeout", "1").returncode == 3
        return "the folder is not there; mount its disk" in hubqueue(environ, "status").stdout

    wait_until(fails)
    checked = hubqueue(environ, "check")
    (tmp_path / "away").rename(tmp_path / "trainings")
    at_last = hubqueue(environ, "drain", "--timeout", "60")

    assert (checked.returncode, at_last.returncode) == (1, 0)
    assert "the folder is not there; mount its disk" in checked.stdout
    assert len(list((tmp_path / "trainings").glob("resnet50-*"))) == 2
