"""The producer's door: a training run that owes its metrics and checkpoints to a hub.

Promises: what `log_metrics` and `save_checkpoint` returned for is on disk; the training thread never touches
the network, never sees an exception because of storage or network trouble (unless `strict`), and `finish`
waits no longer than it was told. No signal handlers, no output of its own besides the logger "hubqueue".

When the storage fails (a full disk, a read-only home), metrics are kept in memory and saved with the next call
that succeeds; what is still unsaved at the end is counted in `Leftover.unsaved`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from hubqueue import identifier
from hubqueue import metrics as values
from hubqueue.backlog import Backlog
from hubqueue.clock import Clock
from hubqueue.closing import close_run
from hubqueue.config import Config, DestinationSettings
from hubqueue.credentials import Credentials
from hubqueue.destination_choice import choose
from hubqueue.drafts import console_draft, metrics_draft
from hubqueue.entry import Draft, Kind
from hubqueue.errors import HubqueueError, OutboxDamaged, RunFinished
from hubqueue.home import Home
from hubqueue.intake import open_run, save_snapshot
from hubqueue.known_keys import without_keys
from hubqueue.leftover import Leftover, look, word
from hubqueue.lifecycle import RunState
from hubqueue.locks import Lock
from hubqueue.outbox import Outbox, open_outbox, replace_damaged
from hubqueue.senders import Nobody, Sender, WorkerMode, sender
from hubqueue.survival import settings_of, survive
from hubqueue.transports import DESTINATION_KINDS
from hubqueue.upload_bar import UploadBar

Path_ = str | os.PathLike[str]
_T = TypeVar("_T")
_LOG = logging.getLogger("hubqueue")
# How often a storage that could not be opened is tried again.
_REOPEN = 5.0
_POLL = 0.1
_SET_ASIDE = "the outbox was damaged: it is kept as %s, and a new one was started (hubqueue check tells more)"
# What `finish` grants a locked database at least, in seconds, for each of its few statements.
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
    """Start a training run, or go on with the one of the same model at the hub. Works offline.

    `model` is a model file (`yolov8n.pt`: a new model is registered with `args`), a model URL or a model id.
    `worker`: "auto" starts a detached worker process when none is alive, "thread" sends from this process,
    "none" only saves. `resume` is the `Run.id` of a run to go on with, which the hub need not know yet.
    Raises `InvalidModel` and `ConfigError`; storage trouble is logged and survived, with `strict` it is raised.
    """
    if worker not in ("auto", "thread", "none"):
        raise ValueError(f"worker must be 'auto', 'thread' or 'none', not {worker!r}")
    place = Home.locate(home)
    settings = settings_of(place, config, strict=strict)
    target = choose(settings, Credentials(place.credentials, os.environ), destination, model=str(model))
    named = identifier.of_type(target.type, model, web_url=target.web_url)
    options = {"worker": worker, "strict": strict, "resume": resume, "config_path": config}
    told = without_keys(args or {}, place.credentials, os.environ, named.api_key)
    run = Run(place, settings, target, named, told, **options)  # type: ignore[arg-type]
    run._begin()
    return run


class Run:
    """One training run. Made by `start_run`; safe to use from several threads, and after a fork."""

    def __init__(
        self,
        home: Home,
        config: Config,
        destination: DestinationSettings,
        named: identifier.Identifier,
        args: dict[str, object],
        *,
        worker: WorkerMode,
        strict: bool,
        resume: str | None = None,
        config_path: Path_ | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._home, self._config, self._destination = home, config, destination
        self._named, self._args, self._resume = named, args, resume
        self._mode, self._strict, self._clock = worker, strict, clock
        self._config_path = None if config_path is None else os.path.abspath(config_path)
        self._outbox: Outbox | None = None
        self._id: str | None = None
        self._lock: Lock | None = None
        self._sender: Sender | None = None
        self._backlog = Backlog()
        self._ended: RunState | None = None
        self._guard = threading.RLock()
        self._reopen_at = 0.0
        _LIVING.add(self)

    @property
    def id(self) -> str | None:
        """The local id, as `hubqueue status` shows it; None as long as the storage could not be opened."""
        return self._id

    @property
    def outbox(self) -> Outbox | None:
        """The outbox it is in; None as long as the storage could not be opened."""
        return self._outbox

    @property
    def remote_id(self) -> str | None:
        """The id at the hub; None until the hub has answered."""
        found: str | None = self._told("remote_id")
        return found or self._named.model_id

    @property
    def url(self) -> str | None:
        """Where the run can be looked at; None until the hub has answered."""
        found: str | None = self._told("url")
        return found

    @property
    def cancelled(self) -> bool:
        """Whether the hub has asked the training to stop."""
        return bool(self._told("cancelled"))

    def log_metrics(self, metrics: Mapping[str, object], *, epoch: int) -> int | None:
        """Save the metrics of an epoch (0-based); the id of the entry, None when it could only be kept in memory.

        Values are numbers or scalars of numpy and torch; non-finite ones are sent as null. Logging an epoch again
        replaces what is not sent yet. Raises `InvalidMetrics` for anything else, `RunFinished` after `finish`.
        """
        return self._save(metrics_draft(values.metrics_text(metrics), values.epoch_number(epoch)))

    def log_console(self, content: str, *, lines: int = 1) -> int | None:
        """Save lines of the training's output for a hub that shows them (Platform); as `log_metrics` otherwise."""
        if Kind.EVENT not in DESTINATION_KINDS[self._destination.type]:
            return None
        return self._save(console_draft(content, lines, time.time_ns() // 1_000_000))

    def save_checkpoint(
        self, path: Path_, *, epoch: int, is_best: bool = False, map: float = 0.0, final: bool = False
    ) -> int | None:
        """Save a private copy of a checkpoint file; the id of the entry, None when it could not be saved.

        The file may change or vanish as soon as this returns. Of those that wait, only the newest `last` and the
        newest `best` one are kept; `final` (with `map`, the mAP50-95) is sent without regard to the pace. Trouble
        is logged (raised when `strict`), `RunFinished` is raised after `finish`.
        """
        number = values.epoch_number(epoch)
        score = values.finite_number("map", map)

        def save() -> int:
            outbox, run_id = self._opened()
            return save_snapshot(outbox, run_id, path, number, is_best=is_best, map=score, final=final)

        self._refuse_finished()
        saved = self._attempt("checkpoint", save)
        with self._guard:
            self._backlog.lost += saved is None
        self._nudge()
        return saved

    def finish(
        self,
        *,
        timeout: float = 30.0,
        status: Literal["finished", "failed"] = "finished",
        results: Mapping[str, object] | None = None,
        error: str | None = None,
    ) -> Leftover:
        """End the run and wait for its uploads, at most `timeout` seconds; what is still owed then.

        `results` (such as `{"metrics": {…}, "bestEpoch": 7}`) or `error` are for a hub that wants to hear of the
        end. What is left goes on after this process has ended: a detached worker sends it, or the next one does.
        Calling it again waits again.
        """
        deadline, state = time.monotonic() + max(0.0, timeout), RunState(status)
        if self._outbox is not None:
            self._outbox.database.be_patient(max(_LEAST_PATIENCE, timeout / 4))
        with self._guard:
            self._reopen_at = 0.0  # the last chance
            self._attempt("metrics", lambda: self._backlog.save(self._enqueue))
            if self._ended is None:
                self._attempt("end of the run", lambda: self._end(state, results, error))
        self._attempt("worker", lambda: self._sending().finish())
        with UploadBar(self._home, self._id) as bar:
            left = self.wait(timeout=deadline - time.monotonic(), each=bar.show)
        if self._sender is not None:
            self._sender.close(deadline)
            self._sender = None
            left = self._left()
        if left:
            _LOG.warning("run %s: %s", self._id, word(left))
        return left

    def wait(self, *, timeout: float, each: Callable[[Leftover], None] = lambda _left: None) -> Leftover:
        """Wait until nothing is owed or nothing can be done about it, at most `timeout` seconds; the run goes on.

        `each` hears about ten times a second what is still owed.
        """
        deadline, pause = time.monotonic() + timeout, threading.Event()
        while True:
            left = self._left()
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
        if self._ended is None:
            name = kind.__name__ if kind else None
            self.finish(status="failed" if name else "finished", error=name)

    def __repr__(self) -> str:
        return f"<hubqueue.Run {self._id} to {self._destination.name}>"

    def _begin(self) -> None:
        if self._named.api_key:
            self._attempt("key", self._store_key)
        self._attempt("start of the run", self._opened)
        self._nudge()

    def _store_key(self) -> None:
        # A key inside an identifier is for the worker, which knows only the environment and this file.
        assert self._named.api_key is not None
        self._home.create()
        Credentials(self._home.credentials, os.environ).store(self._destination, self._named.api_key)

    def _attempt(self, what: str, act: Callable[[], _T]) -> _T | None:
        return survive(what, lambda: self._mended(act), strict=self._strict)

    def _mended(self, act: Callable[[], _T]) -> _T:
        """Do something; when the outbox turns out to be damaged, once more with a new one in its place."""
        try:
            return act()
        except OutboxDamaged:
            if self._outbox is None:
                raise
            # What can still be read keeps the hub from getting a second model.
            self._named = dataclasses.replace(self._named, model_id=self.remote_id)
            self._outbox.close()
            self._outbox = self._id = None
            self._reopen_at = 0.0
            aside = replace_damaged(self._home, self._config)
            _LOG.error(_SET_ASIDE, aside)
            return act()

    def _opened(self) -> tuple[Outbox, str]:
        """The outbox and the run's id in it; opened and registered when that has not succeeded yet."""
        with self._guard:
            if self._outbox is None or self._id is None:
                self._open()
            assert self._outbox is not None and self._id is not None
            return self._outbox, self._id

    def _open(self) -> None:
        if time.monotonic() < self._reopen_at:
            raise HubqueueError(
                "the outbox could not be opened a moment ago", hint="hubqueue check finds out why"
            )
        self._reopen_at = time.monotonic() + _REOPEN
        outbox = open_outbox(self._home.path, self._config_path, clock=self._clock, set_aside_damaged=True)
        if outbox.set_aside is not None:
            _LOG.error(_SET_ASIDE, outbox.set_aside)
        self._id = self._register(outbox)
        self._outbox = outbox

    def _register(self, outbox: Outbox) -> str:
        target = self._destination
        run_id, goes_on = open_run(outbox, self._named, self._args, target, resume=self._resume)
        self._lock = Lock(outbox.run_lock(run_id))
        if not self._lock.try_acquire():
            _LOG.warning("run %s: another process is training this model too; both share its lanes", run_id)
        if goes_on:
            _LOG.info("run %s goes on", run_id)
        held = self._told("destination_held", outbox, run_id)
        if held:
            cure = f"hubqueue resume {target.name}"
            _LOG.warning("destination %s is held: %s; once mended: %s", target.name, held, cure)
        return run_id

    def _save(self, draft: Draft) -> int | None:
        with self._guard:
            self._refuse_finished()
            self._backlog.put(draft)
            saved = self._attempt(str(draft.kind), lambda: self._backlog.save(self._enqueue))
        self._nudge()
        return saved

    def _enqueue(self, draft: Draft) -> int:
        outbox, run_id = self._opened()
        entry_id, superseded = outbox.entries.enqueue(run_id, draft)
        outbox.discard(superseded)
        return entry_id

    def _end(self, state: RunState, results: Mapping[str, object] | None, error: str | None) -> None:
        outbox, run_id = self._opened()
        close_run(outbox, run_id, state, results=results, error=error)
        self._ended = state
        if self._lock is not None:
            self._lock.release()

    def _told(self, column: str, outbox: Outbox | None = None, run_id: str | None = None) -> Any:
        """What the worker has written on the run; None when there is nothing, or no storage."""
        outbox, run_id = outbox or self._outbox, run_id or self._id
        try:
            row = None if outbox is None or run_id is None else outbox.stats.run(run_id)
        except HubqueueError as error:
            _LOG.debug("the run could not be read: %s", error)
            return None
        return None if row is None else row[column]

    def _refuse_finished(self) -> None:
        if self._ended is not None:
            raise RunFinished(f"run {self._id} is {self._ended}", hint="start another: hubqueue.start_run")

    def _nudge(self) -> None:
        self._attempt("worker", lambda: self._sending().nudge())

    def _sending(self) -> Sender:
        if self._sender is None:
            self._opened()
            self._sender = sender(self._mode, self._home, self._config_path, self._told("destination"))
        return self._sender

    def _left(self) -> Leftover:
        return look(self._outbox, self._id, unsaved=len(self._backlog))


# A thread of the parent may hold a guard at the moment of a fork; the child gets a free one.
_LIVING: weakref.WeakSet[Run] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for run in list(_LIVING):
        run._guard = threading.RLock()
        run._sender = Nobody()  # the child only saves; the parent's worker sends


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
