"""`HubqueueLogger`: sends the trainings of PyTorch Lightning (`lightning`, or `pytorch_lightning`) to a destination.

    trainer = Trainer(logger=HubqueueLogger(destination="bucket"), max_epochs=100)
    trainer.fit(model)

Promises: what the trainer logs, and each checkpoint that a `ModelCheckpoint` writes, is on disk when its hook returns; one that
another thread writes (`AsyncCheckpointIO`), as soon as it is written. No error in here reaches the training, after its start.
Only the process with rank 0 sends. An exception or Ctrl-C in the training ends its run as failed. A training that resumes from
a checkpoint continues the run of the checkpoint's folder.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hubqueue.domain.errors import InvalidModel
from hubqueue.domain.identifier import as_file
from hubqueue.integrations.framework import check_options, guarded, started
from hubqueue.integrations.lightning.checkpoints import Checkpoints
from hubqueue.integrations.lightning.package import Logger, is_main_process
from hubqueue.integrations.record import read_record
from hubqueue.producer.called_with import check_start
from hubqueue.producer.ending.departure import Departure, departure
from hubqueue.producer.run import Run
from hubqueue.producer.survival import logger

_LOG = logger()
# Seconds that a training that fails waits at most for its uploads.
_TO_FAIL = 2.0
# Seconds between checks whether the destination has asked the training to stop.
_CHECK = 5.0


class HubqueueLogger(Logger):
    """A logger of a `Trainer`. `run` is the run of the current training, None outside of one.

    `name` is the run's name. With `version` (default: a new one) and `save_dir` it is also the folder of the checkpoints, if the
    `ModelCheckpoint` has none. `timeout` is how many seconds the end of a training waits for its uploads; the worker sends the
    rest. `archive` sends a checkpoint that is a folder as one tar. `model_name` is the model's name (default: the class of the
    `LightningModule`), `args` are added to its hyperparameters. `options` are those of `start_run`.
    Raises `InvalidArgument` and `ConfigError` for what only the caller can fix, at once.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        version: str | None = None,
        save_dir: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
        archive: bool = False,
        model_name: str | None = None,
        args: Mapping[str, object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._options = {**options, "name": name}
        if is_main_process():
            check_start(model_name or "model", args, options.get("worker", "auto"))
            check_options("HubqueueLogger", self._options)
        self._model, self._args = model_name, dict(args or {})
        self._timeout = timeout
        self._name = name or model_name or "hubqueue"
        self._version = version or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        self._save_dir = None if save_dir is None else os.fspath(save_dir)
        self.run: Run | None = None
        self._last_id: str | None = None
        self._step, self._check_at = -1, 0.0
        self._checkpoints = Checkpoints(archive=archive)
        # A weak reference, because a finished trainer holds GPU memory.
        self._trainer: Callable[[], Any] = _no_trainer

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self._version

    @property
    def save_dir(self) -> str | None:
        return self._save_dir

    # In the order of a training.

    @guarded
    def log_hyperparams(self, params: Any, *_args: Any, **_kwargs: Any) -> None:
        """Add to the arguments of the run. What is added after its start is not sent."""
        given = dict(params if isinstance(params, Mapping) else vars(params))
        if self.run is not None and given.keys() - self._args.keys():
            _LOG.warning("run %s has begun: hyperparameters that are logged now are not sent", self.run.id)
        self._args |= given

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Start the run of a training; the trainer calls this before its first step. Raises as `start_run` does."""
        if is_main_process() and self._follow(model):
            self._begin()

    @guarded
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        run = self._running()
        if run is not None:
            trainer, epoch = self._trainer(), metrics.get("epoch")
            if trainer is not None and (not isinstance(epoch, int | float) or epoch % 1 or epoch < 0):
                epoch = trainer.current_epoch
            self._step = self._step + 1 if step is None else max(0, int(step))
            run.log_metrics(metrics, epoch=epoch, step=self._step)
            self._stop_if_cancelled(run)

    @guarded
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Save the checkpoint that a `ModelCheckpoint` has written, or has given to another thread to write."""
        run = self._running()
        if run is None:
            return
        epoch = getattr(self._trainer(), "current_epoch", None)
        self._checkpoints.save(run, checkpoint_callback, epoch=epoch)

    @guarded
    def finalize(self, status: str) -> None:
        """End the run of a training, a validation or a test: `status` is "success", or else the exception is being handled."""
        run = self.run
        # "finished": SLURM is about to stop this process, and to start the training again.
        if run is None or status == "finished" or not is_main_process():
            return
        self.run, self._last_id = None, run.id
        if status == "success":
            self._end(run, Departure(), self._timeout)
            return
        error = sys.exception()
        how = Departure("failed") if error is None else departure(error)
        # A launcher that ends this process now makes the trainer's handler of SIGTERM raise in this thread, at any line.
        timeout = min(self._timeout, how.timeout, _TO_FAIL)
        ending = threading.Thread(target=self._end, args=(run, how, timeout), name="hubqueue-end")
        ending.start()
        ending.join()

    @guarded
    def _end(self, run: Run, how: Departure, timeout: float) -> None:
        self._checkpoints.complete(self._timeout)
        run.finish(timeout=timeout, status=how.status, error=how.error)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process: the processes that a trainer starts by a pickle continue the same run."""
        last = self._last_id if self.run is None else self.run.id
        return {**vars(self), "run": None, "_last_id": last, "_trainer": _no_trainer}

    @guarded
    def _follow(self, module: Any) -> bool:
        """Whether the run is started now. Strategies that shard a model know later what it resumes from: at its first value."""
        trainer = module.trainer
        self._trainer = weakref.ref(trainer)
        self._checkpoints.watch(trainer.strategy.checkpoint_io)
        return bool(trainer.training and not trainer.strategy.restore_checkpoint_after_setup)

    def _running(self) -> Run | None:
        """The run, started if there is none: after the end of the training (a test), or without `log_graph`."""
        if self.run is None and is_main_process():
            self._begin()
        return self.run

    def _begin(self) -> None:
        if self.run is not None:
            return
        trainer = self._trainer()
        module, resumed_from = getattr(trainer, "lightning_module", None), getattr(trainer, "ckpt_path", None)
        model = self._model or ("model" if module is None else type(module).__name__)
        known = self._last_id or self._options.get("resume")
        if known is None and resumed_from is not None:
            known = read_record(Path(resumed_from).parent).get("run")
        options = {**self._options, "resume": known}
        try:
            self.run = started(model, self._args, options)
        except InvalidModel:
            if self._model is not None:
                raise
            self.run = started(as_file(model), self._args, options)  # a hub registers only a model's file

    def _stop_if_cancelled(self, run: Run) -> None:
        trainer, now = self._trainer(), time.monotonic()
        # Of several processes, each would have to stop at the same step.
        if trainer is None or trainer.world_size > 1 or now < self._check_at:
            return
        self._check_at = now + _CHECK
        if run.cancelled and not trainer.should_stop:
            _LOG.warning("run %s: the hub asks to stop the training", run.id)
            trainer.should_stop = True


def _no_trainer() -> None:
    return None
