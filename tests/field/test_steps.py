"""Trainings that count steps: each destination gets the key that it takes, and the union of what was logged under it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import steps
import template
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from stage import TERMS, ZERO, ack, claim, new_run, totals

import hubqueue
from hubqueue.cli import main
from hubqueue.domain.drafts import Position, metrics_draft, position
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import InvalidArgument
from hubqueue.domain.lane import Lease
from hubqueue.outbox.outbox import open_outbox
from hubqueue.testing import FakeClock, outbox_in

# Epoch, step and metrics of one call.
Call = tuple[int | None, int | None, dict[str, int]]


@pytest.fixture
def ours(tmp_path: Path, migrated_home: Path) -> Iterator[Path]:
    """A home whose runs go to a destination that takes steps, unless they name `hub`."""
    steps.configure(migrated_home)
    with steps.installed(tmp_path / "site"):
        yield migrated_home


def start(home: Path, destination: str | None = None, **options: Any) -> hubqueue.Run:
    return hubqueue.start_run("resnet50.pt", home=home, destination=destination, worker="none", **options)


def command(home: Path, *arguments: str, code: int = 0) -> Result:
    """Run a command in this process, which has the package."""
    done = CliRunner().invoke(main, ["--home", str(home), *arguments])
    assert done.exit_code == code, done.output
    return done


def waiting(
    home: Path, kind: str = "metrics", *, run_id: str | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Key and payload of what waits (of one run), in the order of the lane."""
    with open_outbox(home) as outbox:
        rows = [row for row in outbox.stats.entries(kind=kind, run_id=run_id) if row["state"] == "pending"]
        rows.sort(key=lambda row: (row["rank"], row["id"]))
        return [(row["key"], json.loads(outbox.stats.payload(row["id"]) or "")) for row in rows]


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        (
            "ours",
            [
                ("7", {"accuracy": 0.5}),
                ("step:120", {"epoch": 3, "loss": 2.0, "lr": 0.1}),
                ("step:130", {"epoch": 3, "loss": 1.0}),
            ],
        ),
        ("hub", [("3", {"loss": 1.0}), ("7", {"accuracy": 0.5}), ("120", {"lr": 0.1})]),
    ],
)
def test_a_run_logs_epochs_and_steps(
    ours: Path, destination: str, expected: list[tuple[str, dict[str, Any]]]
) -> None:
    with start(ours, destination) as run:
        run.log_metrics({"loss": 2.0}, epoch=3, step=120)
        run.log_metrics({"lr": 0.1}, step=120)
        run.log_metrics({"accuracy": 0.5}, epoch=7)
        run.log_metrics({"loss": 1.0}, epoch=3, step=130)

    assert waiting(ours) == expected


@pytest.mark.parametrize("call", ["log_metrics", "save_checkpoint"])
def test_a_call_without_an_epoch_and_a_step_is_refused(ours: Path, call: str) -> None:
    with start(ours) as run, pytest.raises(InvalidArgument, match="neither an epoch nor a step is given"):
        getattr(run, call)({} if call == "log_metrics" else "last.pt")


@pytest.mark.parametrize(
    ("destination", "last", "best"),
    [
        ("ours", {"epoch": None, "step": 120}, {"epoch": 3, "step": 130}),
        ("hub", {"epoch": 120, "step": 120}, {"epoch": 3, "step": 130}),
    ],
)
def test_a_checkpoint_of_a_step_keeps_its_number(
    ours: Path, tmp_path: Path, destination: str, last: dict[str, Any], best: dict[str, Any]
) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")

    with start(ours, destination) as run:
        run.save_checkpoint(tmp_path / "w.pt", step=120)
        run.save_checkpoint(tmp_path / "w.pt", epoch=3, step=130, is_best=True)

    found = dict(waiting(ours, "ckpt"))
    assert {name: found["last"][name] for name in last} == last
    assert {name: found["best"][name] for name in best} == best


@pytest.mark.parametrize("default", ["ours", "hub"])
def test_what_is_logged_before_the_settings_can_be_read_gets_its_key_afterwards(
    ours: Path, default: str, tmp_path: Path
) -> None:
    (ours / "config.toml").unlink()
    (ours / "config.toml").mkdir()
    run = start(ours)
    for epoch, step, loss in ((3, 120, 1.0), (None, 120, 2.0), (3, 130, 3.0)):
        assert run.log_metrics({"loss": loss}, epoch=epoch, step=step) is None
    run.log_metrics({"lr": 0.1}, epoch=3, step=120)  # must not bring the first loss to the end
    (ours / "config.toml").rmdir()
    steps.configure(ours, default)

    run.finish(timeout=0)

    if default == "ours":
        both = {"epoch": 3, "loss": 2.0, "lr": 0.1}
        assert waiting(ours) == [("step:120", both), ("step:130", {"epoch": 3, "loss": 3.0})]
    else:
        assert waiting(ours) == [("3", {"loss": 3.0, "lr": 0.1}), ("120", {"loss": 2.0})]


@pytest.mark.parametrize("known", [True, False])
def test_several_destinations_of_a_run_get_each_the_keys_that_it_takes(
    ours: Path, tmp_path: Path, known: bool
) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    if not known:
        (ours / "config.toml").unlink()
        (ours / "config.toml").mkdir()
    run = hubqueue.start_run("yolov8n.pt", home=ours, destination=["ours", "hub"], worker="none", name="both")
    for epoch, step, loss in ((3, 120, 1.0), (3, 130, 2.0), (None, 7, 0.5)):
        run.log_metrics({"loss": loss}, epoch=epoch, step=step)
    if not known:
        (ours / "config.toml").rmdir()
        steps.configure(ours)
        run._saving.opening.try_again()  # some seconds later
    run.save_checkpoint(tmp_path / "w.pt", step=130)
    run.finish(timeout=0)

    with open_outbox(ours) as outbox:
        rows = {row["label"]: row for row in outbox.stats.runs(finished=None)}
    assert [rows[each]["name"] for each in ("ours", "hub")] == ["both", "both"]
    assert waiting(ours, run_id=rows["ours"]["id"]) == [
        ("step:7", {"loss": 0.5}),
        ("step:120", {"epoch": 3, "loss": 1.0}),
        ("step:130", {"epoch": 3, "loss": 2.0}),
    ]
    assert waiting(ours, run_id=rows["hub"]["id"]) == [("3", {"loss": 2.0}), ("7", {"loss": 0.5})]
    for label, epoch in (("ours", None), ("hub", 130)):
        ((_, saved),) = waiting(ours, "ckpt", run_id=rows[label]["id"])
        assert (saved["epoch"], saved["step"]) == (epoch, 130)


def test_a_command_saves_a_step_for_each_destination(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    run = command(
        ours, "enqueue", "run", "yolov8n.pt", "--to", "ours", "--to", "hub", "--name", "both"
    ).output.strip()

    command(ours, "enqueue", "metrics", "--run", run, "--epoch", "3", "--step", "120", "loss=0.5")
    command(ours, "enqueue", "checkpoint", "--run", run, "--step", "120", str(tmp_path / "w.pt"))

    assert waiting(ours) == [("3", {"loss": 0.5}), ("step:120", {"epoch": 3, "loss": 0.5})]
    assert [saved["epoch"] for _, saved in waiting(ours, "ckpt")] == [None, 120]
    with open_outbox(ours) as outbox:
        assert len(outbox.stats.runs_named("both")) == 2


# The rules.


def expected(calls: Sequence[Call], *, takes_steps: bool) -> dict[str, dict[str, int]]:
    """What arrives by key: the newest value of each name."""
    found: dict[str, dict[str, int]] = {}
    for epoch, step, values in calls:
        if takes_steps and step is not None:
            key, extra = f"step:{step}", {} if epoch is None else {"epoch": epoch}
        else:
            key, extra = str(step if epoch is None else epoch), {}
        found.setdefault(key, {}).update({**extra, **values})
    return found


def _calls() -> st.SearchStrategy[Call]:
    numbers = st.none() | st.integers(0, 1)
    values = st.dictionaries(st.sampled_from(["loss", "lr", "epoch"]), st.integers(0, 9), min_size=1)
    return st.tuples(numbers, numbers, values).filter(lambda call: call[:2] != (None, None))


# Of a worker: send what is due; die after the hub has it; die before. Of everything: end and begin again.
_DEEDS = st.sampled_from(["send", "lost response", "lost request", "restart"])


@settings(max_examples=15)
@given(
    lives=st.lists(st.tuples(_calls(), st.lists(_DEEDS, max_size=2)), min_size=2, max_size=8),
    takes_steps=st.booleans(),
)
def test_what_arrives_is_the_union_of_each_key_also_after_kills(
    lives: list[tuple[Call, list[str]]], takes_steps: bool
) -> None:
    history = [each for call, deeds in lives for each in (call, *deeds)]
    clock, hub = FakeClock(), dict[str, dict[str, int]]()
    terms = replace(TERMS, max_entries=3)

    def arrive(lease: Lease) -> None:
        ranks = [entry.rank for entry in lease.batch.entries]
        assert ranks == sorted(ranks)
        hub.update({entry.key: json.loads(entry.payload) for entry in lease.batch.entries})

    with tempfile.TemporaryDirectory() as folder:
        home = template.lay(Path(folder) / "home")
        outbox = outbox_in(home, clock=clock)
        run = new_run(outbox)
        for each in [*history, *["send"] * len(history)]:
            clock.advance(TERMS.lease.total_seconds() + 3)  # the pace, and a lease that nobody settles
            if isinstance(each, tuple):
                epoch, step, values = each
                draft = metrics_draft(json.dumps(values), epoch, step, takes_steps=takes_steps)
                outbox.entries.enqueue(run, draft)
            elif each == "restart":
                outbox.close()
                outbox = outbox_in(home, clock=clock)
            elif (lease := claim(outbox, Kind.METRICS, terms=terms)) is not None:
                if each != "lost request":
                    arrive(lease)
                if each == "send":
                    ack(outbox, lease)

        assert hub == expected([call for call, _ in lives], takes_steps=takes_steps)
        assert "pending" not in totals(outbox)
        outbox.close()


@settings(max_examples=8)
@given(
    calls=st.lists(_calls(), min_size=2, max_size=8), known_after=st.integers(1, 8), takes_steps=st.booleans()
)
def test_memory_keeps_the_order_of_the_calls_until_the_destination_is_known(
    calls: list[Call], known_after: int, takes_steps: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, steps.installed(Path(folder) / "site"):
        home = template.lay(Path(folder) / "home")
        (home / "config.toml").mkdir()
        run = start(home)
        for number, (epoch, step, values) in enumerate(calls):
            if number == known_after:
                (home / "config.toml").rmdir()
                steps.configure(home, "ours" if takes_steps else "hub")
                run._saving.opening.try_again()  # some seconds later
            run.log_metrics(values, epoch=epoch, step=step)
        if known_after >= len(calls):
            (home / "config.toml").rmdir()
            steps.configure(home, "ours" if takes_steps else "hub")
        run.finish(timeout=0)

        assert dict(waiting(home)) == expected(calls, takes_steps=takes_steps)


# The command line.


def test_the_command_line_saves_and_shows_steps(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    run = command(ours, "enqueue", "run", "resnet50.pt").output.strip()

    entry = command(ours, "enqueue", "metrics", "--run", run, "--step", "120", "loss=0.5").output.split()[1]
    command(ours, "enqueue", "metrics", "--run", run, "--step", "130", "--epoch", "3", "loss=0.4")
    command(ours, "enqueue", "checkpoint", "--run", run, "--step", "130", str(tmp_path / "w.pt"))

    assert waiting(ours) == [("step:120", {"loss": 0.5}), ("step:130", {"epoch": 3, "loss": 0.4})]
    ((_, saved),) = waiting(ours, "ckpt")
    assert (saved["epoch"], saved["step"]) == (None, 130)
    assert "step 120" in command(ours, "entries", "--kind", "metrics").output
    assert "step 120" in command(ours, "show", entry).output
    assert json.loads(command(ours, "show", entry, "--json").output)["key"] == "step:120"
    with open_outbox(ours) as outbox:
        (row,) = outbox.stats.runs()
        lease = outbox.claims.claim(row["destination"], {Kind.METRICS: ZERO}, TERMS)
        assert lease is not None
        assert [position(entry) for entry in lease.batch.entries] == [Position(None, 120), Position(3, 130)]
    assert "step 120…step 130" in command(ours, "log").output


def test_a_destination_of_epochs_gets_the_step_as_its_epoch(ours: Path) -> None:
    run = command(ours, "enqueue", "run", "yolov8n.pt", "--to", "hub").output.strip()

    command(ours, "enqueue", "metrics", "--run", run, "--step", "120", "loss=0.5")

    assert waiting(ours) == [("120", {"loss": 0.5})]


@pytest.mark.parametrize("what", [("metrics", "loss=0.5"), ("checkpoint", "last.pt")])
def test_the_command_line_needs_an_epoch_or_a_step(ours: Path, what: tuple[str, str]) -> None:
    done = command(ours, "enqueue", what[0], "--run", "any", what[1], code=2)

    assert "one of the options --epoch and --step is missing" in done.output


def test_without_its_package_no_step_is_saved_under_a_wrong_key(tmp_path: Path, migrated_home: Path) -> None:
    steps.configure(migrated_home)
    with steps.installed(tmp_path / "site"):
        run = command(migrated_home, "enqueue", "run", "resnet50.pt").output.strip()
    (migrated_home / "config.toml").unlink()

    done = command(migrated_home, "enqueue", "metrics", "--run", run, "--step", "120", "loss=0.5", code=2)

    assert "bucket" in done.output
    command(migrated_home, "enqueue", "metrics", "--run", run, "--epoch", "3", "loss=0.5")
    assert waiting(migrated_home) == [("3", {"loss": 0.5})]
