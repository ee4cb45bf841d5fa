"""`attach` and `HUBTrainingSession` with several destinations: each gets what its type would get alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from several_stage import NAMES, Pair, pair_of
from stage import hubqueue, wait_until
from trainer import Trainer, Yolo

from hubqueue import HUBTrainingSession
from hubqueue.domain.errors import ConfigError, InvalidArgument
from hubqueue.integrations.ultralytics.attachment import attach

pytestmark = pytest.mark.usefixtures("migrated_home")


@pytest.fixture
def pair(migrated_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    with pair_of(migrated_home, tmp_path, monkeypatch) as found:
        yield found


def saved(pair: Pair) -> dict[str, dict[str, Any]]:
    """By destination: the names of the metrics of the first epoch, and the keys of the checkpoints."""
    found: dict[str, dict[str, Any]] = {}
    with pair.outbox() as outbox:
        for row in outbox.stats.runs(finished=None):
            entries = outbox.stats.entries(run_id=row["id"])
            first = next(each for each in entries if each["kind"] == "metrics" and each["key"] == "0")
            found[row["label"]] = {
                "metrics": set(json.loads(outbox.stats.payload(first["id"]) or "")),
                "checkpoints": sorted({each["key"] for each in entries if each["kind"] == "ckpt"}),
                "state": row["state"],
            }
    return found


def test_a_training_of_the_package_is_sent_to_several_destinations(pair: Pair) -> None:
    model = Yolo(pair.folder / "train")
    attach(model, destination=NAMES, timeout=60.0, worker="thread")

    trainer = model.train(epochs=2)

    # Whether a periodic checkpoint is sent before the final one replaces it depends on the worker.
    (one, ones), (two, twos) = pair.received("one"), pair.received("two")
    assert one == two
    assert sorted(one) == [0, 1, 2]
    assert ones[-1] == twos[-1] == trainer.written["best.pt"]


def test_a_resumed_training_of_the_package_continues_at_all_of_them(pair: Pair) -> None:
    for start in (0, 1):
        model = Yolo(pair.folder / "train")
        attach(model, destination=NAMES, timeout=0, worker="none")
        model.train(epochs=start + 1, start_epoch=start, resume=bool(start))

    with pair.outbox() as outbox:
        assert sorted(row["label"] for row in outbox.stats.runs(finished=None)) == NAMES


def test_each_type_gets_the_metrics_and_the_checkpoints_that_it_would_get_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (pair.home / "config.toml").read_text()
    table = f'\n[destinations.web]\ntype = "platform"\nurl = "{pair.one.url}"\n'
    (pair.home / "config.toml").write_text(text + table)
    monkeypatch.setenv("HUBQUEUE_KEY_WEB", "key-of-web")

    def train(destination: Any, folder: str) -> dict[str, dict[str, Any]]:
        home = pair.folder / folder / "home"
        home.mkdir(parents=True, mode=0o700)
        (home / "config.toml").write_text(text + table)
        model = Yolo(pair.folder / folder)
        attach(model, destination=destination, timeout=0, worker="none", home=home)
        model.train(epochs=2)
        return saved(Pair(home, pair.folder, {}, pair.environ))

    alone = {**train("one", "a"), **train("web", "b")}

    both = train(["one", "web"], "c")

    assert both == alone
    assert both["web"]["metrics"] > both["one"]["metrics"]


def test_any_destination_can_stop_a_training_of_the_package(pair: Pair) -> None:
    model = Yolo(pair.folder / "train")
    attachment = attach(model, destination=NAMES, timeout=0, worker="none")

    def cancel(_trainer: Trainer) -> None:
        assert attachment.run is not None
        with pair.outbox() as outbox, outbox.database.write() as tx:
            last = attachment.run.destinations[-1].id
            tx.exec_driver_sql(f"UPDATE runs SET cancelled = 1 WHERE id = '{last}'")

    trainer = model.train(epochs=50, events={"on_model_save": cancel})

    assert trainer.epoch == 0


@pytest.mark.parametrize("names", [[], ["one", "one"], ["one", "three"]])
def test_attach_refuses_the_names_that_start_run_refuses(pair: Pair, names: list[str]) -> None:
    with pytest.raises((InvalidArgument, ConfigError)):
        attach(Yolo(pair.folder / "train"), destination=names)


def test_a_session_of_the_hub_sends_to_further_destinations(pair: Pair) -> None:
    session = HUBTrainingSession(
        "yolov8n.pt", destination=["two", "one"], home=pair.home, worker="thread", deadline=60.0
    )
    session.create_model({"epochs": 1})
    session.metrics_queue[0] = '{"loss": 1.0}'
    session.upload_model(0, str(pair.checkpoint(b"weights")), final=True)
    wait_until(lambda: session.model_id)

    assert pair.received("one") == pair.received("two") == ({0: {"loss": 1.0}}, [b"weights"])
    assert session.model_id == pair.two.models[0]
    session.alive = False


def test_the_model_of_a_session_is_that_at_the_hub(pair: Pair) -> None:
    """A folder that has the run, under an id of its own, is not the hub."""
    pair.two.fail("any:503")
    with (pair.home / "config.toml").open("a") as file:
        file.write(f'\n[destinations.nas]\ntype = "folder"\npath = "{pair.folder}"\n')
    session = HUBTrainingSession(
        "yolov8n.pt", destination=["nas", "two"], home=pair.home, worker="none", deadline=0.0
    )

    session.create_model({"epochs": 1})
    hubqueue(pair.environ, "drain", "--timeout", "0.5")

    with pair.outbox() as outbox:
        known = {row["label"]: row["remote_id"] is not None for row in outbox.stats.runs()}
    assert known == {"nas": True, "two": False}
    assert (session.model_id, session.model_url) == (None, None)
    session.alive = False
