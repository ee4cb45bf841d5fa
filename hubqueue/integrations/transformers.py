"""`HubqueueCallback`: sends the trainings of a `Trainer` of transformers.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[HubqueueCallback(destination="lab")])

Promises: what the trainer logs, and each checkpoint that it writes, is on disk when the callback returns, before `save_total_limit`
can delete it. A training that continues from a checkpoint in its folder continues its run. One that does not reach its end
has failed. Only the process of rank 0 sends. No error in here reaches the training, except a mistake in the options or the
configuration, at its start.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from hubqueue.domain.errors import InvalidArgument, InvalidModel
from hubqueue.domain.identifier import as_file
from hubqueue.integrations.framework import check_options, guarded, not_installed, started
from hubqueue.integrations.interruption import expect_end, has_ended
from hubqueue.integrations.record import read_record, write_record
from hubqueue.producer.called_with import run_name
from hubqueue.producer.ending.departure import Departure, departure
from hubqueue.producer.run import Run
from hubqueue.producer.survival import logger

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise not_installed("transformers", "transformers") from None

_LOG = logger()
# Seconds that the end of a failed training waits at most, and that of an evaluation after a training.
_BRIEF = 2.0
# Seconds between checks whether a destination has asked the training to stop.
_CHECK = 5.0


class HubqueueCallback(TrainerCallback):
    """Sends the trainings of one trainer. `run` is the run of the current training, None outside of one.

    `model_name` is the name of the model (default: that of its configuration, or its class), `args` are added to the
    arguments of the training. `timeout` is how many seconds its end waits for the uploads; the worker sends the rest. Without
    `checkpoints` only metrics are sent. `options` are those of `start_run`; `name` is by default the `run_name` of the training.
    As a context manager around `trainer.train()` it ends the run as soon as an exception leaves the block.
    Raises `InvalidArgument` for unknown options and `ConfigError` for a wrong configuration.
    """

    def __init__(
        self,
        model_name: str | None = None,
        *,
        args: Mapping[str, object] | None = None,
        timeout: float = 30.0,
        checkpoints: bool = True,
        **options: Any,
    ) -> None:
        check_options("HubqueueCallback", options)
        self.run: Run | None = None
        self._name, self._args, self._timeout = model_name, dict(args or {}), timeout
        self._checkpoints, self._options, self._check_at = checkpoints, options, 0.0
        self._started: tuple[str, Mapping[str, object], dict[str, Any]] = ("", {}, {})
        self._finished: str | None = None  # the run of the last training, if that has reached its end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._leave(departure(error) if error is not None else Departure("failed"))

    # In the order of a training.

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_others: Any) -> None:
        """Start the run, or continue that of the folder if the training continues from a checkpoint."""
        if not state.is_world_process_zero:
            return
        if self.run is not None and args.auto_find_batch_size and state.trial_params is None:
            return  # it begins again, with a smaller batch
        self._leave(Departure("failed"))  # an earlier training that did not reach its end
        self._finished = None
        self._begin(args, state, model)
        self._record(args, state)

    @guarded
    def on_step_end(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Stop a training when a destination has asked for that; of several processes, one cannot stop alone."""
        now = time.monotonic()
        if self.run is None or now < self._check_at or args.world_size > 1:
            return
        self._check_at = now + _CHECK
        if self.run.cancelled and not control.should_training_stop:
            _LOG.warning("run %s: the hub asks to stop the training", self.run.id)
            control.should_training_stop = True

    @guarded
    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_others: Any) -> None:
        """Save what the trainer logs, under its step. An evaluation after a training is added to the run of that."""
        if self.run is not None and logs:
            self.run.log_metrics(logs, step=state.global_step, epoch=_epoch(state))
        elif self._finished is not None and logs:
            name, arguments, options = self._started
            run = started(name, arguments, {**options, "resume": self._finished})
            if run is not None:
                run.log_metrics(logs, step=state.global_step, epoch=_epoch(state))
                run.finish(timeout=min(self._timeout, _BRIEF))

    @guarded
    def on_save(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Save a copy of the checkpoint, when each process has written its part."""
        if self._checkpoints and args.world_size > 1:
            args.distributed_state.wait_for_everyone()
        if not self._checkpoints or self.run is None:
            return
        is_best = state.best_global_step == state.global_step
        path, epoch = _checkpoint(args, state), _epoch(state)
        self.run.save_checkpoint(path, step=state.global_step, epoch=epoch, is_best=is_best)
        self._record(args, state)  # the storage may not have been there at the start

    @guarded
    def on_train_end(self, args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Finish the run."""
        if (run := self.run) is not None:
            self.run = None
            has_ended(run)
            run.finish(timeout=self._timeout)
            self._finished = run.id

    def _begin(self, args: Any, state: Any, model: Any) -> None:
        if (facts := self._facts(args, state, model)) is None:
            return
        name, arguments, options = facts
        try:
            self.run = started(name, arguments, options)
        except InvalidModel:
            if self._name is not None:
                raise
            self.run = started(name := as_file(name), arguments, options)
        self._started = (name, arguments, options)
        if self.run is not None:
            expect_end(self.run, by_callback=True)

    @guarded
    def _facts(self, args: Any, state: Any, model: Any) -> tuple[str, dict[str, object], dict[str, Any]]:
        """What the run is started with: the name of its model, its arguments, and the options of `start_run`."""
        continues = state.global_step > 0 and not state.is_hyper_param_search
        known = read_record(Path(args.output_dir)) if continues else {}
        loaded_from = getattr(getattr(model, "config", None), "_name_or_path", None)
        name = self._name or known.get("model") or str(loaded_from or type(model).__name__)
        # The trainer writes a text in place of each token, also if there is none.
        arguments = {key: value for key, value in args.to_dict().items() if not key.endswith("_token")}
        options = {"resume": known.get("run"), "name": _run_name(args, state), **self._options}
        return name, {**arguments, **(state.trial_params or {}), **self._args}, options

    @guarded
    def _record(self, args: Any, state: Any) -> None:
        if self.run is not None and not state.is_hyper_param_search:
            write_record(Path(args.output_dir), {"run": self.run.id, "model": self._started[0]})

    @guarded
    def _leave(self, how: Departure) -> None:
        """End the run of a training that did not reach its last callback."""
        run, self.run = self.run, None
        if run is not None:
            has_ended(run)
            run.finish(timeout=min(self._timeout, how.timeout, _BRIEF), status=how.status, error=how.error)


def _epoch(state: Any) -> int:
    """The number of the epoch that the step belongs to, from 0: a trainer's 1.0000000001 is the end of the first one."""
    return max(0, math.ceil(float(state.epoch or 0.0) - 1e-6) - 1)


def _run_name(args: Any, state: Any) -> str | None:
    """The name of the trial or of the training, if a run can have it: a path cannot be a name."""
    with suppress(InvalidArgument):
        return run_name(state.trial_name or args.run_name) or None
    return None


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder of the checkpoint that was just written. Each trial of a search has a folder of its own for them."""
    name = f"checkpoint-{state.global_step}"
    if state.is_hyper_param_search:
        # Nothing says which one that is, but a checkpoint has the parameters of its trial.
        states = sorted(Path(args.output_dir).glob(f"*/{name}/trainer_state.json"), key=os.path.getmtime)
        for each in reversed(states):
            if json.loads(each.read_text(encoding="utf-8")).get("trial_params") == state.trial_params:
                return each.parent
    return Path(args.output_dir, name)
