"""The producer's door: a training run that owes its metrics and checkpoints to a hub.

Promises: what `log_metrics` and `save_checkpoint` returned for is on disk; the training thread never touches
the network, never sees an exception because of storage or network trouble (unless `strict`), and `finish`
waits no longer than it was told. No signal handlers, no output of its own besides the logger "hubqueue".

When the storage fails (a full disk, a read-only home), metrics are kept in memory and saved with the next call
that succeeds; what is still unsaved at the end is counted in `Leftover.unsaved`.
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
from typing import Literal, Self, TypeVar

from hubqueue.config.choice import choose
from hubqueue.config.credentials import Credentials
from hubqueue.config.home import Home
from hubqueue.config.known_keys import without_keys
from hubqueue.config.reader import Config, DestinationSettings
from hubqueue.config.registry import declaration
from hubqueue.domain.clock import Clock
from hubqueue.domain.drafts import metrics_draft
from hubqueue.domain.entry import Draft, Kind
from hubqueue.domain.errors import RunFinished
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.database.patience import impatient
from hubqueue.outbox.outbox import Outbox
from hubqueue.outbox.spool.ballast import Ballast
from hubqueue.producer import metrics as values
from hubqueue.producer.backlog import Backlog
from hubqueue.producer.called_with import Ending, check_path, check_start, ending
from hubqueue.producer.intake import copy_checkpoint, owe, was_swept
from hubqueue.producer.leftover import Leftover, look, word
from hubqueue.producer.opening import Opening
from hubqueue.producer.progress import UploadBar
from hubqueue.producer.run_page import run_page
from hubqueue.producer.senders import Nobody, Sender, WorkerMode, sender
from hubqueue.producer.sharing import SHARED
from hubqueue.producer.survival import Survivor, settings_of
from hubqueue.producer.unsaved import Unsaved
from hubqueue.worker.closing import close_run

Path_ = str | os.PathLike[str]
_T = TypeVar("_T")
_LOG = logging.getLogger("hubqueue")
_POLL = 0.1
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
    "none" only saves. `resume` is the `Run.id` of a run to continue ("last": the newest), which the hub need not know yet.
    Raises `InvalidModel`, `InvalidArgument` and `ConfigError` for what only the caller can fix; storage trouble is
    logged and survived, with `strict` it is raised.
    """
    check_start(model, args, worker)
    place = Home.locate(home)
    settings = settings_of(place, config, strict=strict)
    target = choose(settings, Credentials(place.credentials, os.environ), destination, model=str(model))
    named = declaration(target.type).identify(model, target)
    options = {"worker": worker, "strict": strict, "resume": resume, "config_path": config}
    others = settings.destinations.values()
    told = without_keys(args or {}, place.credentials, os.environ, others, named.api_key)
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
        named: Identifier,
        args: dict[str, object],
        *,
        worker: WorkerMode,
        strict: bool,
        resume: str | None = None,
        config_path: Path_ | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._home, self._destination, self._named = home, destination, named
        self._config_path = None if config_path is None else os.path.abspath(config_path)
        self._mode = worker
        self._opening = Opening(home, config, destination, named, args, resume=resume, clock=clock)
        self._sender: Sender | None = None
        self._unsaved = Unsaved()
        self._backlog = Backlog(self._give_way)
        self._survivor = Survivor(strict=strict, name=lambda: self.id, hear=self._unsaved.because)
        self._ended: RunState | None = None
        _LIVING.add(self)

    @property
    def id(self) -> str | None:
        """The local id, as `hubqueue status` shows it; None as long as the storage could not be opened."""
        return self._opening.run_id

    @property
    def outbox(self) -> Outbox | None:
        """The outbox it is in; None as long as the storage could not be opened. Shared with other runs of the process."""
        return self._opening.outbox

    @property
    def remote_id(self) -> str | None:
        """The id at the hub; None until the hub has answered."""
        return self._opening.model_id

    @property
    def url(self) -> str | None:
        """Where the run can be looked at; None until the hub has answered."""
        found: str | None = self._opening.told("url")
        return found

    @property
    def cancelled(self) -> bool:
        """Whether the hub has asked the training to stop."""
        return bool(self._opening.told("cancelled"))

    def log_metrics(self, metrics: Mapping[str, object], *, epoch: int) -> int | None:
        """Save the metrics of an epoch (0-based); the id of the entry, None when it could only be kept in memory.

        Values are numbers or scalars of numpy and torch; non-finite ones are sent as null. Logging an epoch again
        replaces what is not sent yet. Raises `InvalidMetrics` for anything else, `RunFinished` after `finish`.
        """
        return self._save(metrics_draft(values.metrics_text(metrics), values.epoch_number(epoch)))

    def log_console(self, content: str, *, lines: int = 1) -> int | None:
        """Save lines of the training's output for a hub that shows them (Platform); as `log_metrics` otherwise."""
        console = declaration(self._destination.type).console
        if console is None:
            return None
        return self._save(console(content, lines, time.time_ns() // 1_000_000))

    def save_checkpoint(
        self, path: Path_, *, epoch: int, is_best: bool = False, map: float = 0.0, final: bool = False
    ) -> int | None:
        """Save a private copy of a checkpoint file; the id of the entry, None when it could not be saved.

        The file may change or vanish as soon as this returns. Of those that wait, only the newest `last` and the
        newest `best` one are kept; `final` (with `map`, the mAP50-95) is sent without regard to the pace. Trouble
        is logged (raised when `strict`), `RunFinished` is raised after `finish`.
        """
        check_path(path)
        number = values.epoch_number(epoch)
        score = values.finite_number("map", map)

        def copy() -> Draft:
            outbox, run_id = self._opening.opened()
            return copy_checkpoint(outbox, run_id, path, number, is_best=is_best, map=score, final=final)

        self._refuse_finished()
        while (draft := self._attempt("checkpoint", copy)) is not None:
            saved, outbox = self._save(draft), self.outbox
            if saved is None or outbox is None:
                return saved
            if not self._attempt("checkpoint", partial(was_swept, outbox, saved, draft)):
                return saved
        with self._opening.guard:
            self._unsaved.lose()
        self._attempt("loss of a checkpoint", self._note)
        return None

    def finish(
        self,
        *,
        timeout: float | None = 30.0,
        status: Literal["finished", "failed"] = "finished",
        results: Mapping[str, object] | None = None,
        error: str | None = None,
    ) -> Leftover:
        """End the run and wait for its uploads, at most `timeout` seconds (None: until they are done); what is left.

        `results` (such as `{"metrics": {…}, "bestEpoch": 7}`) or `error` are for a hub that wants to hear of the
        end. What is left is sent after this process has ended: by a detached worker, or by the next one.
        Calling it again waits again. A wrong argument raises `InvalidArgument`, and the run is ended all the same.
        """
        end = ending(timeout, status, results, error)
        try:
            with impatient(max(_LEAST_PATIENCE, end.timeout / 4)):
                self._close(end)
                self._attempt("worker", lambda: self._sending().finish())
                with UploadBar(self._home, self.id) as bar:
                    left = self.wait(timeout=end.deadline - time.monotonic(), each=bar.show)
                if self._sender is not None:
                    self._sender.close(end.deadline)
                    left = self._left() if self._sender.sends else left
                    self._sender = None
        finally:
            self._opening.give_back()
        if left:
            _LOG.warning("run %s: %s", self.id, word(left))
        if end.problem:
            raise end.problem
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
        return f"<hubqueue.Run {self.id} to {self._destination.name}>"

    def _repr_html_(self) -> str:
        return run_page(self.id, self._destination.name, self.url, self._left())

    def _begin(self) -> None:
        if self._named.api_key:
            self._attempt("key", self._store_key)
        self._attempt("start of the run", self._opening.opened)
        self._nudge()

    def _store_key(self) -> None:
        # A key inside an identifier is for the worker, which knows only the environment and this file.
        assert self._named.api_key is not None
        self._home.create()
        Credentials(self._home.credentials, os.environ).add(self._destination, self._named.api_key)

    def _attempt(self, what: str, act: Callable[[], _T]) -> _T | None:
        return self._survivor.attempt(what, lambda: self._opening.repaired(act))

    def _save(self, draft: Draft) -> int | None:
        with self._opening.guard:
            self._refuse_finished()
            self._backlog.put(draft)
            what = "checkpoint" if draft.kind is Kind.CKPT else str(draft.kind)
            saved = self._attempt(what, lambda: self._backlog.save(self._enqueue))
            if saved is not None and self._unsaved.lost:
                self._attempt("loss of a checkpoint", self._note)
        self._nudge()
        return saved

    def _enqueue(self, draft: Draft, unsure: bool) -> int:
        outbox, run_id = self._opening.opened()
        entry_id = None
        if unsure:
            entry_id = outbox.stats.saved(run_id, draft, after=self._opening.first_entry)
        if entry_id is None:
            entry_id = owe(outbox, run_id, draft)
        return entry_id

    def _give_way(self, draft: Draft, unsure: bool, replaced: bool) -> None:
        """A draft leaves the memory without having been saved, as far as is known."""
        if not replaced:
            self._unsaved.lose()
        if draft.snapshot is not None and not unsure and self.outbox is not None:
            self.outbox.spool.remove(draft.snapshot.name)

    def _note(self, *, waiting: int = 0) -> None:
        outbox, run_id = self._opening.opened()
        self._unsaved.note(outbox, run_id, waiting=waiting)

    def _close(self, end: Ending) -> None:
        """Save what waits in memory, for the last time, and end the run."""

        def save() -> None:
            self._attempt("metrics", lambda: self._backlog.save(self._enqueue))

        def close() -> None:
            outbox, run_id = self._opening.opened()
            close_run(outbox, run_id, end.state, results=end.results, error=end.error)
            self._ended = end.state
            self._opening.ended()

        with self._opening.guard:
            self._opening.try_again()
            save()
            if self._backlog and Ballast(self._home.ballast).release():
                save()  # on a full disk this is what the ballast is for: after this, the memory is gone
            if self._unsaved.lost or self._backlog or self._unsaved.noted:
                self._attempt("loss", lambda: self._note(waiting=len(self._backlog)))
            if self._ended is None:
                self._attempt("end of the run", close)

    def _refuse_finished(self) -> None:
        if self._ended is not None:
            raise RunFinished(f"run {self.id} is {self._ended}", hint="start another: hubqueue.start_run")

    def _nudge(self) -> None:
        self._attempt("worker", lambda: self._sending().nudge())

    def _sending(self) -> Sender:
        if self._sender is None:
            self._opening.opened()
            row = partial(self._opening.told, "destination")
            self._sender = sender(self._mode, self._home, self._config_path, row)
        return self._sender

    def _left(self) -> Leftover:
        unsaved, why, outbox = len(self._backlog) + self._unsaved.lost, self._unsaved.why, self.outbox
        if outbox is None:
            return look(None, None, unsaved=unsaved, why=why)
        with SHARED.used(outbox):
            return look(outbox, self.id, unsaved=unsaved, why=why)


_LIVING: weakref.WeakSet[Run] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for run in list(_LIVING):
        run._opening.after_fork()
        run._sender = Nobody()  # the child only saves; the parent's worker sends


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
