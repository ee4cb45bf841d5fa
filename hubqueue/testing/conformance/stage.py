"""A home with one destination that sends to a fake service: what the tests do with it, and what they expect of it."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest

from hubqueue.config.declaration import Destination, Key, Transport
from hubqueue.config.registry import declaration
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.drafts import Checkpoint, ckpt_draft, metrics_draft
from hubqueue.domain.entry import Kind
from hubqueue.domain.lifecycle import RunState, State
from hubqueue.outbox.outbox import Outbox, open_outbox
from hubqueue.producer.intake import open_run, owe
from hubqueue.testing.conformance.service import Fault, Received, Service
from hubqueue.testing.doubles import FakeClock
from hubqueue.testing.watched import Step, Watched, opened
from hubqueue.worker import log
from hubqueue.worker.closing import close_run
from hubqueue.worker.events import AttemptStarted, Fact
from hubqueue.worker.worker import Worker

LABEL = "lab"
"""The name of the destination in the configuration."""
PATIENCE = 120.0
"""In seconds: the longest wait for something that happens. Only a failure waits this long."""
FAR = 1000.0
"""In seconds: more than every wait of a lane, a hold and a lease."""

Content = bytes | Mapping[str, bytes]


class Stage:
    """A destination, and one worker that sends to it.

    `logged`, `saved` and `ended` are what each run has saved: the metrics by key, the content of each checkpoint by its
    entry, the state. The service may have this many `twins`: empty runs beside them. `starts` are the seconds of the clock
    at which attempts of each kind have started.
    """

    def __init__(self, service: Service, folder: Path, twins: int = 0) -> None:
        self.service, self.folder, self.home = service, folder, folder / "home"
        self.twins, self.patience = twins, PATIENCE
        self.clock = FakeClock()
        self.declared: Destination = declaration(service.type)
        self.logged: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        self.saved: dict[str, dict[int, Mapping[str, bytes]]] = defaultdict(dict)
        self.ended: dict[str, RunState] = {}
        self.facts: list[Fact] = []
        self.starts: dict[Kind, list[float]] = defaultdict(list)
        self.steps: list[Step] = []
        self._changed = threading.Condition()
        self.home.mkdir(mode=0o700, parents=True)
        copy = self.home / "outbox.db"
        copy.touch(mode=0o600)
        shutil.copyfile(_migrated(), copy)
        self.configure()

    # --- opening

    @property
    def environ(self) -> dict[str, str]:
        """The variables of its processes."""
        return {**self.service.environ, "HUBQUEUE_DEFAULT_DESTINATION": LABEL}

    @property
    def target(self) -> DestinationSettings:
        """The settings of the destination."""
        return self.outbox.config.destination(LABEL)

    def configure(self, **limits: float) -> None:
        """Write the configuration with these `rate_limits` (default: no wait), and open the outbox and the worker."""
        paces = {"metrics": 0, "ckpt": 0, "heartbeat": 0} | limits
        tables: dict[str, Mapping[str, object]] = {
            f"destinations.{LABEL}": {"type": self.service.type, **self.service.settings},
            f"destinations.{LABEL}.rate_limits": paces,
        }
        lines = []
        for name, values in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        (self.home / "config.toml").write_text("\n".join(lines) + "\n")
        if hasattr(self, "outbox"):
            self.close()
        self.outbox: Outbox = open_outbox(self.home, environ=self.environ, clock=self.clock)
        if self.service.secrets:
            first, *others = (self.service.secrets[each.name] for each in self.declared.secrets)
            names = [each.name for each in self.declared.secrets[1:]]
            self.outbox.credentials.store(self.target, Key(first, dict(zip(names, others, strict=True))))
        self.worker = self.new_worker()

    def new_worker(self) -> Worker:
        """A further worker of this home; stop it before the end of the test."""
        worker = Worker(self.outbox, emit=self._emit, dial=self._dial)
        worker.start()
        return worker

    def restart(self) -> None:
        """Replace the worker: what it was sending is stopped."""
        self.worker.stop(timedelta(0))
        self.worker = self.new_worker()

    def close(self) -> None:
        """Stop the worker, and close the outbox."""
        self.worker.stop(timedelta(0))
        self.outbox.close()

    def transport(self) -> Transport:
        """A real transport of the destination; close it."""
        return opened(self.outbox, self.target)

    def _dial(self, outbox: Outbox, settings: DestinationSettings) -> Transport:
        return Watched(opened(outbox, settings), self.steps.append)

    def _emit(self, fact: Fact) -> None:
        log.write(fact)
        with self._changed:
            self.facts.append(fact)
            if isinstance(fact, AttemptStarted):
                self.starts[fact.kind].append(self.clock.elapsed())
            self._changed.notify_all()

    # --- what the destination and the service can do

    def needs(self, *kinds: Kind) -> None:
        """Skip the test if the destination has no lane for one of these kinds."""
        for kind in kinds:
            if kind not in self.declared.lanes:
                pytest.skip(f"{self.declared.type} declares no lane for {kind}")

    def needs_fault(self, *faults: Fault) -> None:
        """Skip the test if the service cannot be made to do one of these."""
        for fault in faults:
            if fault not in self.service.faults:
                pytest.skip(f"no fault {fault.name}: the fake of {self.declared.type} cannot do that")

    def has(self, kind: Kind) -> bool:
        """Whether the destination has a lane for this kind."""
        return kind in self.declared.lanes

    # --- what a training does; nothing where the destination has no lane for it

    def start(self, model: str = "resnet50.pt", *, heartbeat: bool = False) -> str:
        """A new run; its id."""
        identified = self.declared.identify(model, self.target)
        args = {"epochs": 3, "lr": 0.1}
        return open_run(self.outbox, identified, args, self.target, heartbeat=heartbeat)[0]

    def log(self, run: str, *epochs: int, name: str = "loss", add: float = 0.5) -> None:
        """Log a metric of each of these epochs: its number and `add`."""
        for epoch in epochs:
            self.log_values(run, {name: epoch + add}, epoch=epoch)

    def log_values(
        self, run: str, values: Mapping[str, float], *, epoch: int | None = None, step: int | None = None
    ) -> None:
        """Log metrics of an epoch, a step, or both."""
        if self.has(Kind.METRICS):
            self.clock.advance(0.001)  # no two values have the same moment
            takes_steps = self.declared.takes_steps
            draft = metrics_draft(json.dumps(values), epoch, step, takes_steps=takes_steps)
            owe(self.outbox, run, draft)
            self.logged[run].setdefault(draft.key, {}).update(json.loads(draft.payload))

    def save(
        self,
        run: str,
        content: Content,
        epoch: int | None = 0,
        *,
        best: bool = False,
        final: bool = False,
        step: int | None = None,
    ) -> None:
        """Save a checkpoint: a file, or a folder of files by path."""
        if not self.has(Kind.CKPT):
            return
        path = self.folder / f"saved-{run}-{len(self.saved[run])}" / "last.pt"
        files = content if isinstance(content, Mapping) else {"": content}
        for name, data in files.items():
            file = path / name if name else path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        snapshot = self.outbox.spool.take(path, label=run, folders=self.declared.takes_folders)
        checkpoint = Checkpoint(path=path, epoch=epoch, step=step, is_best=best, final=final)
        now, takes_steps = self.outbox.database.now(), self.declared.takes_steps
        entry, _ = owe(self.outbox, run, ckpt_draft(checkpoint, snapshot, now=now, takes_steps=takes_steps))
        self.saved[run][entry] = files

    def end(self, run: str, state: RunState = RunState.FINISHED) -> None:
        """End the training."""
        close_run(self.outbox, run, state, results={} if state is RunState.FINISHED else None)
        if self.declared.completion is not None:
            self.ended[run] = state

    # --- what the worker does

    def step(self) -> None:
        """Send what is due now, and check that nothing was delivered that the service does not have."""
        while self.worker.step():
            assert self.worker.wait_free(self.patience), "an attempt did not end"
        self.assert_proven()

    def pass_time(self, seconds: float = FAR) -> None:
        """Move the clock."""
        self.clock.advance(seconds)

    def drain(self) -> None:
        """Send until nothing is pending, over all waits."""
        for _ in range(40):
            self.step()
            if not self.count(State.PENDING):
                return
            self.pass_time()
        raise AssertionError(f"still owed after 40 attempts: {self.reasons()}")

    def wait_for(self, true: Callable[[Fact], bool]) -> bool:
        """Wait until there is a fact for which `true` holds. False if none comes."""
        with self._changed:
            return self._changed.wait_for(lambda: any(map(true, self.facts)), self.patience)

    # --- what is true then

    def count(self, state: State, kind: Kind | None = None) -> int:
        """The number of entries in a state."""
        return len(self.outbox.stats.entries(state=state, kind=kind, limit=10_000))

    def reasons(self) -> list[str]:
        """The reasons of the attempts that were not delivered, the oldest first."""
        found = [each["reason"] for each in self.outbox.stats.attempts(limit=1000)]
        return [each for each in reversed(found) if each is not None]

    def received(self, run: str) -> Received:
        """What the service has of a run; nothing if the run is unknown there."""
        row = self.outbox.stats.run(run)
        assert row is not None
        return self.service.received().get(row["remote_id"] or run, Received())

    def whole(self, run: str) -> list[Mapping[str, bytes]]:
        """The checkpoints of a run at the service. Each must be one that was saved, byte for byte, and is there once."""
        held = [_content(each) for each in self.received(run).checkpoints]
        expected = [_content(each) for each in self.saved[run].values()]
        for each in held:
            # Without the bytes in the message.
            known, repeated = each in expected, held.count(each) > 1
            assert known, f"a checkpoint at the service was not saved so: {_shown(each)}"
            assert not repeated, f"a checkpoint is at the service more than once: {_shown(each)}"
        return held

    def assert_proven(self) -> None:
        """Each delivered entry is at the service (P2)."""
        for run in {*self.logged, *self.saved, *self.ended}:
            delivered = self.outbox.stats.entries(state=State.DELIVERED, run_id=run, limit=1000)
            if not delivered:
                continue
            found, kinds = self.received(run), {each["kind"] for each in delivered}
            keys = {key for key, _ in found.metrics}
            for each in delivered:
                if each["kind"] == Kind.METRICS:
                    key = each["key"]
                    assert key in keys, (
                        f"metrics {key} count as delivered, and the service does not have them"
                    )
            if Kind.CKPT in kinds:
                assert self.whole(run), "a checkpoint counts as delivered, and the service does not have it"
            if Kind.COMPLETION in kinds:
                assert found.ends, "the end counts as delivered, and the service does not have it"

    def assert_arrived(self, *runs: str) -> None:
        """The service has all that these runs have saved, once and byte for byte, and no other run (but empty `twins`)."""
        others = len(self.service.received()) - len(runs)
        assert 0 <= others <= self.twins, f"the service has {others + len(runs)} runs, not {len(runs)}"
        for run in runs:
            found = self.received(run)
            assert _merged(found) == self.logged[run], "the metrics are others than those that were logged"
            for key, values in found.metrics:
                same = [each for each in found.metrics if each == (key, values)]
                assert len(same) == 1, f"the metrics {key} are at the service more than once"
            held = self.whole(run)
            if self.saved[run]:
                newest = _content(self.saved[run][max(self.saved[run])])
                there = newest in held
                assert there, "the newest checkpoint is not at the service"
            state = self.ended.get(run)
            shown = [] if state is None else [str(state)]
            if state is RunState.INTERRUPTED and found.ends == [RunState.FAILED]:
                continue  # a service without a word of its own for it
            assert list(found.ends) == shown, "the state at the service is not that of the run"

    def assert_clear(self) -> None:
        """Every attempt has ended with an outcome, and each reason is one printable line (never an exception)."""
        for reason in self.reasons():
            assert not reason.startswith("internal error"), f"the transport raised: {reason}"
            assert reason.strip(), "an outcome has an empty reason"
            assert reason.isprintable(), f"a reason is not one printable line: {reason!r}"


@cache
def _migrated() -> Path:
    """An outbox that was just made: copying it takes less time than its migrations."""
    folder = Path(tempfile.mkdtemp(prefix="hubqueue-conformance-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with open_outbox(folder / "home", environ={}, clock=FakeClock()) as outbox:
        outbox.note_destinations()
    return folder / "home" / "outbox.db"


@contextmanager
def staged(service: Service, folder: Path, *, twins: int = 0) -> Iterator[Stage]:
    """A stage in a folder that need not exist yet; closed at the end."""
    made = Stage(service, folder, twins)
    try:
        yield made
    finally:
        made.service.heal()
        made.close()


def _merged(found: Received) -> dict[str, dict[str, object]]:
    merged: dict[str, dict[str, object]] = {}
    for key, values in found.metrics:
        merged.setdefault(key, {}).update(values)
    return merged


def _content(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """The files of a checkpoint; of one that is a file the bytes, under no name."""
    return {"": next(iter(files.values()))} if len(files) == 1 else dict(files)


def _shown(files: Mapping[str, bytes]) -> str:
    return ", ".join(f"{path or 'the file'} ({len(data)} bytes)" for path, data in files.items())
