"""Two processes trained one run: what the survivor logged and how it ended was dropped, and `finish` said nothing.

The test is one of the processes. The other one is real, and ends as the test says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from stage import (
    PATIENCE,
    Process,
    ack,
    hubqueue,
    kill,
    new_run,
    platform_environ,
    python,
    start_worker,
    wait_until,
)
from stage import end as terminate

import hubqueue as package
from hubqueue.domain.drafts import metrics_draft
from hubqueue.domain.entry import Kind
from hubqueue.domain.lane import Lease
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox import presence
from hubqueue.outbox.locks import Lock
from hubqueue.outbox.moves.claim import Terms
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.leftover import Leftover
from hubqueue.producer.run import Run
from hubqueue.producer.senders import WorkerMode
from hubqueue.sandbox import Sandbox
from hubqueue.worker.closing import close_run
from hubqueue.worker.events import Fact
from hubqueue.worker.janitor import Janitor

pytestmark = pytest.mark.usefixtures("migrated_home")
NOWHERE = "http://127.0.0.1:9"
LATE = ("epoch_end", "training_complete", "training_failed")
# Does what it reads, line by line, until its end.
OTHER = """
import sys
import hubqueue
options = {"resume": sys.argv[1]} if len(sys.argv) > 1 else {}
run = hubqueue.start_run("yolo26n.pt", worker="none", args={"project": "coco"}, **options)
with open(sys.argv[2] if len(sys.argv) > 2 else 0) as orders:
    print(run.id, flush=True)
    for order in orders:
        exec(order)
        print("done", flush=True)
"""


@pytest.fixture(autouse=True)
def environ(home: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    found = platform_environ(home, NOWHERE)
    for name in found.keys() - os.environ.keys() | {"HUBQUEUE_HOME"}:
        monkeypatch.setenv(name, found[name])
    return found


@pytest.fixture
def outbox(environ: Mapping[str, str]) -> Iterator[Outbox]:
    with open_outbox(environ=environ) as opened:
        yield opened


class Other:
    """Another process of the run: `resume` continues one, without it starts one."""

    def __init__(self, environ: Mapping[str, str], folder: Path, resume: str = "last") -> None:
        orders = folder / f"orders-{id(self)}"
        os.mkfifo(orders)
        self.process: Process = python(OTHER, environ, resume, str(orders))
        self._orders = orders.open("w")
        assert self.process.stdout is not None
        self._output = self.process.stdout
        self.run_id = self._next_line()

    def do(self, order: str) -> None:
        print(order, file=self._orders, flush=True)
        while self._next_line() != "done":
            pass

    def log(self, epoch: int) -> None:
        self.do(f"run.log_metrics({{'loss': 1.0}}, epoch={epoch})")

    def reach_its_end(self) -> None:
        self._orders.close()
        self.process.communicate()

    def die(self) -> None:
        self._orders.close()
        kill(self.process)

    def _next_line(self) -> str:
        line = self._output.readline()
        assert line, "it has ended"
        return line.strip()


@pytest.fixture
def other(environ: Mapping[str, str], tmp_path: Path) -> Iterator[Other]:
    """Another process, which has started the run."""
    started = Other(environ, tmp_path)
    yield started
    if started.process.poll() is None:
        started.die()


def continued(run_id: str, worker: WorkerMode = "none") -> Run:
    return package.start_run("yolo26n.pt", worker=worker, resume=run_id, args={"project": "coco"})


def scan(outbox: Outbox) -> None:
    """What a worker does every few seconds."""
    facts: list[Fact] = []
    Janitor(outbox, facts.append).scan()


def state(outbox: Outbox, run_id: str) -> str:
    (run,) = outbox.stats.runs(run_id=run_id)
    found: str = run["state"]
    return found


def end(outbox: Outbox, run_id: str) -> dict[str, Any] | None:
    """The end that waits for the hub; None without one."""
    rows = outbox.stats.entries(run_id=run_id, kind="completion")
    waiting = [row["id"] for row in rows if row["state"] == "pending"]
    assert len(waiting) < 2
    return json.loads(outbox.stats.payload(waiting[0]) or "") if waiting else None


def may_be_sent(outbox: Outbox, run_id: str) -> bool:
    """Whether the end of the run is sent now, once the hub has everything else."""
    with outbox.database.write() as tx:
        tx.exec_driver_sql("UPDATE runs SET remote_id = 'model-1'")
    (row,) = outbox.stats.runs(run_id=run_id)
    terms = Terms("worker-1", outbox.config.worker.lease, max_entries=1000, max_bytes=1 << 20)
    kinds = dict.fromkeys(Kind, outbox.config.worker.lease * 0)
    while (lease := outbox.claims.claim(row["destination"], kinds, terms)) is not None:
        if lease.batch.kind is Kind.COMPLETION:
            outbox.settlement.release(lease, reason="a test", started_at=None)
            return True
        ack(outbox, lease)
    return False


def test_the_survivor_of_two_processes_decides_how_the_run_ends(outbox: Outbox, other: Other) -> None:
    run = continued(other.run_id)

    other.die()
    scan(outbox)
    assert state(outbox, other.run_id) == "running"

    run.log_metrics({"loss": 0.5}, epoch=1)
    left = run.finish(timeout=0, results={"metrics": {"map": 0.5}})

    assert (state(outbox, other.run_id), left.other_end) == ("finished", None)
    found = end(outbox, other.run_id)
    assert found is not None
    assert found["data"]["results"] == {"metrics": {"map": 0.5}}


def test_a_run_lives_as_long_as_any_of_its_processes(
    outbox: Outbox, other: Other, environ: Mapping[str, str], tmp_path: Path
) -> None:
    second, third = (Other(environ, tmp_path, other.run_id) for _ in range(2))
    for each in (second, other):
        each.die()
        scan(outbox)
        assert state(outbox, other.run_id) == "running"
        assert json.loads(hubqueue(environ, "status", "--json").stdout)["runs"][0]["state"] == "running"

    third.die()
    scan(outbox)

    assert state(outbox, other.run_id) == "interrupted"


def test_an_old_process_that_ends_does_not_end_the_run_of_the_new_one(outbox: Outbox, other: Other) -> None:
    other.log(0)
    run = continued(other.run_id)

    other.reach_its_end()
    scan(outbox)

    assert state(outbox, other.run_id) == "running"
    assert end(outbox, other.run_id) is None
    run.finish(timeout=0)
    assert state(outbox, other.run_id) == "finished"


@pytest.mark.parametrize("by", [RunState.INTERRUPTED, RunState.FAILED, RunState.FINISHED])
def test_a_run_that_somebody_has_ended_continues_with_what_a_living_process_logs(
    outbox: Outbox, by: RunState, caplog: pytest.LogCaptureFixture
) -> None:
    run = package.start_run("yolo26n.pt", worker="none", args={"project": "coco"})
    run_id = run.id or ""
    close_run(outbox, run_id, by)
    assert (state(outbox, run_id), end(outbox, run_id) is not None) == (by, True)

    run.log_metrics({"loss": 0.5}, epoch=1)

    assert (state(outbox, run_id), end(outbox, run_id)) == ("running", None)
    assert f"run {run_id}: it was set to {by} while this process trains" in caplog.text
    run.log_metrics({"loss": 0.5}, epoch=2)
    assert caplog.text.count("while this process trains") == 1
    assert run.finish(timeout=0).other_end is None


@pytest.mark.parametrize("by", [RunState.INTERRUPTED, RunState.FAILED])
def test_finish_replaces_what_somebody_else_has_said_and_says_so(
    outbox: Outbox, by: RunState, caplog: pytest.LogCaptureFixture
) -> None:
    run = package.start_run("yolo26n.pt", worker="none", args={"project": "coco"})
    run_id = run.id or ""
    close_run(outbox, run_id, by)

    left = run.finish(timeout=0, results={"metrics": {"map": 0.5}})

    assert (left.other_end, state(outbox, run_id)) == (by, "finished")
    found = end(outbox, run_id)
    assert found is not None
    assert found["event"] == "training_complete"
    assert f"another process had set it to {by}; it is finished now" in caplog.text


def test_an_exception_in_one_process_does_not_end_what_another_one_trains(
    outbox: Outbox, other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt), continued(other.run_id):
        raise KeyboardInterrupt

    assert state(outbox, other.run_id) == "running"
    assert "another process trains it" in caplog.text
    other.reach_its_end()
    assert state(outbox, other.run_id) == "finished"


def test_the_last_word_counts(outbox: Outbox, other: Other) -> None:
    run = continued(other.run_id)

    run.finish(timeout=0, status="failed", error="no data")
    assert state(outbox, other.run_id) == "failed"
    other.do("left = run.finish(timeout=0)")
    other.do("assert left.other_end == 'failed', left")

    assert state(outbox, other.run_id) == "finished"
    found = end(outbox, other.run_id)
    assert found is not None
    assert found["event"] == "training_complete"


def test_the_same_word_twice_is_one_end_with_its_results(outbox: Outbox, other: Other) -> None:
    run = continued(other.run_id)

    run.finish(timeout=0, results={"metrics": {"map": 0.5}})
    other.do("left = run.finish(timeout=0)")

    found = end(outbox, other.run_id)
    assert found is not None
    assert found["data"]["results"] == {"metrics": {"map": 0.5}}
    assert may_be_sent(outbox, other.run_id)


def test_results_stay_when_another_process_logs_after_them(outbox: Outbox, other: Other) -> None:
    run = continued(other.run_id)
    run.finish(timeout=0, results={"metrics": {"map": 0.5}})

    other.log(7)
    assert (state(outbox, other.run_id), end(outbox, other.run_id)) == ("running", None)
    other.reach_its_end()

    assert state(outbox, other.run_id) == "finished"
    found = end(outbox, other.run_id)
    assert found is not None
    assert found["data"]["results"] == {"metrics": {"map": 0.5}}


def test_the_end_is_not_sent_while_another_process_may_log_more(
    outbox: Outbox, other: Other, caplog: pytest.LogCaptureFixture
) -> None:
    run = continued(other.run_id)

    left = run.finish(timeout=600)  # it does not wait for what cannot be sent

    assert left.entries
    assert "another process of this run lives" in caplog.text
    assert not may_be_sent(outbox, other.run_id)
    other.log(1)
    other.do("run.finish(timeout=0)")
    assert may_be_sent(outbox, other.run_id)


@pytest.mark.parametrize("ends", [Other.reach_its_end, Other.die])
def test_the_end_is_sent_when_the_other_process_has_ended(
    outbox: Outbox, other: Other, ends: Callable[[Other], None]
) -> None:
    run = continued(other.run_id)
    run.finish(timeout=0)
    scan(outbox)
    assert not may_be_sent(outbox, other.run_id)

    ends(other)
    scan(outbox)

    assert state(outbox, other.run_id) == "finished"
    assert may_be_sent(outbox, other.run_id)


def test_an_end_that_the_hub_has_already_loses_nothing_that_follows(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    run = package.start_run("yolo26n.pt", worker="none", args={"project": "coco"})
    run_id = run.id or ""
    close_run(outbox, run_id, RunState.INTERRUPTED)
    assert may_be_sent(outbox, run_id)
    (row,) = outbox.stats.runs(run_id=run_id)
    ack(outbox, _claimed(outbox, row["destination"]))

    run.log_metrics({"loss": 0.5}, epoch=3)
    run.finish(timeout=0, results={"metrics": {"map": 0.5}})

    assert "the hub has received that end already" in caplog.text
    assert state(outbox, run_id) == "finished"
    found = end(outbox, run_id)
    assert found is not None
    assert found["data"]["results"] == {"metrics": {"map": 0.5}}
    waiting = [row["kind"] for row in outbox.stats.entries(run_id=run_id) if row["state"] == "pending"]
    assert sorted(waiting) == ["completion", "metrics"]


def _claimed(outbox: Outbox, destination: str) -> Lease:
    terms = Terms("worker-1", outbox.config.worker.lease, max_entries=1000, max_bytes=1 << 20)
    lease = outbox.claims.claim(destination, dict.fromkeys(Kind, outbox.config.worker.lease * 0), terms)
    assert lease is not None
    return lease


def test_the_hub_gets_one_end_after_everything_else(
    hub: Sandbox, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULTRALYTICS_PLATFORM_URL", hub.url)
    environ = platform_environ(home, hub.url)
    other = Other(environ, tmp_path)
    worker = start_worker(environ)
    run = continued(other.run_id)

    run.log_metrics({"loss": 1.0}, epoch=0)
    run.finish(timeout=0, results={"metrics": {"map": 0.5}})
    wait_until(lambda: any(hub.run(each).epochs for each in hub.runs))
    other.log(1)
    other.reach_its_end()

    (model,) = hub.runs
    wait_until(lambda: hub.run(model).state == "complete")
    terminate(worker)
    received = [each.event for each in hub.run(model).events if each.event in LATE]
    assert received == ["epoch_end", "epoch_end", "training_complete"]


def test_finish_does_not_wait_for_an_end_that_cannot_be_sent_yet(
    hub: Sandbox, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ULTRALYTICS_PLATFORM_URL", hub.url)
    other = Other(platform_environ(home, hub.url), tmp_path)
    run = continued(other.run_id, worker="thread")
    looks: list[int] = []

    def look(left: Leftover) -> None:
        looks.append(left.entries)
        assert looks.count(1) < 3, "it waits"

    run.log_metrics({"loss": 1.0}, epoch=0)
    run.finish(timeout=0)
    left = run.wait(timeout=PATIENCE, each=look)
    run.finish(timeout=PATIENCE)

    assert left.entries == 1
    other.die()


def test_a_fork_that_logs_keeps_the_run_alive_after_its_parent(
    outbox: Outbox, other: Other, tmp_path: Path
) -> None:
    orders = tmp_path / "orders-of-the-child"
    os.mkfifo(orders)
    child = (
        f"import os; os.fork() or (run.log_metrics({{'loss': 1.0}}, epoch=1), print('logged', flush=True), "
        f"open({str(orders)!r}).read(), os._exit(0))"
    )
    print(child, file=other._orders, flush=True)
    assert sorted((other._next_line(), other._next_line())) == ["done", "logged"]

    other.process.kill()
    other.process.wait()
    scan(outbox)
    assert state(outbox, other.run_id) == "running"

    with orders.open("w"):
        pass  # the child ends
    wait_until(lambda: not presence.lives(outbox.run_lock(other.run_id)))
    scan(outbox)
    assert state(outbox, other.run_id) == "interrupted"


def test_only_a_living_process_makes_an_ended_run_continue(any_outbox: Outbox) -> None:
    run = new_run(any_outbox)
    any_outbox.registry.end_run(run, RunState.INTERRUPTED)

    _, moved = any_outbox.entries.enqueue(run, metrics_draft('{"loss": 1.0}', 0))
    assert (moved.ended, state(any_outbox, run)) == ("interrupted", "interrupted")
    _, moved = any_outbox.entries.enqueue(run, metrics_draft('{"loss": 1.0}', 1), alive=True)
    assert (moved.ended, state(any_outbox, run)) == ("interrupted", "running")
    _, moved = any_outbox.entries.enqueue(run, metrics_draft('{"loss": 1.0}', 2), alive=True)
    assert (moved.ended, state(any_outbox, run)) == (None, "running")

    assert any_outbox.registry.end_run(run, RunState.FINISHED)
    assert not any_outbox.registry.end_run(run, RunState.FAILED)
    assert any_outbox.registry.end_run(run, RunState.FAILED, over=[RunState.FINISHED])


def test_two_runs_of_one_process_are_one_process(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    first = package.start_run("yolo26n.pt", worker="none", args={"project": "coco"})
    again = continued(first.id or "")

    left = again.finish(timeout=0)

    assert "another process" not in caplog.text
    assert left.other_end is None
    assert may_be_sent(outbox, first.id or "")


def test_a_shell_command_does_not_make_a_dead_run_look_alive(
    outbox: Outbox, other: Other, environ: Mapping[str, str]
) -> None:
    other.die()
    scan(outbox)

    assert (
        hubqueue(environ, "enqueue", "metrics", "--run", other.run_id, "--epoch", "5", "loss=1").returncode
        == 0
    )

    assert state(outbox, other.run_id) == "interrupted"
    assert end(outbox, other.run_id) is not None


def test_the_survivor_takes_the_lock_that_an_older_worker_looks_at(outbox: Outbox, other: Other) -> None:
    run = continued(other.run_id)
    lock = outbox.run_lock(other.run_id)
    other.die()
    outbox.registry.end_run(other.run_id, RunState.INTERRUPTED)  # as an older worker does

    run.log_metrics({"loss": 1.0}, epoch=1)

    assert not Lock(lock).acquire(0)
