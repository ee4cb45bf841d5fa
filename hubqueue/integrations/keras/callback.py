"""`HubqueueCallback`: saves the metrics and the checkpoints of `model.fit` of Keras 3.

    saving = keras.callbacks.ModelCheckpoint("out/model-{epoch:02d}.keras")
    model.fit(x, y, epochs=10, callbacks=[saving, HubqueueCallback(saving, destination="lab")])

Promises: the metrics of an epoch, and the checkpoint that was written in it, are on the disk before the next epoch begins. No
error in here reaches the training. A training that is resumed (its first epoch is not 0) continues the same run. Only the main
process of a training sends. Keras has no callback for a training that fails: its run ends as failed at the end of the script, at
the end of a `with` block of the callback, or at its next `fit`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from hubqueue.integrations.cadence import Cadence
from hubqueue.integrations.framework import check_options, guarded, is_main_process, not_installed, started
from hubqueue.integrations.interruption import expect_end, has_ended
from hubqueue.integrations.keras.written_files import WrittenFiles
from hubqueue.integrations.record import read_record, write_record
from hubqueue.producer.ending.departure import Departure, departure
from hubqueue.producer.metrics import Lenient
from hubqueue.producer.run import Run
from hubqueue.producer.survival import logger

try:
    import keras
except ModuleNotFoundError as error:
    if error.name != "keras":
        raise
    raise not_installed("keras", "keras") from None

# Seconds that the start of a further training waits at most for the run of one that has failed.
_TO_FAIL = 2.0
_LOG = logger()


class HubqueueCallback(keras.callbacks.Callback):
    """Saves each `fit` as a run. `run` is that of the current one, None outside of it.

    `checkpoints` are what the training writes: a `ModelCheckpoint`, a `BackupAndRestore`, a path with or without the placeholders
    of `ModelCheckpoint`, or a list of these. After each epoch the newest one that has changed is saved; copies take at most 5 %
    of the training's time. With `save` the callback saves the whole model as `model.keras`, without a file in the training's
    folder. `timeout` is how many seconds the end of the training waits for its uploads; the worker sends the rest. `model_name`
    is the model's name (default: `model.name`), `args` are added to those of the training. `options` are those of `start_run`.
    Raises `InvalidArgument` and `ConfigError` for what only the caller can fix, at once.
    """

    def __init__(
        self,
        checkpoints: Any = (),
        *,
        save: bool = False,
        timeout: float = 30.0,
        model_name: str | None = None,
        args: Mapping[str, object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_options("HubqueueCallback", options)
        several = isinstance(checkpoints, Sequence) and not isinstance(checkpoints, str)
        self.run: Run | None = None
        self._watched = [WrittenFiles(each) for each in (checkpoints if several else [checkpoints])]
        self._saves, self._timeout, self._options = save, timeout, options
        self._name, self._args = model_name, dict(args or {})
        self._sends, self._has_begun, self._epoch = False, False, -1
        self._last_id: str | None = None  # the run of the last training
        self._cadence, self._lenient = Cadence(), Lenient()

    # In the order of a training.

    @guarded
    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._leave(Departure("failed", timeout=_TO_FAIL))  # an earlier training that was interrupted
        process = os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "0")
        self._sends, self._has_begun = is_main_process() and process == "0", False
        self._lenient = Lenient()
        for each in self._watched:
            each.begin()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._sends and not self._has_begun:
            # Not earlier: only here it is known whether the training is resumed.
            self._has_begun = True
            resume = {"resume": self._recorded()} if epoch else {}
            name, args = self._name or str(self.model.name), self._arguments() or self._args
            self.run = started(name, args, {**resume, **self._options})
            if self.run is not None:
                expect_end(self.run, by_callback=True)
        else:
            self._save_written()  # by a callback behind this one in the list
        self._epoch = epoch
        self._write_record()

    @guarded
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self.run is None:
            return
        if kept := self._lenient.kept(logs or {}):
            self.run.log_metrics(kept, epoch=epoch)
        self._save_written()
        if self._saves and self._cadence.is_due:
            self._cadence.timed(self._save_model)
        self._write_record()
        if self.run.cancelled and not self.model.stop_training:
            _LOG.warning("run %s: the hub asks to stop the training", self.run.id)
            self.model.stop_training = True

    @guarded
    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self.run is None:
            return
        try:
            self._save_final()
        finally:
            run, self.run = self.run, None
            has_ended(run)
            run.finish(timeout=self._timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._leave(Departure("failed") if error is None else departure(error))

    # The run.

    @guarded
    def _arguments(self) -> dict[str, object]:
        """The arguments of `fit` and the optimizer, as far as Keras knows them."""
        params = {name: value for name, value in (self.params or {}).items() if name != "verbose"}
        optimizer = self.model.optimizer
        found = {"optimizer": optimizer.get_config()} if optimizer is not None else {}
        size = {"parameters": self.model.count_params()} if self.model.built else {}
        return {**params, **found, **size, **self._args}

    def _recorded(self) -> str | None:
        """The id of the run whose training is resumed; None where no record names it."""
        found = (read_record(each.folder, each.record).get("run") for each in self._watched)
        return next(filter(None, found), self._last_id)

    @guarded
    def _write_record(self) -> None:
        if self.run is None or self.run.id is None or self.run.id == self._last_id:
            return
        self._last_id = self.run.id
        for each in self._watched:
            each.folder.mkdir(parents=True, exist_ok=True)
            write_record(each.folder, {"run": self.run.id}, each.record)

    @guarded
    def _leave(self, how: Departure) -> None:
        """End the run of a training that did not reach its end, with the last checkpoint that it has written."""
        if self.run is None:
            return
        try:
            self._save_written(all=True)
        finally:
            run, self.run = self.run, None
            has_ended(run)
            run.finish(timeout=min(self._timeout, how.timeout), status=how.status, error=how.error)

    # Its checkpoints.

    @guarded
    def _save_written(self, *, all: bool = False) -> None:
        """Save what was written since the last time: what is due, or all."""
        for each in self._watched if self.run is not None else ():
            path = each.unsaved(self._epoch)
            if path is not None and (all or each.cadence.is_due):
                each.cadence.timed(partial(self._save, path, each.epoch, is_best=each.is_best))
                each.is_saved = True

    def _save_final(self) -> None:
        """Save what the training leaves: the best model that it has written, else the last one."""
        if self._saves:
            self._save_model(final=True)
            return
        for each in sorted(self._watched, key=lambda each: not each.is_best):
            path = each.unsaved(self._epoch) or each.newest()
            if path is not None and each.epoch is not None:
                self._save(path, each.epoch, final=True)
                return

    def _save_model(self, *, final: bool = False) -> None:
        with tempfile.TemporaryDirectory(prefix="hubqueue-keras-") as folder:
            path = Path(folder, "model.keras")
            self.model.save(path)
            self._save(path, self._epoch, final=final)

    def _save(self, path: Path, epoch: int | None, **kind: bool) -> None:
        if self.run is not None:
            self.run.save_checkpoint(path, epoch=epoch, **kind)
