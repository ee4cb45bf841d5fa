"""P4: of several destinations of one training, the trouble of one delays or loses nothing of what the others get."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import end, environ_of, kill, python, start_worker, wait_until

from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("migrated_home")
NAMES = ("fine", "down", "refusing", "slow")
TRAIN = """
import hubqueue, json, sys
run = hubqueue.start_run("yolov8n.pt", destination=sys.argv[1].split(","), worker="none")
for epoch in range(3):
    run.log_metrics({"loss": 1.0}, epoch=epoch)
saved = run.save_checkpoint(sys.argv[2], epoch=2, final=True)
left = run.finish(timeout=0)
print(json.dumps([saved is not None, left.unsaved]))
"""


@pytest.fixture
def hubs(tmp_path: Path) -> Iterator[dict[str, Sandbox]]:
    found = {name: Sandbox(tmp_path / name) for name in NAMES}
    for each in found.values():
        each.start()
    yield found
    for each in found.values():
        each.stop()


def environ_with(home: Path, hubs: dict[str, Sandbox]) -> dict[str, str]:
    tables = [f'[destinations.{name}]\ntype = "hub"\nurl = "{hub.url}"' for name, hub in hubs.items()]
    (home / "config.toml").write_text("\n".join(['default_destination = "fine"', *tables]))
    return environ_of(home, **{f"HUBQUEUE_KEY_{name.upper()}": f"key-of-{name}" for name in hubs})


def received(hub: Sandbox) -> tuple[list[int], list[bytes]]:
    if not hub.models:
        return [], []
    return sorted(hub.metrics(hub.models[0])), [
        each.path.read_bytes() for each in hub.checkpoints(hub.models[0])
    ]


@pytest.mark.slow
def test_one_down_one_refusing_one_slow_and_a_killed_worker(
    migrated_home: Path, tmp_path: Path, hubs: dict[str, Sandbox]
) -> None:
    environ, weights = environ_with(migrated_home, hubs), os.urandom(2_000_000)
    path = tmp_path / "best.pt"
    path.write_bytes(weights)
    hubs["down"].fail("any:503")
    hubs["refusing"].fail("metrics:400:epoch=1")
    hubs["slow"].fail("ckpt:silence:seconds=300")
    out, _ = python(TRAIN, environ, ",".join(NAMES), str(path)).communicate()
    path.write_bytes(b"the next training")
    assert out.splitlines()[-1] == "[true, 0]"
    whole = ([0, 1, 2], [weights])

    worker = start_worker(environ)
    wait_until(lambda: received(hubs["fine"]) == whole)
    wait_until(lambda: received(hubs["refusing"]) == ([0, 2], [weights]))
    wait_until(lambda: received(hubs["slow"])[0] == [0, 1, 2])
    wait_until(lambda: len(list((migrated_home / "spool").glob("*.ckpt"))) == 2)
    kill(worker)

    kept = list((migrated_home / "spool").glob("*.ckpt"))
    assert [each.read_bytes() for each in kept] == [weights, weights]
    assert len({each.stat().st_ino for each in kept}) == 1
    for each in hubs.values():
        each.heal()
    worker = start_worker(environ)
    wait_until(lambda: received(hubs["down"]) == received(hubs["slow"]) == whole)
    wait_until(lambda: not list((migrated_home / "spool").glob("*.ckpt")))
    with open_outbox(migrated_home) as outbox:
        # A hub has metrics before the worker has settled them.
        wait_until(lambda: outbox.stats.owed().entries == 0)
        end(worker)

        assert outbox.stats.dead() == 1
    assert received(hubs["fine"]) == whole
