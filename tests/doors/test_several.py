"""The commands for a training with several destinations: any of its ids means all of them."""

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
        yield found


def said(pair: Pair, *arguments: str, code: int = 0) -> str:
    done = hubqueue(pair.environ, *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_a_shell_script_saves_at_several_destinations(pair: Pair) -> None:
    run = said(pair, "enqueue", "run", "yolov8n.pt", "--to", "one", "--to", "two").strip()
    metrics = said(pair, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=1.5")
    path = str(pair.checkpoint(b"weights"))
    saved = said(pair, "enqueue", "checkpoint", "--run", run, "--epoch", "0", "--final", path)
    first, second = (each.stat().st_ino for each in pair.snapshots())
    ended = said(pair, "enqueue", "end", "--run", run)
    said(pair, "drain", "--run", run)

    assert (metrics, saved) == ("entry 3\nentry 4\n", "entry 5\nentry 6\n")
    assert first == second
    assert [line.rpartition(" is ")[2] for line in ended.splitlines()] == ["finished"] * 2
    assert ended.startswith(f"run {run} ")
    assert pair.received("one") == pair.received("two") == ({0: {"loss": 1.5}}, [b"weights"])


@pytest.mark.parametrize("names", [("one", "one"), ("one", "twoo")])
def test_the_shell_refuses_the_names_that_python_refuses(pair: Pair, names: tuple[str, str]) -> None:
    done = hubqueue(pair.environ, "enqueue", "run", "yolov8n.pt", "--to", names[0], "--to", names[1])

    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert json.loads(said(pair, "runs", "--json")) == []


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_id_at_any_destination_shows_all(pair: Pair, which: int) -> None:
    other, run = pair.start(), pair.start()
    ids = [each.id or "" for each in run.destinations]
    run.log_metrics({"loss": 1.0}, epoch=0)
    other.finish(timeout=0)
    run.finish(timeout=0)
    said(pair, "drain", "--run", ids[which])
    given = ("--run", ids[which][:8], "--json")

    status = json.loads(said(pair, "status", *given))
    entries = json.loads(said(pair, "entries", *given))
    attempts = json.loads(said(pair, "log", *given))

    assert [(each["id"], each["together"], each["destination"]) for each in status["runs"]] == [
        (ids[0], ids[0], "one"),
        (ids[1], ids[0], "two"),
    ]
    assert {each["run_id"] for each in entries} == {each["run_id"] for each in attempts} == set(ids)
    assert {each["state"] for each in entries} == {"delivered"}


def test_the_runs_of_a_training_stand_side_by_side(pair: Pair) -> None:
    run = pair.start()
    run.log_metrics({"loss": 1.0}, epoch=0)
    alone = pair.start(destination="one")
    ids = [each.id or "" for each in run.destinations]

    status, runs = said(pair, "status"), said(pair, "runs")
    shown = [line for line in status.splitlines() if line.startswith(("run ", "and "))]

    assert [line.split()[:2] for line in shown] == [["run", alone.id], ["run", ids[0]], ["and", ids[1]]]
    assert [line.split("  ")[2] for line in shown] == ["to one", "to one", "to two"]
    assert f"\n\nrun {ids[0]}" in status
    assert f"\n\nand {ids[1]}" not in status
    assert runs.splitlines()[0].split()[:3] == ["RUN", "TOGETHER", "MODEL"]
    assert [line.split()[0] for line in runs.splitlines()[1:]] == [alone.id, *ids]


@pytest.mark.slow
def test_a_finished_run_is_shown_with_the_one_that_still_owes(pair: Pair) -> None:
    run = pair.start()
    run.finish(timeout=0)
    pair.two.fail("any:401")
    hubqueue(pair.environ, "drain", "--timeout", "60")
    for _ in range(11):
        pair.start(destination="one", model="other.pt").finish(timeout=0)
    hubqueue(pair.environ, "drain", "--timeout", "60")

    shown = json.loads(said(pair, "runs", "--json"))

    ids = [each["id"] for each in shown]
    at = ids.index(run.id)
    assert ids[at : at + 2] == [each.id for each in run.destinations]


def test_what_is_owed_is_cancelled_at_all_destinations_or_at_one(pair: Pair) -> None:
    run = pair.start()
    run.log_metrics({"loss": 1.0}, epoch=0)
    id = run.id or ""

    unknown = hubqueue(pair.environ, "cancel", "--run", id, "--to", "three")
    one = said(pair, "cancel", "--run", id, "--to", "two")
    rest = said(pair, "cancel", "--run", run.destinations[1].id or "")

    assert unknown.returncode == 2
    assert f"run {id} has no destination three\nhint: it has: one, two" in unknown.stderr
    assert (one, rest) == ("2 entries cancelled\n", "2 entries cancelled\n")


def test_the_hint_of_a_held_run_gives_up_its_own_destination_only(pair: Pair) -> None:
    run = pair.start()
    run.log_metrics({"loss": 1.0}, epoch=0)
    pair.two.fail("metrics:404")
    hubqueue(pair.environ, "drain", "--timeout", "60")

    (concern,) = [
        each
        for each in json.loads(said(pair, "status", "--json"))["attention"]
        if "is on hold" in each["what"]
    ]

    assert concern["what"].startswith(f"run {run.destinations[1].id} ")
    assert concern["hint"].endswith(f"hubqueue cancel --run {run.destinations[1].id} --to two")
