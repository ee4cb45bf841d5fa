"""The API of the producer: a training run that owes its metrics and checkpoints to a hub.

Promises: when `log_metrics` or `save_checkpoint` returns an id, the entry is on disk. The training thread never uses
the network and never gets an exception because of storage or network trouble (unless `strict`). `finish` waits no
longer than its `timeout`. No signal handlers, and no output except log records and, on a terminal, a progress bar.

When the storage fails (a full disk, a read-only home), metrics are kept in memory and saved with the next call
that succeeds. `Leftover.unsaved` counts what is still unsaved at the end.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Literal, Self

from hubqueue.config.credentials import Credentials
from hubqueue.config.home import Home
from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, metrics_draft
from hubqueue.outbox.database.patience import impatient
from hubqueue.outbox.outbox import Outbox
from hubqueue.producer import metrics as values
from hubqueue.producer.called_with import Ending, check_path, check_start, ending, run_name
from hubqueue.producer.ending import unfinished
from hubqueue.producer.ending.departure import departure
from hubqueue.producer.leftover import Leftover, describe
from hubqueue.producer.opening import Opening
from hubqueue.producer.progress import UploadBar
from hubqueue.producer.run_page import run_page
from hubqueue.producer.saving import Saving
from hubqueue.producer.senders import InProcess, NoSender, Sender, WorkerMode, sender
from hubqueue.producer.startup.handle import Handle
from hubqueue.producer.startup.wanted import Start, Wanted
from hubqueue.producer.survival import logger
from hubqueue.worker.daemon import worker_lives

Path_ = str | os.PathLike[str]
_LOG = logger()
_POLL = 0.1
# Seconds that each statement of `finish` waits for a locked database at least.
_LEAST_PATIENCE = 0.1


def start_run(
    model: str,
    *,
    args: Mapping[str, object] | None = None,
    destination: str | None = None,
    home: Path_ | None = None,
    config: Path_ | None = None,
    worker: WorkerMode = "auto",
    strict: bool = False,
    resume: str | None = None,
    name: str | None = None,
) -> Run:
    """Start a training run, or continue the run of a model that the hub already has. Does not need the network.

    `model` is a model file (`yolov8n.pt`: a new model is registered with `args`), a model URL or a model id.
    `worker`: "auto" starts a detached worker process when none is running, "thread" sends from this process,
    "none" only saves. `resume` is the `Run.id` of a run to continue ("last": the newest), registered at the hub or not.
    `name` is the run's name at a destination that has names, 1 to 128 characters (default: the model's stem and the run's
    id); a run that is continued keeps its own.
    Raises `InvalidModel`, `InvalidArgument` and `ConfigError` for errors that only the caller can fix. Storage errors
    are logged, or raised with `strict`.
    """
    check_start(model, args, worker)
    located = Home.locate(home)
    start = Wanted(located, config, model, args or {}, destination, resume, run_name(name)).start(
        strict=strict
    )
    run = Run(start, worker=worker, strict=strict, config_path=config)
    run._begin()
    return run


class Run:
    """One training run. Made by `start_run`; safe to use from several threads, and after a fork."""

    def __init__(
        self, start: Start, *, worker: WorkerMode, strict: bool, config_path: Path_ | None = None
    ) -> None:
        self._home, self._chunk = start.home, 0
        self._config_path = None if config_path is None else os.path.abspath(config_path)
        self._mode, self._strict = worker, strict
        self._lenient = values.Lenient()
        self._sender: Sender | None = None
        self._saving = Saving(
            start, strict=strict, on_enqueue=_weak(self._nudge), on_settings=_weak(self._keep_key)
        )
        _LIVING.add(self)

    @property
    def id(self) -> str | None:
        """The local id, as `hubqueue status` shows it; None until the storage could be opened."""
        opening = self._saving.opening
        return opening.start.resume if opening.start.is_joined else opening.run_id

    @property
    def outbox(self) -> Outbox | None:
        """The run's outbox, shared with other runs of this process; None until the storage could be opened."""
        return self._opening.outbox

    @property
    def remote_id(self) -> str | None:
        """The id at the hub; None until the hub has responded."""
        return self._opening.model_id

    @property
    def url(self) -> str | None:
        """The address of the run's web page; None until the hub has responded."""
        found: str | None = self._opening.column("url")
        return found

    @property
    def cancelled(self) -> bool:
        """Whether the hub has asked the training to stop."""
        return bool(self._opening.column("cancelled"))

    def log_metrics(
        self, metrics: Mapping[str, object], *, epoch: int | None = None, step: int | None = None
    ) -> int | None:
        """Save the metrics of an epoch, a step, or both; return the entry's id, or None when they are only kept in memory.

        Both count from 0. A destination that takes steps gets the metrics under the step if there is one, any other one
        under the epoch, or under the number of the step if there is no epoch.
        Values are numbers, and arrays of numpy and torch with one element; non-finite ones are sent as null. What is not a
        number is left out and logged once (with `strict`: `InvalidMetrics`); a call without any number saves nothing.
        Logging an epoch or step again adds to it: the newer value of a name counts. Raises `InvalidArgument` without both,
        `InvalidMetrics` for one that is not a whole number and for anything but a mapping, `RunFinished` after `finish`.
        """
        at = values.position(epoch, step)
        text = values.metrics_text(metrics) if self._strict else self._lenient.text(metrics)
        if text is None:
            return None
        start = self._saving.opening.start
        return self._saving.save(start.described(metrics_draft(text, *at, takes_steps=start.takes_steps)))

    def log_console(
        self, content: str, *, lines: int = 1, progress: Mapping[str, str] | None = None
    ) -> int | None:
        """Save lines of the training's output for a hub that shows them (Platform). Otherwise as `log_metrics`.

        `progress` is the text of each progress bar that is shown now, by its name; without `content` it is sent alone.
        """
        start = self._saving.opening.start
        declared = declaration(start.destination.type)
        if declared.console is None or start.again is not None:
            return None
        # Two calls within a millisecond have different numbers.
        self._chunk = max(self._chunk + 1, time.time_ns() // 1_000_000)
        bars = {"progress": progress} if declared.shows_progress else {}
        return self._saving.save(declared.console(content, lines, self._chunk, **bars))

    def save_checkpoint(
        self,
        path: Path_,
        *,
        epoch: int | None = None,
        step: int | None = None,
        is_best: bool = False,
        map: float = 0.0,
        final: bool = False,
        archive: bool = False,
    ) -> int | None:
        """Save a private copy of a checkpoint; return the entry's id, or None when it could not be saved.

        At least one of `epoch` and `step` is given, as in `log_metrics`. `path` is a file, or a folder of files: a folder is copied with all its files, or not at all. For a destination
        that takes one file, `archive` saves a folder as one tar. The files may be changed or deleted as soon as this
        returns. Of the waiting checkpoints, only the newest `last` and the newest `best` are kept. A `final` one (with
        `map`, its mAP50-95, from 0 to 1) is sent without waiting for the pace.
        Errors are logged (raised with `strict`). Raises `RunFinished` after `finish`.
        """
        check_path(path)
        at, score = values.position(epoch, step), values.score("map", map, strict=self._strict)
        checkpoint = Checkpoint(path, at.epoch, is_best, score, final, archive, step=at.step)
        return self._saving.save_checkpoint(checkpoint)

    def finish(
        self,
        *,
        timeout: float | None = 30.0,
        status: Literal["finished", "failed"] = "finished",
        results: Mapping[str, object] | None = None,
        error: str | None = None,
    ) -> Leftover:
        """End the run, wait up to `timeout` seconds for its uploads (None: until they are done); return what is left.

        `results` (for example `{"metrics": {…}, "bestEpoch": 7}`) or `error` are sent to a hub that records the end
        of a run. What is left is sent after this process has ended, by a detached worker or by the next worker.
        A second call waits again. An invalid argument raises `InvalidArgument`; the run is ended anyway.
        """
        return self._finish(ending(timeout, status, results, error))

    def _finish(self, end: Ending) -> Leftover:
        try:
            with impatient(max(_LEAST_PATIENCE, end.timeout / 4)):
                self._saving.end(end)
                if self._saving.ended is not None:
                    unfinished.has_ended(self._saving)
                self._saving.attempt("worker", lambda: self._sending().finish())
                with UploadBar(self._home, self.id) as bar:
                    left = self.wait(timeout=end.deadline - time.monotonic(), each=bar.show)
                if self._sender is not None:
                    self._sender.close(end.deadline)
                    left = self._saving.left() if self._sender.sends else left
                    self._sender = None
        finally:
            self._saving.opening.give_back()
        if left and (left.unsaved or not self._saving.opening.start.is_joined):
            self._saving.has_reported = True
            has_worker = self._mode != "none" or worker_lives(self._home)
            named = self._saving.opening.start.named
            name = f"run {self.id}" if self.id else f"this run of {named.filename or named.model_id}"
            _LOG.warning("%s: %s", name, describe(left, has_worker=has_worker, known=self.id is not None))
        left = replace(left, other_end=self._saving.ends.other)
        if end.problem:
            raise end.problem
        return left

    def wait(self, *, timeout: float, each: Callable[[Leftover], None] = lambda _left: None) -> Leftover:
        """Wait up to `timeout` seconds until nothing is owed, or until waiting cannot help; the run continues.

        `each` is called about ten times a second with what is still owed.
        """
        deadline, pause = time.monotonic() + timeout, threading.Event()
        while True:
            left = self._saving.left()
            each(left)
            nobody_sends = self._mode == "none" or (
                isinstance(self._sender, InProcess) and not self._sender.sends
            )
            # Its end waits for the other processes of the run.
            only_end = self._saving.ends.waits and left.entries == 1
            hopeless = nobody_sends or left.held is not None or not left.entries or only_end
            remaining = deadline - time.monotonic()
            if hopeless or remaining <= 0:
                return left
            self._nudge()
            pause.wait(min(_POLL, remaining))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._saving.ended is None:
            how = departure(error)
            # An exception in one process says little about what another one trains.
            self._finish(ending(how.timeout, how.status, None, how.error, yields=how.status == "failed"))

    def __repr__(self) -> str:
        return f"<hubqueue.Run {self.id} to {self._saving.opening.start.destination.name}>"

    def _repr_html_(self) -> str:
        return run_page(self.id, self._saving.opening.start.destination.name, self.url, self._saving.left())

    def __reduce__(self) -> tuple[Callable[[Handle], Run], tuple[Handle]]:
        """Pickle a handle: another process that unpickles it saves to this run, and does not end it."""
        start = self._saving.opening.start
        target = start.destination
        made_by = (os.getpid(), id(self))
        handle = Handle(
            str(self._home.path), self._config_path, self.id, target.name, target.type, self._strict, made_by
        )
        return _unpickled, (handle,)

    @property
    def _opening(self) -> Opening:
        """For reading. An unpickled run opens its outbox when it is first used."""
        opening = self._saving.opening
        if opening.start.is_joined and opening.outbox is None:
            self._saving.attempt("run", opening.opened)
        return opening

    def _begin(self) -> None:
        if self._saving.opening.start.again is None:
            self._keep_key(self._saving.opening.start)
        unfinished.expect_end(self, self._saving)
        self._saving.attempt("start of the run", self._saving.opening.opened)
        self._nudge()

    def _keep_key(self, start: Start) -> None:
        """Store a key of the identifier: a worker reads keys only from the environment and from this file."""
        key = start.named.api_key
        if key is None:
            return

        def store() -> None:
            self._home.create()
            Credentials(self._home.credentials, os.environ).add(start.destination, key)

        self._saving.attempt("key", store)

    def _nudge(self) -> None:
        unfinished.abandon_dropped()
        self._saving.attempt("worker", lambda: self._sending().nudge())

    def _sending(self) -> Sender:
        if self._sender is None:
            self._saving.opening.opened()
            row = partial(self._saving.opening.column, "destination")
            self._sender = sender(self._mode, self._home, self._config_path, row)
        return self._sender


_LIVING: weakref.WeakSet[Run] = weakref.WeakSet()


def _weak(method: Callable[..., None]) -> Callable[..., None]:
    """Calls a method of a run as long as the run exists: it must be noticed when a script drops the run."""
    reference = weakref.WeakMethod(method)

    def call(*given: object) -> None:
        found = reference()
        if found is not None:
            found(*given)

    return call


def _unpickled(handle: Handle) -> Run:
    """The run of a handle: in the process that made it the same object, in another one a run that only saves."""
    pid, number = handle.made_by
    for run in list(_LIVING) if pid == os.getpid() else ():
        if id(run) == number and run.id == handle.run_id:
            return run
    run = Run(handle.start(), worker="none", strict=handle.strict, config_path=handle.config)
    run._sender = NoSender()
    return run


def _after_fork_in_child() -> None:
    for run in list(_LIVING):
        run._saving.opening.after_fork()
        run._sender = NoSender()  # the child only saves; the parent's worker sends


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
