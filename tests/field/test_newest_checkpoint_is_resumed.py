"""What a hub resumes from is the newest checkpoint of the training, whatever was sent when, again, or by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import platform_stage
import pytest
import template
from stage import ack, environ_of, hubqueue, must_claim, new_run, save_snapshot, totals

from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, is_before
from hubqueue.domain.entry import Entry, Kind
from hubqueue.domain.lifecycle import State
from hubqueue.outbox.moves.claim import Terms
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.intake import open_run
from hubqueue.sandbox import Sandbox
from hubqueue.testing import FakeClock
from hubqueue.worker.worker import Worker

LAST, BEST = False, True


@dataclass
class Training:
    """A run at a sandbox, sent by a worker that the test steps."""

    hub: Sandbox
    outbox: Outbox
    clock: FakeClock
    folder: Path
    run: str
    worker: Worker

    def save(self, epoch: int, *, best: bool = LAST, final: bool = False) -> int:
        """A checkpoint whose bytes name its epoch. Returns the id of its entry."""
        path = self.folder / "weights.pt"
        path.write_bytes(f"epoch {epoch}".encode())
        self.clock.advance(1)
        return save_snapshot(self.outbox, self.run, Checkpoint(path, epoch, best, 0.5, final))

    def drain(self) -> None:
        for _ in range(30):
            if not totals(self.outbox).get("pending"):
                return
            self.step()
        raise AssertionError(totals(self.outbox))

    def step(self) -> None:
        self.clock.advance(1000)
        self.worker.step()
        assert self.worker.wait_free(100)

    def refuse(self, entry_id: int) -> None:
        """Step until the hub has refused an entry."""
        self.hub.fail("ckpt:413")
        for _ in range(5):
            self.step()
        self.hub.heal()
        assert self.state(entry_id)[0] == State.DEAD

    def state(self, entry_id: int) -> tuple[str, str | None]:
        (row,) = self.outbox.stats.entries(ids=[entry_id])
        return row["state"], row["reason"]

    def resumed(self) -> str:
        """The weights that a training would resume from."""
        if self.hub.models:
            (model,) = self.hub.models
            record = [each for each in self.hub.checkpoints(model) if each.type == "epoch"][-1]
            assert self.hub.model(model)["resume"].endswith(f"epoch-{record.epoch}.pt")
            return record.path.read_text()
        (model,) = self.hub.runs
        path = self.hub.run(model).files[-1].path
        assert path is not None
        return path.read_text()

    def arrived(self) -> list[str]:
        if self.hub.models:
            return [each.path.read_text() for each in self.hub.checkpoints(self.hub.models[0])]
        files = self.hub.run(self.hub.runs[0]).files
        return [each.path.read_text() for each in files if each.path is not None]


@pytest.fixture(params=["hub", "platform"])
def training(
    request: pytest.FixtureRequest, hub: Sandbox, tmp_path: Path, clock: FakeClock
) -> Iterator[Training]:
    home, type_ = template.lay(tmp_path / "home"), str(request.param)
    environ = environ_of(home, hub.url)
    if type_ == "platform":
        environ = platform_stage.platform_environ(home, hub.url)
    with ExitStack() as stack:
        outbox = stack.enter_context(open_outbox(home, environ=environ, clock=clock))
        target = outbox.config.destination(type_)
        named = declaration(type_).identify("yolov8n.pt", target)
        run, _ = open_run(outbox, named, {}, target)
        worker = Worker(outbox, emit=lambda _fact: None)
        worker.start()
        stack.callback(worker.stop, platform_stage.ZERO)
        yield Training(hub, outbox, clock, tmp_path, run, worker)


def test_a_best_checkpoint_of_an_earlier_epoch_is_sent_first(training: Training) -> None:
    training.save(8, best=BEST)
    training.save(9)

    training.drain()

    assert training.arrived() == ["epoch 8", "epoch 9"]
    assert training.resumed() == "epoch 9"


def test_a_script_that_saves_its_best_checkpoint_last_resumes_from_the_last_one(training: Training) -> None:
    training.save(9)
    training.save(8, best=BEST)

    training.drain()

    assert training.resumed() == "epoch 9"


def test_a_best_checkpoint_that_is_the_newest_is_resumed(training: Training) -> None:
    training.save(8)
    training.save(9, best=BEST)

    training.drain()

    assert training.resumed() == "epoch 9"


def test_a_training_that_went_back_resumes_from_where_it_is(training: Training) -> None:
    training.save(49, best=BEST)
    training.save(50)
    training.drain()
    training.save(21)
    training.drain()
    assert training.resumed() == "epoch 21"

    training.save(22, best=BEST)
    training.drain()

    assert training.resumed() == "epoch 22"


def test_a_best_checkpoint_that_waits_from_before_a_step_back_is_not_resumed(training: Training) -> None:
    training.save(49, best=BEST)
    training.save(21)

    training.drain()

    assert training.resumed() == "epoch 21"


def test_a_newer_one_does_not_wait_for_an_older_one_that_always_fails(training: Training) -> None:
    best = training.save(8, best=BEST)
    training.hub.fail("ckpt:500")
    training.save(9)
    for _ in range(4):  # the registration, and three attempts
        training.step()
    training.hub.heal()

    training.drain()

    assert training.resumed() == "epoch 9"
    assert training.state(best) == (State.SUPERSEDED, "the hub has a newer checkpoint")
    assert training.arrived() == ["epoch 9"]


def test_a_best_checkpoint_saved_after_the_last_one_was_sent_does_not_replace_it(training: Training) -> None:
    training.save(9)
    training.drain()
    late = training.save(8, best=BEST)

    training.drain()

    assert training.resumed() == "epoch 9"
    assert training.state(late) == (State.SUPERSEDED, "the hub has a newer checkpoint")


def test_a_redrive_of_an_older_checkpoint_does_not_turn_the_training_back(training: Training) -> None:
    best = training.save(8, best=BEST)
    training.refuse(best)
    training.save(9)
    training.drain()
    assert training.arrived() == ["epoch 9"]

    training.outbox.entries.redrive(ids=[best])
    training.drain()

    assert training.resumed() == "epoch 9"
    assert training.state(best) == (State.SUPERSEDED, "the hub has a newer checkpoint")


def test_a_redrive_of_the_newest_checkpoint_sends_it(training: Training) -> None:
    training.save(8, best=BEST)
    training.drain()
    last = training.save(9)
    training.refuse(last)

    training.outbox.entries.redrive(ids=[last])
    training.drain()

    assert training.resumed() == "epoch 9"


def test_a_dead_checkpoint_is_not_sent_after_the_final_one(training: Training) -> None:
    dead = training.save(8)
    training.refuse(dead)
    training.save(9, best=BEST, final=True)
    training.drain()

    training.outbox.entries.redrive(ids=[dead])
    training.drain()

    assert training.arrived() == ["epoch 9"]


def test_several_dead_checkpoints_of_one_kind_are_redriven_as_the_newest(training: Training) -> None:
    ids = []
    for epoch in range(3):
        ids.append(training.save(epoch))
        training.refuse(ids[-1])

    training.outbox.entries.redrive()
    training.drain()

    assert training.arrived() == ["epoch 2"]


@pytest.mark.parametrize("sent", list(itertools.product((True, False), repeat=4)), ids=str)
def test_epochs_arrive_in_order_whenever_the_worker_sends(
    outbox: Outbox, clock: FakeClock, tmp_path: Path, sent: tuple[bool, ...]
) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    run, arrived = new_run(outbox), list[int]()
    terms = Terms("worker-1", timedelta(seconds=60), 9, 1 << 20, resumes_from_last=True)

    def send() -> None:
        clock.advance(1)
        lease = outbox.claims.claim("hub", {Kind.CKPT: timedelta(0)}, terms)
        if lease is not None:
            arrived.append(json.loads(lease.batch.entries[0].payload)["epoch"])
            ack(outbox, lease)

    for (epoch, best), sends in zip(((9, LAST), (8, BEST), (9, BEST), (10, LAST)), sent, strict=True):
        save_snapshot(outbox, run, Checkpoint(tmp_path / "w.pt", epoch, best))
        if sends:
            send()
    while totals(outbox).get("pending"):
        send()

    assert arrived == sorted(arrived)
    assert arrived[-1] == 10


def test_a_destination_that_keeps_every_file_gets_older_ones_too(
    outbox: Outbox, tmp_path: Path, clock: FakeClock
) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    run = new_run(outbox)
    save_snapshot(outbox, run, Checkpoint(tmp_path / "w.pt", 9))
    ack(outbox, must_claim(outbox))
    clock.advance(1000)

    save_snapshot(outbox, run, Checkpoint(tmp_path / "w.pt", 8, is_best=True))

    assert [entry.key for entry in must_claim(outbox).batch.entries] == ["best"]


@pytest.mark.parametrize("payload", ["", "[]", "{}", '{"epoch": "x"}', '{"epoch": null}', "[" * 5000])
def test_a_damaged_payload_has_an_order_too(payload: str) -> None:
    best, last = (Entry(number, key, payload, 1, 1) for number, key in ((2, "best"), (1, "last")))

    assert is_before(best, last)
    assert not is_before(last, best)


@pytest.mark.usefixtures("migrated_home")
def test_after_an_outage_the_command_line_sends_the_newest_last(
    hub: Sandbox, home: Path, tmp_path: Path
) -> None:
    environ = environ_of(home, hub.url)
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    for epoch, best in ((8, ["--best"]), (9, [])):
        (tmp_path / "w.pt").write_text(f"epoch {epoch}")
        saving = ("enqueue", "checkpoint", "--run", run, "--epoch", str(epoch), *best, str(tmp_path / "w.pt"))
        assert hubqueue(environ, *saving).returncode == 0

    assert hubqueue(environ, "drain", "--timeout", "60").returncode == 0

    (model,) = hub.models
    assert hub.model(model)["resume"].endswith("epoch-9.pt")
