"""P9: no line of any library's logger, at whatever level, shows a signed URL or a key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import platform_environ, python, start_worker

from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")

KEY = "Vx3-qL8w_Tn5bZk2Jr7"

_TRAINING = """
import http.client, logging, sys
logging.basicConfig(level=logging.DEBUG)
http.client.HTTPConnection.debuglevel = 1
import urllib3
urllib3.add_stderr_logger()
import hubqueue
run = hubqueue.start_run("yolo26n.pt", worker=sys.argv[2], strict=True)
run.log_metrics({"loss": 1}, epoch=0)
run.save_checkpoint(sys.argv[1], epoch=0, is_best=True)
print(run.finish(timeout=60))
"""


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Sandbox]:
    with Sandbox(tmp_path / "platform", faults=["ckpt:500:times=1"]) as sandbox:
        yield sandbox


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    path.write_bytes(b"weights" * 1000)
    return path


def _shows_no_secret(output: str) -> None:
    assert KEY not in output
    assert re.search(r"signature|expires=|bearer", output, re.IGNORECASE) is None


def test_no_logger_of_a_training_shows_a_signed_url_or_a_key(
    platform: Sandbox, home: Path, checkpoint: Path
) -> None:
    environ = platform_environ(home, platform.url, ULTRALYTICS_API_KEY=KEY)

    process = python(_TRAINING, environ, str(checkpoint), "thread")
    output, _ = process.communicate(timeout=90)

    assert process.returncode == 0, output
    assert '"PUT /storage/' in output, "the library logged nothing, so this proves nothing"
    assert any("/storage/" in request.path and request.status == 200 for request in platform.requests)
    _shows_no_secret(output)


def test_the_verbose_log_of_a_worker_shows_no_signed_url(
    platform: Sandbox, home: Path, checkpoint: Path
) -> None:
    environ = platform_environ(home, platform.url, ULTRALYTICS_API_KEY=KEY)
    python(_TRAINING, environ, str(checkpoint), "none").communicate(timeout=90)

    _, output = start_worker(environ, "--verbose", "--idle-exit", "0.5").communicate(timeout=90)

    assert "ckpt delivered" in output
    logs = "".join(path.read_text() for path in home.glob("worker.log*"))
    _shows_no_secret(output + logs)
