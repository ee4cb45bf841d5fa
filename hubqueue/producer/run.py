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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Literal, Self

from hubqueue.config.declaration import Destination
from hubqueue.config.home import Home
from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, metrics_draft
from hubqueue.domain.entry import Draft
from hubqueue.outbox.database.patience import impatient
from hubqueue.outbox.outbox import Outbox
from hubqueue.producer import metrics as values
from hubqueue.producer.called_with import (
    Ending,
    check_path,
    check_start,
    destination_names,
    ending,
    run_name,
)
from hubqueue.producer.ending import unfinished
from hubqueue.producer.ending.departure import departure
from hubqueue.producer.leftover import Leftover, describe
from hubqueue.producer.progress import UploadBar
from hubqueue.producer.run_page import run_page
from hubqueue.producer.saving import Saving
from hubqueue.producer.senders import WorkerMode
from hubqueue.producer.several.savings import RunDestination, Savings, in_turn
from hubqueue.producer.several.sending import Sending
from hubqueue.producer.startup.handle import Handle, RunHandle
from hubqueue.producer.startup.living import living, note, weakly
from hubqueue.producer.startup.wanted import Start, Wanted, store_key
from hubqueue.producer.survival import logger

Path_ = str | os.PathLike[str]
_LOG = logger()
_POLL = 0.1
# Seconds that each statement of `finish` waits for a locked database at least.
_LEAST_PATIENCE = 0.1


def start_run(
    model: str,
    *,
    args: Mapping[str, object] | None = None,
    destination: str | Sequence[str] | None = None,
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
    `destination` is the name of a destination, or several: each gets everything, whatever happens to the others.
    Raises `InvalidModel`, `InvalidArgument` and `ConfigError` for errors that only the caller can fix. Storage errors
    are logged, or raised with `strict`.
    """
    check_start(model, args, worker)
    names = destination_names(destination)
    located = Home.locate(home)
    start = Wanted(located, config, model, args or {}, names, resume, run_name(name)).start(strict=strict)
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
        self._strict = strict
        self._lenient = values.Lenient()
        self._number: int | None = None
        self._savings = Savings(
            start,
            strict=strict,
            on_enqueue=weakly(self._nudge),
            on_settings=weakly(self._keep_key),
            on_added=weakly(self._expect_end),
        )
        self._sending = Sending(self._savings, worker, self._home, self._config_path)
        note(self)

    @property
    def id(self) -> str | None:
        """The local id, as `hubqueue status` shows it; None until the storage could be opened.

        Of several destinations, that of the first one. A command that takes it acts on all of them.
        """
        opening = self._saving.opening
        return opening.start.resume if opening.start.is_joined else opening.run_id

    @property
    def outbox(self) -> Outbox | None:
        """The run's outbox, shared with other runs of this process; None until the storage could be opened."""
        return next(self._savings.openings()).outbox

    @property
    def destinations(self) -> tuple[RunDestination, ...]:
        """The run at each of its destinations, in the order in which they were named."""
        return self._savings.destinations()

    @property
    def remote_id(self) -> str | None:
        """The id at the hub, of the first destination that has one; None until a hub has responded."""
        return next(
            (found for each in self._savings.openings() if (found := each.model_id) is not None), None
        )

    @property
    def url(self) -> str | None:
        """The address of the run's web page, of the first destination that has one; None until a hub has responded."""
        return next((found for each in self._savings.openings() if (found := each.column("url"))), None)

    @property
    def cancelled(self) -> bool:
        """Whether a destination has asked the training to stop."""
        return any(each.column("cancelled") for each in self._savings.openings())

    def log_metrics(
        self, metrics: Mapping[str, object], *, epoch: int | None = None, step: int | None = None
    ) -> int | None:
        """Save the metrics of an epoch, a step, or both; return the entry's id, or None when they are only kept in memory.

        Both count from 0. A destination that takes steps gets the metrics under the step if there is one, any other one
        under the epoch, or under the number of the step if there is no epoch.
        Of several destinations, the id is that of the first one that has saved.
        Values are numbers, and arrays of numpy and torch with one element; non-finite ones are sent as null. What is not a
        number is left out and logged once (with `strict`: `InvalidMetrics`); a call without any number saves nothing.
        Logging an epoch or step again adds to it: the newer value of a name counts. Raises `InvalidArgument` without both,
        `InvalidMetrics` for one that is not a whole number and for anything but a mapping, `RunFinished` after `finish`.
        """
        return self._log_metrics(metrics, epoch=epoch, step=step)

    def _log_metrics(
        self,
        metrics: Mapping[str, object],
        *,
        epoch: int | None,
        step: int | None = None,
        among: Callable[[Destination], bool] = lambda _declared: True,
    ) -> int | None:
        """The same, for each destination `among` them."""
        at = values.position(epoch, step)
        text = values.metrics_text(metrics) if self._strict else self._lenient.text(metrics)
        if text is None:
            return None

        def draft(start: Start) -> Draft:
            return start.described(metrics_draft(text, *at, takes_steps=start.takes_steps))

        return self._savings.save(draft, among)

    def log_console(
        self, content: str, *, lines: int = 1, progress: Mapping[str, str] | None = None
    ) -> int | None:
        """Save lines of the training's output for a hub that shows them (Platform). Otherwise as `log_metrics`.

        `progress` is the text of each progress bar that is shown now, by its name; without `content` it is sent alone.
        """
        # Two calls within a millisecond have different numbers.
        self._chunk = chunk = max(self._chunk + 1, time.time_ns() // 1_000_000)

        def draft(start: Start) -> Draft | None:
            declared = declaration(start.destination.type)
            if declared.console is None or start.again is not None:
                return None
            bars = {"progress": progress} if declared.shows_progress else {}
            return declared.console(content, lines, chunk, **bars)

        return self._savings.save(draft)

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

        At least one of `epoch` and `step` is given, as in `log_metrics`. `path` is a file, or a folder of files: a folder is
        copied with all its files, or not at all. For a destination that takes one file, `archive` saves a folder as one
        tar. The files may be changed or deleted as soon as this returns. Of the waiting checkpoints, only the newest `last` and the newest `best` are kept. A `final` one (with
        `map`, its mAP50-95, from 0 to 1) is sent without waiting for the pace.
        Errors are logged (raised with `strict`). Raises `RunFinished` after `finish`.
        """
        return self._save_checkpoint(
            path, epoch=epoch, step=step, is_best=is_best, map=map, final=final, archive=archive
        )

    def _save_checkpoint(
        self,
        path: Path_,
        *,
        epoch: int | None,
        step: int | None = None,
        is_best: bool = False,
        map: float = 0.0,
        final: bool = False,
        archive: bool = False,
        among: Callable[[Destination], bool] = lambda _declared: True,
    ) -> int | None:
        """The same, for each destination `among` them."""
        check_path(path)
        at, score = values.position(epoch, step), values.score("map", map, strict=self._strict)
        checkpoint = Checkpoint(path, at.epoch, is_best, score, final, archive, step=at.step)
        return self._savings.save_checkpoint(checkpoint, among)

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
            with impatient(max(_LEAST_PATIENCE, end.timeout / 4 / len(self._savings.each))):
                try:
                    self._savings.end(end)
                finally:
                    for each in self._savings.each:
                        if each.ended is not None:
                            unfinished.has_ended(each)
                self._sending.finish()
                with UploadBar(self._home, *(each.run_id for each in self._savings.openings())) as bar:
                    left = self.wait(timeout=end.deadline - time.monotonic(), each=bar.show)
                if self._sending.close(end.deadline):
                    left = self._savings.left()
        finally:
            for each in self._savings.each:
                each.opening.give_back()
        if left and (left.unsaved or not self._saving.opening.start.is_joined):
            for each in self._savings.each:
                each.has_reported = True
            named = self._saving.opening.start.named
            name = f"run {self.id}" if self.id else f"this run of {named.filename or named.model_id}"
            line = describe(left, has_worker=self._sending.has_worker, known=self.id is not None)
            _LOG.warning("%s: %s", name, line)
        left = self._savings.ends_of_others(left)
        if end.problem:
            raise end.problem
        return left

    def wait(self, *, timeout: float, each: Callable[[Leftover], None] = lambda _left: None) -> Leftover:
        """Wait up to `timeout` seconds until nothing is owed, or until waiting cannot help; the run continues.

        `each` is called about ten times a second with what is still owed.
        """
        deadline, pause = time.monotonic() + timeout, threading.Event()
        while True:
            left = self._savings.left()
            each(left)
            hopeless = not (self._sending.can_arrive and self._savings.may_arrive(left))
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
        if not self._savings.has_ended:
            how = departure(error)
            # An exception in one process says little about what another one trains.
            self._finish(ending(how.timeout, how.status, None, how.error, yields=how.status == "failed"))

    def __repr__(self) -> str:
        return f"<hubqueue.Run {self.id} to {self._savings.names}>"

    def _repr_html_(self) -> str:
        return run_page(self.id, self._savings, self._home, starts_worker=self._sending.can_arrive)

    def __reduce__(self) -> tuple[Callable[[Handle], Run], tuple[Handle]]:
        """Pickle a handle: another process that unpickles it saves to this run, and does not end it."""
        runs = tuple(
            RunHandle(run_id, target.name, target.type) for run_id, target in self._savings.targets()
        )
        handle = Handle(str(self._home.path), self._config_path, runs, self._strict, (os.getpid(), id(self)))
        return _unpickled, (handle,)

    @property
    def _saving(self) -> Saving:
        """That of the first destination."""
        return self._savings.first

    def after_fork(self) -> None:
        """Called in a forked child, which only saves: the worker of the parent sends."""
        for each in self._savings.each:
            each.opening.after_fork()
        self._sending.only_save()

    def _begin(self) -> None:
        for each in self._savings.each:
            if each.opening.start.again is None:
                self._keep_key(each.opening.start)
        self._expect_end(*self._savings.each)
        in_turn(self._savings.each, lambda each: each.attempt("start of the run", each.opening.opened))
        self._nudge()

    def _expect_end(self, *savings: Saving) -> None:
        self._number = unfinished.expect_end(self, savings, self._number)

    def _keep_key(self, start: Start) -> None:
        """Store a key of the identifier: a worker reads keys only from the environment and from this file."""
        if start.named.api_key is not None:
            self._saving.attempt("key", partial(store_key, start))

    def _nudge(self) -> None:
        self._sending.nudge()


def _unpickled(handle: Handle) -> Run:
    """The run of a handle: in the process that made it the same object, in another one a run that only saves."""
    pid, number = handle.made_by
    for each in living() if pid == os.getpid() else ():
        if id(each) == number and isinstance(each, Run) and each.id == handle.runs[0].run_id:
            return each
    run = Run(handle.start(), worker="none", strict=handle.strict, config_path=handle.config)
    run._sending.only_save()
    return run
