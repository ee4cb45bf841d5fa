"""A home was deleted under a training: its checkpoints waited for ever for a disk that nobody would mount again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stage import Bench, totals

import hubqueue
from hubqueue.domain.lifecycle import State
from hubqueue.outbox.outbox import open_outbox
from hubqueue.testing import FakeClock

pytestmark = pytest.mark.usefixtures("migrated_home")


@pytest.mark.parametrize("whole", [True, False], ids=["the home", "the database and the spool"])
def test_a_checkpoint_that_went_with_the_home_waits_for_no_disk(
    home: Path, tmp_path: Path, clock: FakeClock, *, whole: bool
) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    run = hubqueue.start_run("yolov8n.pt", destination="hub", home=home, worker="none")
    run.log_metrics({"loss": 1.0}, epoch=0)
    run.save_checkpoint(tmp_path / "last.pt", epoch=0)

    if whole:
        shutil.rmtree(home)
    else:
        shutil.rmtree(home / "spool")
        for path in home.glob("outbox.db*"):
            path.unlink()
    run.log_metrics({"loss": 1.0}, epoch=1)
    left = run.finish(timeout=0)

    assert left.unsaved == 1
    with open_outbox(home, environ={}, clock=clock) as outbox, Bench(outbox) as bench:
        for _ in range(4):
            bench.step()
            clock.advance(1000)
        assert totals(outbox).get("pending", 0) == 0
        assert [row["kind"] for row in outbox.stats.entries(state=State.DEAD)] == ["ckpt"]
        assert outbox.spool.away() is None
