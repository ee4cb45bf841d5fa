"""A run's name: what is valid, where it is kept and shown, and the default for a destination that has names."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from stage import must_claim, new_run

import hubqueue
from hubqueue.cli import main
from hubqueue.domain.drafts import metrics_draft
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import InvalidArgument
from hubqueue.domain.lane import RunRef
from hubqueue.domain.redact import MASK
from hubqueue.integrations.ultralytics import attach
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.called_with import run_name


class Study(str, enum.Enum):  # noqa: UP042 - the text of a StrEnum would be its value
    BASE = "baseline"


def command(home: Path, *arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, ["--home", str(home), *arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, ""),
        ("baseline 3", "baseline 3"),
        ("  baseline\n", "baseline"),
        ("Grundmodell ü 模型", "Grundmodell ü 模型"),
        ("v1.0", "v1.0"),
        ("a" * 128, "a" * 128),
        (Study.BASE, "baseline"),
    ],
)
def test_a_name_is_kept_without_blanks_around_it(given: str | None, kept: str) -> None:
    assert run_name(given) == kept


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (7, "must be a string, not int"),
        ("", "it is empty"),
        (" \t", "it is empty"),
        (".", "it begins with a dot"),
        ("..", "it begins with a dot"),
        (".hidden", "it begins with a dot"),
        (" ../../etc", "it begins with a dot"),
        ("a/b", "it has a slash"),
        ("a\\b", "it has a slash"),
        ("a\0b", "it has a control character"),
        ("a\nb", "it has a control character"),
        ("a\u202eb", "it has a control character"),
        ("a\ud800b", "it has a control character"),
        ("a" * 129, "it has 129 characters"),
    ],
)
def test_a_name_that_cannot_be_a_folder_is_refused(given: Any, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as raised:
        run_name(given)

    assert "1 to 128 characters" in (raised.value.hint or "")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("yolov8n.pt", "yolov8n-0bf51cd3352d"),
        ("runs/detect/best.pt", "best-0bf51cd3352d"),
        ("C:\\runs\\best.pt", "best-0bf51cd3352d"),
        ("meta/llama-3.1", "llama-3.1-0bf51cd3352d"),
        ("model.safetensors", "model-0bf51cd3352d"),
        ("org/vit_base_patch16_224.augreg", "vit_base_patch16_224.augreg-0bf51cd3352d"),
        ("checkpoints/base/", "base-0bf51cd3352d"),
        (".pt", "pt-0bf51cd3352d"),
        ("..", "run-0bf51cd3352d"),
        ("", "run-0bf51cd3352d"),
        ("a\nb.pt", "a\ufffdb-0bf51cd3352d"),
        ("m" * 500, "m" * 100 + "-0bf51cd3352d"),
    ],
)
def test_a_run_without_a_name_is_shown_by_its_model_and_its_id(model: str, name: str) -> None:
    assert RunRef("0bf51cd3352d", "hub", model, None).shown_name == name
    assert run_name(name) == name
    assert RunRef("0bf51cd3352d", "hub", model, None, name="mine").shown_name == "mine"


@pytest.mark.usefixtures("migrated_home")
def test_the_name_of_a_run_is_kept_and_shown(home: Path) -> None:
    run = hubqueue.start_run("yolov8n.pt", home=home, worker="none", destination="hub", name=" baseline 3 ")
    entry = run.log_metrics({"loss": 1.0}, epoch=0)
    run.finish(timeout=0)

    again = hubqueue.start_run(
        "yolov8n.pt", home=home, worker="none", destination="hub", resume=run.id, name="other"
    )
    again.finish(timeout=0)

    assert again.id == run.id
    (shown,) = json.loads(command(home, "status", "--json").output)["runs"]
    assert shown["name"] == "baseline 3"
    assert f"run {run.id}  baseline 3  yolov8n.pt  to hub" in command(home, "status").output
    assert "baseline 3" in command(home, "runs").output
    assert json.loads(command(home, "show", str(entry), "--json").output)["run_name"] == "baseline 3"


@pytest.mark.usefixtures("migrated_home")
def test_a_list_without_names_has_no_column_for_them(home: Path) -> None:
    hubqueue.start_run("yolov8n.pt", home=home, worker="none", destination="hub").finish(timeout=0)

    assert "NAME" not in command(home, "runs").output
    (shown,) = json.loads(command(home, "runs", "--json").output)
    assert shown["name"] is None


@pytest.mark.usefixtures("migrated_home")
def test_the_command_line_names_a_run(home: Path) -> None:
    run = command(home, "enqueue", "run", "yolov8n.pt", "--to", "hub", "--name", "baseline").output.strip()
    done = command(home, "enqueue", "run", "yolov8n.pt", "--to", "hub", "--name", "a/b", code=2)

    assert "invalid name of a run, 'a/b': it has a slash" in done.output
    with open_outbox(home) as outbox:
        assert outbox.stats.runs_named("baseline") == [run]


@pytest.mark.usefixtures("migrated_home")
def test_a_key_in_a_name_is_masked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_API_KEY", "a-key-of-the-tests")

    run = hubqueue.start_run(
        "yolov8n.pt", home=home, worker="none", destination="hub", name="with a-key-of-the-tests"
    )
    run.finish(timeout=0)

    with open_outbox(home) as outbox:
        (row,) = outbox.stats.runs()
    assert row["name"] == f"with {MASK}"


def test_runs_are_found_by_name(outbox: Outbox) -> None:
    def named(name: str | None) -> str:
        return outbox.registry.start_run(destination="hub", model="yolov8n.pt", kinds=(), name=name)[0]

    first, second, third = named("baseline"), named("baseline"), new_run(outbox)

    assert sorted(outbox.stats.runs_named("baseline")) == sorted([first, second])
    assert outbox.stats.runs_named(f"yolov8n-{third}") == [third]
    assert outbox.stats.runs_named(f"yolov8n-{first}") == []
    assert outbox.stats.runs_named(f"other-{third}") == []
    assert outbox.stats.runs_named("") == []


@pytest.mark.usefixtures("migrated_home")
def test_a_run_is_chosen_by_its_name(home: Path) -> None:
    def start(name: str, *more: str) -> str:
        arguments = ("enqueue", "run", "yolov8n.pt", "--to", "hub", "--name", name)
        return command(home, *arguments, *more).output.strip()

    one, first, second = start("one"), start("two"), start("two")
    both = start("both", "--to", "platform")

    command(home, "enqueue", "metrics", "--run", "one", "--epoch", "0", "loss=1")
    listed = json.loads(command(home, "entries", "--json", "--run", "one", "--kind", "metrics").output)
    assert [each["run_id"] for each in listed] == [one]
    refused = command(home, "entries", "--run", "two", code=2).output
    assert "2 runs have the name two: " in refused
    assert first in refused
    assert second in refused
    assert "give the id of one of them" in refused
    shown = json.loads(command(home, "status", "--json", "--run", "both").output)["runs"]
    assert both in [run["id"] for run in shown]
    assert len(shown) == 2


def test_attach_refuses_an_invalid_name_before_the_training() -> None:
    model: Any = SimpleNamespace(callbacks={}, train=lambda: None)

    with pytest.raises(InvalidArgument, match="invalid name of a run"):
        attach(model, name="a/b")
    attach(model, name="baseline")


def test_a_transport_gets_the_name(outbox: Outbox) -> None:
    kinds, metrics = (Kind.METRICS,), metrics_draft('{"loss": 1}', 0)
    run, _ = outbox.registry.start_run(destination="hub", model="yolov8n.pt", kinds=kinds, name="baseline")
    outbox.entries.enqueue(run, metrics)

    assert must_claim(outbox).batch.run.shown_name == "baseline"
