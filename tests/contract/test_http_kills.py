"""Uploads to the example server, started by its documented command, with kill -9 in the middle: another worker continues."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from http_stage import Valve, free_port, http_environ, start_server
from stage import hubqueue, kill, python, start_worker, wait_until

SIZE, MOST = 12_000_000, 5_000_000
SAVE = """
import hubqueue, sys
run = hubqueue.start_run("resnet50.pt", worker="none", strict=True, destination="lab")
run.save_checkpoint(sys.argv[1], epoch=3)
run.finish(timeout=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed",
    [{"worker"}, {"server"}, {"worker", "server", "home"}],
    ids=lambda killed: "-".join(sorted(killed)),
)
def test_an_upload_is_continued_after_kill_9(home: Path, tmp_path: Path, killed: set[str]) -> None:
    weights = random.Random(7).randbytes(SIZE)
    (tmp_path / "last.pt").write_bytes(weights)
    runs, port = tmp_path / "runs", free_port()
    server = start_server(runs, port)
    with Valve(port, MOST) as valve:
        environ = http_environ(home, valve.url)
        out, _ = python(SAVE, environ, str(tmp_path / "last.pt")).communicate(timeout=90)
        worker = start_worker(environ)
        wait_until(lambda: sum(each.stat().st_size for each in runs.glob("*/files/*/model.pt")) > MOST // 2)

        if "server" in killed:
            kill(server)
        if "worker" in killed:
            kill(worker)
        if "home" in killed:  # another machine has the disk now
            environ = http_environ(Path(shutil.move(home, tmp_path / "moved")), valve.url)
        (stored,) = runs.glob("*/files/*/model.pt")
        before, passed = stored.stat().st_size, valve.passed
        assert MOST // 2 < before < SIZE
        if "server" in killed:
            server = start_server(runs, port)
        valve.open()
        drained = hubqueue(environ, "drain", "--timeout", "60")

        assert drained.returncode == 0, (drained.stdout, drained.stderr, out)
        assert stored.read_bytes() == weights
        (manifest,) = runs.glob("*/manifest/*.json")
        assert json.loads(manifest.read_bytes())["files"][0]["size"] == SIZE
        assert valve.passed - passed < SIZE - before + 100_000
        if "worker" not in killed:
            kill(worker)
        kill(server)
