"""`attach(model)`: callbacks that send a training of the ultralytics package (8.2 to 8.4) to a hub.

    model = YOLO("yolov8n.pt")
    hubqueue.integrations.ultralytics.attachment.attach(model)
    model.train(data="coco8.yaml", epochs=100)

Promises: every epoch's metrics, the newest and the best checkpoint, and the final one are on the disk when their
callback returns; nothing that goes wrong here reaches the training; a training that is resumed goes on as the same
run; one that fails, or is interrupted, is told as failed. The package's own callbacks for the same kind of hub are
taken off this training, so that nothing is sent twice. Only the main process of a training sends.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hubqueue.config.choice import choose
from hubqueue.config.credentials import Credentials
from hubqueue.config.declaration import Destination
from hubqueue.config.home import Home
from hubqueue.config.registry import declaration
from hubqueue.domain.errors import InvalidModel
from hubqueue.integrations.cadence import Cadence
from hubqueue.integrations.ultralytics import trainer_facts as facts
from hubqueue.integrations.ultralytics.console_lines import ConsoleLines
from hubqueue.producer.metrics import numbers_only
from hubqueue.producer.run import Run, start_run
from hubqueue.producer.survival import settings_of

_LOG = logging.getLogger("hubqueue")
# How often the trainer is asked between epochs to stop, when the hub wants it to, in seconds.
_LOOK = 5.0


def attach(model: Any, *, timeout: float = 30.0, console: bool = False, **options: Any) -> Attachment:
    """Send the trainings of `model` (a `YOLO`, or a trainer of the package) to a hub.

    `timeout` is how many seconds the end of a training waits for the uploads; the rest is sent by the worker.
    `console` sends what the package logs as well, to a hub that shows it (Platform).
    `options` are those of `start_run`; `model` and `args` are taken from the trainer unless given as
    `model_name=` and `args=`. Raises `ConfigError` at once.
    """
    attachment = Attachment(timeout, options, console=console)
    for event in Attachment.EVENTS:
        # Before the package's own callbacks, so that those for the same hub can be taken off before they act.
        model.callbacks.setdefault(event, []).insert(0, attachment.hook(event))
    model.train = attachment.guarding(model.train)
    return attachment


class Attachment:
    """What `attach` gives: `run` is the current training's run, None before it begins."""

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
        self._trainer: Callable[[], Any] = lambda: None  # weakly: a finished trainer holds the GPU's memory
        self._name_of_run = ""
        self._in_epoch, self._last_epoch = False, -1
        self._unsaved: tuple[Path, int, bool] | None = None
        self._console = console
        self._lines: ConsoleLines | None = None
        self._cadences = {"last": Cadence(), "best": Cadence()}
        self._look_at = 0.0

    def hook(self, event: str) -> Callable[[Any], None]:
        """The callback for an event: only in the main process, and never raising."""
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
        """`train`, with a word to the run when it fails or is interrupted."""

        @functools.wraps(train)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                result = train(*args, **kwargs)
            except BaseException as error:
                self._fail(type(error).__name__)
                raise
            if self._trainer() is None and _is_main_process():
                hint = "on several GPUs start the script with torchrun, with attach in it"
                _LOG.warning("this training called no callback, so nothing was sent (%s)", hint)
            return result

        return guarded

    # In the order of a training.

    def on_pretrain_routine_start(self, trainer: Any) -> None:
        facts.retire(trainer, self._declared, self.EVENTS)
        self._begin(trainer)

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        self._begin(trainer)  # `attach` was given a trainer that had begun already
        self._obey(trainer)

    def on_train_epoch_start(self, trainer: Any) -> None:
        self._begin(trainer)
        self._in_epoch = True

    def on_train_batch_end(self, trainer: Any) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK
            self._obey(trainer)

    def on_model_save(self, trainer: Any) -> None:
        is_best = trainer.best_fitness == trainer.fitness
        # Platform shows the checkpoint that came last as the model's: the best one, while there is one.
        if not self._declared.shows_newest or not (trainer.best and Path(trainer.best).is_file()):
            self._save(trainer, "last")
        if is_best:
            self._save(trainer, "best")

    def on_fit_epoch_end(self, trainer: Any) -> None:
        if self.run is None:
            return
        # The validation of the best model after the last epoch comes here too, in some versions under the number
        # of that epoch. It has a place of its own, behind it.
        epoch = int(trainer.epoch) if self._in_epoch else self._last_epoch + 1
        metrics, left_out = numbers_only(facts.metrics(trainer, self._declared, first=epoch == 0))
        if left_out:
            _LOG.warning("epoch %d: not a number, skipped: %s", epoch, ", ".join(left_out))
        self.run.log_metrics(metrics, epoch=epoch)
        self._in_epoch, self._last_epoch = False, epoch
        self._note(trainer)
        self._obey(trainer)

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
        self._unsaved = None
        self._listen(None)
        self.run.finish(timeout=self._timeout, results=facts.results(trainer))
        self._note(trainer)
        self.run = None

    def _begin(self, trainer: Any) -> None:
        if trainer is self._trainer():
            return
        self._fail()  # of an earlier training that never came to its end
        self._trainer = weakref.ref(trainer)
        if facts.spawns_processes(trainer):
            hint = "start the script with torchrun, with attach in it"
            _LOG.warning("a training on several GPUs runs in other processes; it is not sent (%s)", hint)
            return
        known = facts.read_record(trainer, self._declared)
        name = self._name or known.get("model") or facts.model_name(trainer)
        args = {**facts.arguments(trainer), **(self._args or {})}
        options = {"resume": known.get("run"), **self._options}
        try:
            self.run = start_run(known.get("remote_id") or name, args=args, **options)
        except InvalidModel:
            self.run = start_run(facts.as_file(name), args=args, **options)
        self._in_epoch, self._last_epoch = False, int(getattr(trainer, "start_epoch", 0) or 0) - 1
        self._name_of_run = name
        if self._console:
            self._listen(self.run)
        self._note(trainer)

    def _save(self, trainer: Any, which: str) -> None:
        path, epoch = Path(trainer.last if which == "last" else trainer.best), int(trainer.epoch)
        if self.run is None or not path.is_file():
            return
        run, cadence = self.run, self._cadences[which]
        wanted = "best" if self._declared.shows_newest else "last"  # what a training that fails leaves behind
        if cadence.is_due:
            cadence.timed(lambda: run.save_checkpoint(path, epoch=epoch, is_best=which == "best"))
            self._unsaved = None if which == wanted else self._unsaved
        elif which == wanted:
            self._unsaved = (path, epoch, which == "best")

    def _obey(self, trainer: Any) -> None:
        if self.run is not None and self.run.cancelled and not getattr(trainer, "stop", False):
            _LOG.warning("run %s: the hub asks to stop the training", self.run.id)
            trainer.stop = True

    def _listen(self, run: Run | None) -> None:
        """Send the package's output from now on, or (None) no more."""
        lines, self._lines = self._lines, None
        if lines is not None:
            lines.close()
        if run is not None:
            self._lines = ConsoleLines(run)

    def _note(self, trainer: Any) -> None:
        if self.run is not None and self.run.id is not None:
            facts.write_record(
                trainer, {"run": self.run.id, "model": self._name_of_run, "remote_id": self.run.remote_id}
            )

    def _fail(self, error: str | None = None) -> None:
        self._listen(None)
        run, self.run = self.run, None
        if run is None:
            return
        try:
            if self._unsaved is not None and self._unsaved[0].is_file():
                path, epoch, best = self._unsaved
                run.save_checkpoint(path, epoch=epoch, is_best=best)
            run.finish(timeout=0, status="failed", error=error)
        except Exception:
            _LOG.exception("the end of run %s could not be told", run.id)
        finally:
            self._unsaved = None


def _is_main_process() -> bool:
    # As ultralytics.utils.RANK has it: -1 without torchrun, 0 in its first process.
    return os.environ.get("RANK", "-1") in ("-1", "0")


def _declared(options: Mapping[str, Any]) -> Destination:
    config = options.get("config")
    home = Home.locate(options.get("home"))
    settings = settings_of(home, config or None, strict=bool(options.get("strict")))
    target = choose(settings, Credentials(home.credentials, os.environ), options.get("destination"))
    return declaration(target.type)
