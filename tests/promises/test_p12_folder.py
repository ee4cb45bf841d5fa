"""P12 in a folder: killed at any step, a checkpoint is there whole or not at all, and the repeat leaves the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layout_stage import BLOCK, Box, random_bytes
from stage import environ_of, hubqueue, python, wait_until

from hubqueue.destinations.layout.retention import Keeping

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# What changes a folder, and what makes it durable.
CHANGES = ("write", "ftruncate", "fsync", "rename", "link", "unlink", "mkdir", "rmdir")
FOLDER = {"a.bin": random_bytes(BLOCK + 7), "inner/b.bin": random_bytes(10, 1), "empty": b""}
WEIGHTS = random_bytes(2 * BLOCK + 1, 2)


def train(box: Box) -> None:
    """A whole training: each batch is sent once, with the same bytes each time."""
    training = box.training()
    training.sent(training.start({"epochs": 3}))
    training.sent(training.metrics("0", "1"))
    training.sent(training.checkpoint(WEIGHTS, epoch=0))
    training.sent(training.checkpoint(WEIGHTS, epoch=0, kind="best", map=0.1))
    training.sent(training.checkpoint(FOLDER, epoch=0, kind="best", map=0.2))
    training.sent(training.checkpoint(b"last", step=9))
    training.sent(training.checkpoint(b"final", epoch=2, kind="final", map=0.3))
    training.sent(training.end())


def killed_at(step: int, act: Callable[[], object], *, after: bool) -> bool:
    """Run `act` in a process that is killed before (or after) its change with this number; False if it had ended before."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _count(step, after=after)
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _count(step: int, *, after: bool) -> None:
    seen = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == step and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            is_last = seen == step
            try:
                return real(*given, **named)
            finally:
                if is_last:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))


def assert_whole(box: Box, golden: dict[str, bytes]) -> None:
    """Every object under its name is whole, and so is every checkpoint with a manifest."""
    tree = box.tree
    for name, content in tree.items():
        folder, _, last = name.rpartition("/")
        if "/metrics/" in name:
            assert last == ".hubqueue.part" or content == golden[name]
        elif last.endswith(".json"):
            record = json.loads(content)
            for each in record.get("files", ()):
                stored = tree[f"{folder}/{each['path']}"]
                assert (len(stored), hashlib.sha256(stored).hexdigest()) == (each["size"], each["sha256"])
    for name in ("latest", "best", "final"):
        text = next((content for path, content in tree.items() if path.endswith(f"/{name}.json")), None)
        if text is not None:
            folder = f"{next(iter(golden)).partition('/')[0]}/{json.loads(text)['manifest']}"
            assert folder in tree, "what is named is whole"


def kill_everywhere(tmp_path: Path, stride: int, *, keeping: Keeping) -> int:
    plain = Box(tmp_path / "golden", keeping=keeping)
    train(plain)
    golden, step = plain.tree, 1
    while True:
        box = Box(tmp_path / f"box-{step}", home=None, keeping=keeping, fsync=True)
        was_killed = killed_at(step, lambda box=box: train(box), after=step % 2 == 0)
        if box.path.exists():
            assert_whole(box, golden)
        if not was_killed:
            return step
        train(box)
        assert box.tree == golden, f"after a kill at step {step}"
        step += stride


def test_a_kill_at_any_step_leaves_checkpoints_whole_and_a_repeat_the_same_bytes(tmp_path: Path) -> None:
    assert kill_everywhere(tmp_path, 31, keeping=Keeping()) > 100


@pytest.mark.slow
@pytest.mark.parametrize("keeping", [Keeping(), Keeping(last=1, best=1)])
def test_a_kill_at_every_single_step(tmp_path: Path, keeping: Keeping) -> None:
    assert kill_everywhere(tmp_path, 1, keeping=keeping) > 100


SAVE = """
import hubqueue, sys
run = hubqueue.start_run("yolov8n.pt", destination="box", worker="none")
for epoch in range(2):
    run.log_metrics({"loss": 1.0}, epoch=epoch)
run.save_checkpoint(sys.argv[1], epoch=1)
run.finish(timeout=0)
"""


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_of_an_upload_is_continued(home: Path, tmp_path: Path) -> None:
    environ = environ_of(
        home,
        HUBQUEUE_DESTINATIONS__BOX__TYPE="folder",
        HUBQUEUE_DESTINATIONS__BOX__PATH=str(tmp_path / "box"),
        HUBQUEUE_DESTINATIONS__BOX__RATE_LIMITS__CKPT="0",
        HUBQUEUE_RETRY__CAP="0.1",
        HUBQUEUE_RETRY__BASE="0.1",
    )
    content = random_bytes(160 * BLOCK)
    (tmp_path / "last.pt").write_bytes(content)
    saved, _ = python(SAVE, environ, str(tmp_path / "last.pt")).communicate(timeout=90)
    parts = tmp_path / "box"
    sizes = []

    for at_least in range(10, 100, 30):
        worker = python("from hubqueue.cli import main; main(['drain'])", environ)

        def written() -> int:
            return sum(each.stat().st_size for each in parts.rglob(".checkpoint.pt.part"))

        wait_until(lambda worker=worker, most=at_least * BLOCK: written() > most or worker.poll() is not None)
        worker.kill()
        worker.wait()
        sizes.append(written())
    drained = hubqueue(environ, "drain", "--timeout", "120")

    assert drained.returncode == 0, saved + drained.stderr
    (found,) = parts.rglob("checkpoint.pt")
    assert found.read_bytes() == content
    assert sizes[0] > 0 and sizes == sorted(sizes)
    assert not list(parts.rglob("*.part")) and not list(parts.rglob("uploading-*"))
    assert len(list(parts.rglob("manifest.json"))) == 1
