"""`attach(model)`: callbacks that send a training of the ultralytics package (8.2 to 8.4) to a hub.

    model = YOLO("yolov8n.pt")
    hubqueue.ultralytics.attach(model)
    model.train(data="coco8.yaml", epochs=100)

Promises: every epoch's metrics, the newest and the best checkpoint, and the final one are on disk when their callback
returns. No error in here reaches the training. A resumed training continues the same run; a training that fails or is
interrupted marks its run as failed, one that exits with code 0 has finished. The package's own callbacks for the same kind of hub are removed from this
training, so that nothing is sent twice. Only the main process of a training sends.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from hubqueue.config.choice import choose_all
from hubqueue.config.credentials import Credentials
from hubqueue.config.declaration import Destination
from hubqueue.config.home import Home
from hubqueue.config.names import did_you_mean
from hubqueue.config.registry import declaration
from hubqueue.domain.errors import InvalidArgument, InvalidModel
from hubqueue.domain.identifier import as_file
from hubqueue.integrations.cadence import Cadence
from hubqueue.integrations.record import write_record
from hubqueue.integrations.ultralytics import trainer_facts as facts
from hubqueue.integrations.ultralytics.console_lines import ConsoleLines
from hubqueue.integrations.ultralytics.end_facts import results
from hubqueue.producer.called_with import check_start, destination_names, run_name
from hubqueue.producer.ending.departure import Departure, departure
from hubqueue.producer.metrics import Lenient
from hubqueue.producer.run import Run, start_run
from hubqueue.producer.startup.wanted import readable_settings
from hubqueue.producer.survival import logger

# Seconds that a training waits at most that ends early: long enough to record its end beside a busy worker.
_TO_FAIL = 2.0
_LOG = logger()
# Seconds between checks, during an epoch, whether the hub has asked the training to stop.
_CHECK = 5.0


def attach(model: Any, *, timeout: float = 30.0, console: bool = False, **options: Any) -> Attachment:
    """Send the trainings of `model` (a `YOLO`, or a trainer of the package) to a hub.

    `timeout` is how many seconds the end of a training waits for the uploads; the worker sends the rest.
    `console` also sends the package's log lines to a hub that shows them (Platform).
    `options` are those of `start_run`; `model` and `args` are taken from the trainer unless given as
    `model_name=` and `args=`. `name=` names each run (default: none). Raises `ConfigError`, and `InvalidArgument` for
    anything but a model or a trainer and for unknown options, at once, before any training starts.
    """
    _check(model, options)
    attachment = Attachment(timeout, options, console=console)
    for event in Attachment.EVENTS:
        # First in the list, so that the package's own callbacks for the same hub are removed before they run.
        model.callbacks.setdefault(event, []).insert(0, attachment.hook(event))
    model.train = attachment.guarding(model.train)
    return attachment


def _check(model: Any, options: Mapping[str, Any]) -> None:
    if isinstance(model, type) or not (
        isinstance(getattr(model, "callbacks", None), MutableMapping)
        and callable(getattr(model, "train", None))
    ):
        named = model.__name__ if isinstance(model, type) else type(model).__name__
        hint = 'for example hubqueue.ultralytics.attach(YOLO("yolov8n.pt"))'
        raise InvalidArgument(f"attach needs a YOLO model or a trainer, not {named}", hint=hint)
    known = {*inspect.signature(start_run).parameters, "model_name"} - {"model"}
    for each in options.keys() - known:
        hint = f"the options are {', '.join(sorted(known | {'timeout', 'console'}))}"
        raise InvalidArgument(f"attach has no option {each!r}{did_you_mean(each, known)}", hint=hint)
    check_start("model.pt", None, options.get("worker", "auto"))
    run_name(options.get("name"))


class Attachment:
    """The return value of `attach`. `run` is the run of the current training, None outside of one."""

    EVENTS = (
        "on_pretrain_routine_start",
        "on_pretrain_routine_end",
        "on_train_epoch_start",
        "on_train_batch_end",
        "on_model_save",
        "on_fit_epoch_end",
        "on_train_end",
    )

    def __init__(self, timeout: float, options: Mapping[str, Any], *, console: bool = False) -> None:
        self.run: Run | None = None
        self._timeout, self._options = timeout, dict(options)
        self._name, self._args = self._options.pop("model_name", None), self._options.pop("args", None)
        self._declared = _declared(self._options)
        # A weak reference, because a finished trainer holds GPU memory.
        self._trainer: Callable[[], Any] = lambda: None
        self._name_of_run = ""
        self._lenient = Lenient()
        self._in_epoch, self._last_epoch = False, -1
        # By "last" and "best": the checkpoint that a failed training must leave, if it was not saved.
        self._unsaved: dict[str, tuple[Path, int]] = {}
        self._console = console
        self._lines: ConsoleLines | None = None
        self._cadences = {"last": Cadence(), "best": Cadence()}
        self._check_at, self._batches = 0.0, 0

    def hook(self, event: str) -> Callable[[Any], None]:
        """The callback for an event. It acts only in the main process and never raises."""
        act = getattr(self, event)

        def callback(trainer: Any) -> None:
            if not _is_main_process():
                return
            try:
                act(trainer)
            except Exception:
                _LOG.exception("%s failed in hubqueue; the training continues", event)

        return callback

    def guarding(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """`train`, wrapped to end the run when it raises, exits or is interrupted."""

        @functools.wraps(train)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                result = train(*args, **kwargs)
            except BaseException as error:
                self._leave(departure(error))
                raise
            if self._trainer() is None and _is_main_process():
                hint = "on several GPUs start the script with torchrun, with attach in it"
                _LOG.warning("this training called no callback, so nothing was sent (%s)", hint)
            return result

        return guarded

    # In the order of a training.

    def on_pretrain_routine_start(self, trainer: Any) -> None:
        for each in self._declared:
            facts.retire(trainer, each, self.EVENTS)
        self._begin(trainer)

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        self._begin(trainer)  # `attach` was given a trainer that had begun already
        self._stop_if_cancelled(trainer)

    def on_train_epoch_start(self, trainer: Any) -> None:
        self._begin(trainer)
        self._in_epoch, self._batches = True, 0

    def on_train_batch_end(self, trainer: Any) -> None:
        self._batches += 1
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + _CHECK
            self._stop_if_cancelled(trainer)
            if self._lines is not None:
                self._lines.show(facts.progress(trainer, self._batches))

    def on_model_save(self, trainer: Any) -> None:
        is_best = trainer.best_fitness == trainer.fitness
        # Platform shows the checkpoint it received last as the model's, so send the best one, if there is one.
        has_best = bool(trainer.best) and Path(trainer.best).is_file()
        self._save(trainer, "last", lambda declared: not (declared.shows_newest and has_best))
        if is_best:
            self._save(trainer, "best", lambda _declared: True)

    def on_fit_epoch_end(self, trainer: Any) -> None:
        if self.run is None:
            return
        # The validation of the best model after the last epoch also calls this, in some versions with the number of
        # that epoch. It is logged as a separate epoch after the last one.
        epoch = int(trainer.epoch) if self._in_epoch else self._last_epoch + 1
        # Also with `strict`: the user of a trainer cannot change what it logs.
        for wants in {each.wants_fitness: each for each in self._declared}.values():
            metrics = self._lenient.kept(facts.metrics(trainer, wants, first=epoch == 0))
            self.run._log_metrics(metrics, epoch=epoch, among=_wanting_as(wants))
        self._in_epoch, self._last_epoch = False, epoch
        self._write_record(trainer)
        self._stop_if_cancelled(trainer)

    def on_train_end(self, trainer: Any) -> None:
        if self.run is None:
            return
        found = facts.final_checkpoint(trainer)
        if found is None:
            _LOG.warning("the training left no checkpoint, so no final one is sent")
        else:
            self.run.save_checkpoint(
                found, epoch=int(trainer.epoch), map=facts.mean_precision(trainer), final=True
            )
        self._unsaved.clear()
        self._forward_console(None)
        end = results(trainer) if any(each.completion is not None for each in self._declared) else None
        self.run.finish(timeout=self._timeout, results=end)
        self._write_record(trainer)
        self.run = None

    def _begin(self, trainer: Any) -> None:
        if trainer is self._trainer():
            return
        self._leave(Departure("failed"))  # an earlier training that did not reach its end
        self._trainer = weakref.ref(trainer)
        if facts.spawns_processes(trainer):
            hint = "start the script with torchrun, with attach in it"
            _LOG.warning("a training on several GPUs runs in other processes, so it is not sent (%s)", hint)
            return
        known = facts.recorded(trainer, [each.record for each in self._declared if each.record])
        name = self._name or known.get("model") or facts.model_name(trainer)
        # The id at one hub says nothing to another one; a training that this package began is found by its run.
        model = name if len(self._declared) > 1 else known.get("remote_id") or name
        args = {**facts.arguments(trainer), **(self._args or {})}
        options = {"resume": known.get("run"), **self._options}
        try:
            self.run = start_run(model, args=args, **options)
        except InvalidModel:
            self.run = start_run(as_file(name), args=args, **options)
        self._lenient = Lenient()
        self._in_epoch, self._last_epoch = False, int(getattr(trainer, "start_epoch", 0) or 0) - 1
        self._name_of_run = name
        if self._console:
            self._forward_console(self.run)
        self._write_record(trainer)

    def _save(self, trainer: Any, which: str, among: Callable[[Destination], bool]) -> None:
        if not any(map(among, self._declared)):
            return
        path, epoch = Path(trainer.last if which == "last" else trainer.best), int(trainer.epoch)
        if self.run is None or not path.is_file():
            return
        run, cadence = self.run, self._cadences[which]
        if cadence.is_due:
            is_best = which == "best"
            cadence.timed(lambda: run._save_checkpoint(path, epoch=epoch, is_best=is_best, among=among))
            self._unsaved.pop(which, None)
        elif any(map(_must_have(which), self._declared)):
            self._unsaved[which] = (path, epoch)

    def _stop_if_cancelled(self, trainer: Any) -> None:
        if self.run is not None and self.run.cancelled and not getattr(trainer, "stop", False):
            _LOG.warning("run %s: the hub asks to stop the training", self.run.id)
            trainer.stop = True

    def _forward_console(self, run: Run | None) -> None:
        """Start to send the package's log lines to `run`, or stop it (None)."""
        lines, self._lines = self._lines, None
        if lines is not None:
            lines.close()
        if run is not None:
            self._lines = ConsoleLines(run)

    def _write_record(self, trainer: Any) -> None:
        if self.run is not None and self.run.id is not None:
            remote_id = self.run.remote_id if len(self._declared) == 1 else None
            write_record(
                Path(trainer.save_dir),
                {"run": self.run.id, "model": self._name_of_run, "remote_id": remote_id},
            )

    def _leave(self, how: Departure) -> None:
        """End the run of a training that did not reach its last callback."""
        self._forward_console(None)
        run, self.run = self.run, None
        if run is None:
            return
        try:
            for which, (path, epoch) in self._unsaved.items():
                if path.is_file():
                    is_best = which == "best"
                    run._save_checkpoint(path, epoch=epoch, is_best=is_best, among=_must_have(which))
            timeout = min(self._timeout, how.timeout, _TO_FAIL)
            run.finish(timeout=timeout, status=how.status, error=how.error)
        except Exception:
            _LOG.exception("run %s could not be marked as %s", run.id, how.status)
        finally:
            self._unsaved.clear()


def _wanting_as(other: Destination) -> Callable[[Destination], bool]:
    """Whether a destination wants the same metrics as another one."""
    return lambda declared: declared.wants_fitness == other.wants_fitness


def _must_have(which: str) -> Callable[[Destination], bool]:
    """Whether a failed training must leave its last, or its best, checkpoint at a destination."""
    return lambda declared: declared.shows_newest == (which == "best")


def _is_main_process() -> bool:
    # The same rule as ultralytics.utils.RANK: -1 without torchrun, 0 in its first process.
    return os.environ.get("RANK", "-1") in ("-1", "0")


def _declared(options: Mapping[str, Any]) -> list[Destination]:
    config = options.get("config")
    home = Home.locate(options.get("home"))
    settings, _ = readable_settings(home, config or None, strict=bool(options.get("strict")))
    names = destination_names(options.get("destination"))
    targets = choose_all(settings, Credentials(home.credentials, os.environ), names)
    return [declaration(each.type) for each in targets]
