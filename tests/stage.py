"""Fixtures for tests: runs, drafts, workers on a fake clock, and processes that are really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import zygote
from sqlalchemy import create_engine

from hubqueue.domain.drafts import FINAL_RANK, Checkpoint, metrics_draft
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.lane import Batch, Lease
from hubqueue.domain.outcome import Outcome, Remote
from hubqueue.outbox.database.migration import _config
from hubqueue.outbox.database.sqlite import load_driver
from hubqueue.outbox.moves.claim import Terms
from hubqueue.outbox.outbox import Outbox
from hubqueue.producer.intake import copy_checkpoint, enqueue_copy, was_swept
from hubqueue.testing import MemoryTransport
from hubqueue.worker.events import Fact
from hubqueue.worker.worker import Worker

_LOGGED = "import logging; logging.getLogger('hubqueue').addHandler(logging.StreamHandler())\n"
ROOT = Path(__file__).resolve().parent.parent
Process = subprocess.Popen[str] | zygote.Forked
KINDS = (Kind.REGISTRATION, Kind.METRICS, Kind.CKPT, Kind.HEARTBEAT)
ZERO = timedelta(0)
# Only a failure waits this long: a busy machine may need many times as long as an idle one.
PATIENCE = 120.0
TERMS = Terms("worker-1", timedelta(seconds=60), max_entries=1000, max_bytes=1 << 20)
PACES = {Kind.REGISTRATION: ZERO, Kind.METRICS: timedelta(seconds=3), Kind.CKPT: timedelta(seconds=900)}


def new_run(outbox: Outbox, *, remote_id: str | None = "model-1", model: str = "yolov8n.pt") -> str:
    """A run that is registered already, unless `remote_id` is None."""
    outbox.note_destinations()
    run_id, _ = outbox.registry.start_run(destination="hub", model=model, kinds=KINDS, remote_id=remote_id)
    return run_id


def log(outbox: Outbox, run_id: str, *epochs: int, value: float = 1.0) -> list[int]:
    """Enqueue metrics of epochs. Returns the ids of the entries."""
    drafts = [metrics_draft(f'{{"loss": {value}}}', epoch) for epoch in epochs]
    return [outbox.entries.enqueue(run_id, draft)[0] for draft in drafts]


def ckpt(outbox: Outbox, run_id: str, key: str, *, final: bool = False, rank: int = 0) -> int:
    """Enqueue a checkpoint without a body. Returns the id of the entry."""
    replaces = ("last", "best") if final else ()
    rank = FINAL_RANK if final else rank
    return outbox.entries.enqueue(run_id, Draft(Kind.CKPT, key, rank, "{}", final=final, replaces=replaces))[
        0
    ]


def save_snapshot(
    outbox: Outbox, run_id: str, checkpoint: Checkpoint, *, folders: bool = False, steps: bool = False
) -> int:
    """Copy a checkpoint and enqueue it for one run, as a training does; return the entry's id."""
    while True:
        draft = copy_checkpoint(outbox, run_id, checkpoint, folders=folders, steps=steps)
        entry_id = enqueue_copy(outbox, run_id, draft)
        if not was_swept(outbox, entry_id, draft):
            return entry_id


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder, hidden ones too, by their path in it."""
    return {
        each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()
    }


def claim(outbox: Outbox, *kinds: Kind, terms: Terms = TERMS) -> Lease | None:
    """Claim what is due among these kinds (default: all)."""
    paces = {kind: PACES[kind] for kind in kinds} if kinds else PACES
    return outbox.claims.claim("hub", paces, terms)


def must_claim(outbox: Outbox, *kinds: Kind, terms: Terms = TERMS) -> Lease:
    lease = claim(outbox, *kinds, terms=terms)
    assert lease is not None, "nothing was due"
    return lease


def ack(outbox: Outbox, lease: Lease) -> None:
    outbox.settlement.ack(lease, started_at=outbox.database.now(), remote=Remote())


def keys(lease: Lease | None) -> list[str]:
    return [] if lease is None else [entry.key for entry in lease.batch.entries]


def totals(outbox: Outbox) -> dict[str, int]:
    """The counts that are not zero; asserts that they add up and agree with the rows."""
    counted = outbox.stats.totals()
    states = ("pending", "delivered", "dead", "superseded", "cancelled")
    assert counted["enqueued"] == sum(counted[name] for name in states)
    assert outbox.stats.miscounted() == []
    return {name: count for name, count in counted.items() if count}


def at_revision(url: str, revision: str, *statements: str) -> None:
    """Make an outbox as the migrations up to a revision made it, with these rows."""
    from alembic import command  # half a second, for few tests

    driver = {"module": load_driver("auto")} if url.startswith("sqlite") else {}
    engine = create_engine(url, **driver)
    with engine.begin() as connection:
        command.upgrade(_config(connection), revision)
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


class Bench:
    """A worker that a test steps, with its facts and its sent batches."""

    def __init__(self, outbox: Outbox, answer: Callable[[Batch], Outcome] | None = None) -> None:
        self.outbox = outbox
        self.transport = MemoryTransport(answer)
        self.facts: list[Fact] = []
        self.worker = Worker(outbox, emit=self.facts.append, dial=self.transport.dial)

    def step(self) -> int:
        """One step of the worker, and the attempts that it started."""
        started = self.worker.step()
        assert self.worker.wait_free(PATIENCE), "an attempt did not end"
        return started

    @property
    def sent(self) -> list[tuple[Kind, list[str]]]:
        return [(batch.kind, [entry.key for entry in batch.entries]) for batch in self.transport.batches]

    def __enter__(self) -> Self:
        self.worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.worker.stop(ZERO)


def wait_until(true: Callable[[], object], *, timeout: float = PATIENCE) -> None:
    """Wait for an effect of another process; fail if it does not happen."""
    deadline, pause = time.monotonic() + timeout, threading.Event()
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        pause.wait(0.02)


def wait_for_removals() -> None:
    """Wait for the threads of this process that delete snapshots in the background."""
    for thread in threading.enumerate():
        if thread.name == "hubqueue-removal":
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a snapshot is still being deleted"


def environ_of(home: Path, hub_url: str | None = None, **settings: str) -> dict[str, str]:
    """The environment of a process that uses a home, with short limits unless `settings` overrides them."""
    quick = {
        "HUBQUEUE_RATE_LIMITS__METRICS": "0.05",
        "HUBQUEUE_RATE_LIMITS__CKPT": "0.1",
        "HUBQUEUE_RETRY__CAP": "1",
        # For workers that a training starts: they outlive it, but must not outlive the test by much.
        "HUBQUEUE_WORKER__IDLE_EXIT": "2",
    }
    own = {
        "HUBQUEUE_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "HUB_API_KEY": "key-of-the-tests",
        "NO_COLOR": "1",
    }
    if hub_url is not None:
        own["ULTRALYTICS_HUB_API"] = hub_url
    return {**os.environ, **quick, **own, **settings}


def platform_environ(home: Path, url: str, **settings: str) -> dict[str, str]:
    """The environment of a process whose runs go to a Platform, with short limits unless `settings` overrides them."""
    own = {
        "HUBQUEUE_DEFAULT_DESTINATION": "platform",
        "ULTRALYTICS_PLATFORM_URL": url,
        "ULTRALYTICS_API_KEY": "key-of-the-tests",
        "HUBQUEUE_DESTINATIONS__PLATFORM__REQUESTS_PER_MINUTE": "60000",
        "HUBQUEUE_DESTINATIONS__PLATFORM__UPLOADS_PER_MINUTE": "60000",
    }
    return environ_of(home, **{**own, **settings})


def python(
    code: str, environ: Mapping[str, str], *arguments: str, fresh: bool = False, finalize: bool = False
) -> Process:
    """A Python process that runs `code`. Its output is a pipe, with warnings but without the first line of a run.

    Use `fresh` if the loaded modules or the command line of the interpreter matter, `finalize` if only its end does.
    """
    code = _LOGGED + code
    if zygote.suits(environ) and not fresh:
        pipe, same = subprocess.PIPE, subprocess.STDOUT
        return zygote.Forked(environ, *arguments, code=code, stdout=pipe, stderr=same, finalize=finalize)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def hubqueue(
    environ: Mapping[str, str], *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the `hubqueue` command, as a person does."""
    if zygote.suits(environ):
        return zygote.run(arguments, environ, stdin, 100)
    command = [sys.executable, "-m", "hubqueue", *arguments]
    return subprocess.run(
        command, env=environ, input=stdin, capture_output=True, text=True, timeout=240, check=False
    )


def command_process(environ: Mapping[str, str], *arguments: str, **streams: int | None) -> Process:
    """A `hubqueue` command that runs, with these streams (default: inherited). Its pipes are text."""
    if zygote.suits(environ):
        return zygote.Forked(environ, *arguments, module="hubqueue", **streams)
    command = [sys.executable, "-m", "hubqueue", *arguments]
    return subprocess.Popen(command, env=environ, close_fds=True, text=True, **streams)  # type: ignore[call-overload]


_SEVERAL = """
import sys
from hubqueue.cli import main
for command in sys.argv[1:]:
    try:
        main(command.split(), prog_name="hubqueue")
    except SystemExit as end:
        if end.code:
            raise
"""


def in_one_interpreter(environ: Mapping[str, str], *commands: str) -> subprocess.CompletedProcess[bytes]:
    """Run `hubqueue` commands in a new interpreter, one after the other up to the first that fails."""
    command = [sys.executable, "-c", _SEVERAL, *commands]
    return subprocess.run(command, env=environ, capture_output=True, timeout=240, check=False)


def start_worker(environ: Mapping[str, str], *arguments: str, fresh: bool = False) -> Process:
    """`hubqueue worker` in its own process; `fresh` as for `python`."""
    if zygote.suits(environ) and not fresh:
        return zygote.Forked(
            environ,
            "worker",
            *arguments,
            module="hubqueue",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    command = [sys.executable, "-m", "hubqueue", "worker", *arguments]
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def kill(process: Process) -> None:
    """kill -9, as the kernel does when memory is short."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def end(process: Process) -> str:
    """Send SIGTERM. Returns the output of the process."""
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE)
    return (out or "") + (err or "")
