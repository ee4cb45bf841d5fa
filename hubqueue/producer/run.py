"""The API of the producer: a training run that owes its metrics and checkpoints to a hub.

Promises: when `log_metrics` or `save_checkpoint` returns an id, the entry is on disk. The training thread never uses
the network and never gets an exception because of storage or network trouble (unless `strict`). `finish` waits no
longer than its `timeout`. No signal handlers, and no output except log records and, on a terminal, a progress bar.

When the storage fails (a full disk, a read-only home), metrics are kept in memory and saved with the next call
that succeeds. `Leftover.unsaved` counts what is still unsaved at the end.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Literal, Self

from hubqueue.config.choice import choose
from hubqueue.config.credentials import Credentials
from hubqueue.config.home import Home
from hubqueue.config.known_keys import without_keys
from hubqueue.config.registry import declaration
from hubqueue.domain.drafts import Checkpoint, metrics_draft
from hubqueue.outbox.database.patience import impatient
from hubqueue.outbox.outbox import Outbox
from hubqueue.producer import metrics as values
from hubqueue.producer.called_with import check_path, check_start, ending
from hubqueue.producer.leftover import Leftover, describe
from hubqueue.producer.opening import Start
from hubqueue.producer.progress import UploadBar
from hubqueue.producer.run_page import run_page
from hubqueue.producer.saving import Saving
from hubqueue.producer.senders import NoSender, Sender, WorkerMode, sender
from hubqueue.producer.survival import settings_of
from hubqueue.worker.daemon import worker_lives

Path_ = str | os.PathLike[str]
_LOG = logging.getLogger("hubqueue")
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
) -> Run:
    """Start a training run, or continue the run of a model that the hub already has. Does not need the network.

    `model` is a model file (`yolov8n.pt`: a new model is registered with `args`), a model URL or a model id.
    `worker`: "auto" starts a detached worker process when none is running, "thread" sends from this process,
    "none" only saves. `resume` is the `Run.id` of a run to continue ("last": the newest), registered at the hub or not.
    Raises `InvalidModel`, `InvalidArgument` and `ConfigError` for errors that only the caller can fix. Storage errors
    are logged, or raised with `strict`.
    """
    check_start(model, args, worker)
    located = Home.locate(home)
    settings = settings_of(located, config, strict=strict)
    target = choose(settings, Credentials(located.credentials, os.environ), destination, model=str(model))
    named = declaration(target.type).identify(model, target)
    others = settings.destinations.values()
    safe_args = without_keys(args or {}, located.credentials, os.environ, others, named.api_key)
    start = Start(located, settings, target, named, safe_args, resume)
    run = Run(start, worker=worker, strict=strict, config_path=config)
    run._begin()
    return run


class Run:
    """One training run. Made by `start_run`; safe to use from several threads, and after a fork."""

    def __init__(
        self, start: Start, *, worker: WorkerMode, strict: bool, config_path: Path_ | None = None
    ) -> None:
        self._home, self._destination, self._named = start.home, start.destination, start.named
        self._config_path = None if config_path is None else os.path.abspath(config_path)
        self._mode = worker
        self._sender: Sender | None = None
        self._saving = Saving(start, strict=strict, on_enqueue=self._nudge)
        _LIVING.add(self)

    @property
    def id(self) -> str | None:
        """The local id, as `hubqueue status` shows it; None until the storage could be opened."""
        return self._saving.opening.run_id

    @property
    def outbox(self) -> Outbox | None:
        """The run's outbox, shared with other runs of this process; None until the storage could be opened."""
        return self._saving.opening.outbox

    @property
    def remote_id(self) -> str | None:
        """The id at the hub; None until the hub has responded."""
        return self._saving.opening.model_id

    @property
    def url(self) -> str | None:
        """The address of the run's web page; None until the hub has responded."""
        found: str | None = self._saving.opening.column("url")
        return found

    @property
    def cancelled(self) -> bool:
        """Whether the hub has asked the training to stop."""
        return bool(self._saving.opening.column("cancelled"))

    def log_metrics(self, metrics: Mapping[str, object], *, epoch: int) -> int | None:
        """Save the metrics of an epoch (0-based); return the entry's id, or None when they are only kept in memory.

        Values are numbers or scalars of numpy and torch; non-finite ones are sent as null. Logging an epoch again
        replaces metrics that are not sent yet. Raises `InvalidMetrics` for other values, `RunFinished` after `finish`.
        """
        return self._saving.save(metrics_draft(values.metrics_text(metrics), values.epoch_number(epoch)))

    def log_console(self, content: str, *, lines: int = 1) -> int | None:
        """Save lines of the training's output for a hub that shows them (Platform). Otherwise as `log_metrics`."""
        console = declaration(self._destination.type).console
        if console is None:
            return None
        return self._saving.save(console(content, lines, time.time_ns() // 1_000_000))

    def save_checkpoint(
        self, path: Path_, *, epoch: int, is_best: bool = False, map: float = 0.0, final: bool = False
    ) -> int | None:
        """Save a private copy of a checkpoint file; return the entry's id, or None when it could not be saved.

        The file may be changed or deleted as soon as this returns. Of the waiting checkpoints, only the newest `last`
        and the newest `best` are kept. A `final` one (with `map`, its mAP50-95) is sent without waiting for the pace.
        Errors are logged (raised with `strict`). Raises `RunFinished` after `finish`.
        """
        check_path(path)
        number, score = values.epoch_number(epoch), values.finite_number("map", map)
        return self._saving.save_checkpoint(Checkpoint(path, number, is_best, score, final))

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
        end = ending(timeout, status, results, error)
        try:
            with impatient(max(_LEAST_PATIENCE, end.timeout / 4)):
                self._saving.end(end)
                self._saving.attempt("worker", lambda: self._sending().finish())
                with UploadBar(self._home, self.id) as bar:
                    left = self.wait(timeout=end.deadline - time.monotonic(), each=bar.show)
                if self._sender is not None:
                    self._sender.close(end.deadline)
                    left = self._saving.left() if self._sender.sends else left
                    self._sender = None
        finally:
            self._saving.opening.give_back()
        if left:
            has_worker = self._mode != "none" or worker_lives(self._home)
            name = (
                f"run {self.id}" if self.id else f"this run of {self._named.filename or self._named.model_id}"
            )
            _LOG.warning("%s: %s", name, describe(left, has_worker=has_worker, known=self.id is not None))
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
            hopeless = self._mode == "none" or left.held is not None or not left.entries
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
            name = kind.__name__ if kind else None
            self.finish(status="failed" if name else "finished", error=name)

    def __repr__(self) -> str:
        return f"<hubqueue.Run {self.id} to {self._destination.name}>"

    def _repr_html_(self) -> str:
        return run_page(self.id, self._destination.name, self.url, self._saving.left())

    def _begin(self) -> None:
        if self._named.api_key:
            self._saving.attempt("key", self._store_key)
        self._saving.attempt("start of the run", self._saving.opening.opened)
        self._nudge()

    def _store_key(self) -> None:
        # The worker reads keys only from the environment and from this file, so a key in the identifier is stored here.
        assert self._named.api_key is not None
        self._home.create()
        Credentials(self._home.credentials, os.environ).add(self._destination, self._named.api_key)

    def _nudge(self) -> None:
        self._saving.attempt("worker", lambda: self._sending().nudge())

    def _sending(self) -> Sender:
        if self._sender is None:
            self._saving.opening.opened()
            row = partial(self._saving.opening.column, "destination")
            self._sender = sender(self._mode, self._home, self._config_path, row)
        return self._sender


_LIVING: weakref.WeakSet[Run] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for run in list(_LIVING):
        run._saving.opening.after_fork()
        run._sender = NoSender()  # the child only saves; the parent's worker sends


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
