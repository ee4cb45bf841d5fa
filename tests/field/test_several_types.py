"""A training at a hub and in a folder: each gets what its type takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from several_stage import Pair, pair_of
from stage import hubqueue

pytestmark = pytest.mark.usefixtures("migrated_home")


@pytest.fixture
def pair(migrated_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    with pair_of(migrated_home, tmp_path, monkeypatch) as found:
        nas = tmp_path / "nas"
        nas.mkdir()
        with (migrated_home / "config.toml").open("a") as file:
            file.write(f'\n[destinations.nas]\ntype = "folder"\npath = "{nas}"\n')
        yield found


def test_steps_and_folders_reach_the_destination_that_takes_them(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    folder = pair.folder / "step-20"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"shard")
    run = pair.start("resnet50.pt", destination=["one", "nas"], strict=False)
    for step in (10, 20):
        run.log_metrics({"loss": 1.0 / step}, step=step, epoch=0)
    saved = run.save_checkpoint(folder, step=20, epoch=0)
    run.save_checkpoint(pair.checkpoint(b"weights"), step=20, epoch=0, final=True)
    left = run.finish(timeout=0)

    drained = hubqueue(pair.environ, "drain", "--timeout", "60")

    assert drained.returncode == 1, drained.stderr  # the folder was not saved for the hub
    assert saved is not None
    assert {name: each.unsaved for name, each in left.by_destination.items()} == {"one": 1, "nas": 0}
    (said,) = [each for each in caplog.messages if each.startswith("the checkpoint was not saved")]
    assert "is a folder, and destination one takes one file" in said
    metrics, checkpoints = pair.received("one")
    assert (list(metrics), metrics[0]["loss"], checkpoints) == ([0], 0.05, [b"weights"])
    logged = [
        json.loads(line)
        for path in (pair.folder / "nas").rglob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert sorted(each["step"] for each in logged) == [10, 20]
    assert b"weights" in [each.read_bytes() for each in (pair.folder / "nas").rglob("*") if each.is_file()]
    assert pair.snapshots() == []
    assert run.destinations[0].remote_id != run.destinations[1].remote_id


def test_steps_that_were_logged_before_the_settings_could_be_read_have_the_key_of_each_type(
    pair: Pair,
) -> None:
    file = pair.home / "config.toml"
    text = file.read_text()
    file.unlink()
    file.mkdir()
    run = pair.start(destination=["one", "nas"], strict=False)
    run.log_metrics({"loss": 1.0}, step=10, epoch=0)
    run.log_metrics({"loss": 0.5}, step=20, epoch=0)
    file.rmdir()
    file.write_text(text)

    left = run.finish(timeout=0)

    assert left.unsaved == 0
    with pair.outbox() as outbox:
        keys = {
            row["label"]: [each["key"] for each in outbox.stats.entries(run_id=row["id"], kind="metrics")]
            for row in outbox.stats.runs()
        }
    assert keys == {"one": ["0"], "nas": ["step:20", "step:10"]}
