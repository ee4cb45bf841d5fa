"""`HubqueueTracker`: sends what a training loop with accelerate logs, and its checkpoints.

    tracker = HubqueueTracker("resnet50", destination="lab")
    accelerator = Accelerator(log_with=tracker)
    accelerator.register_for_checkpointing(tracker)  # a resumed training continues its run
    accelerator.init_trackers("project", config={"lr": 0.1})
    accelerator.log({"loss": 0.3}, step=1)
    accelerator.save_state("checkpoint")
    accelerator.wait_for_everyone()
    tracker.save_checkpoint("checkpoint", step=1)
    accelerator.end_training()

Promises: what is logged or saved is on disk when the call returns. Only the main process sends. No error in here reaches the
training, except a mistake in the options or the configuration, in `HubqueueTracker(…)` and in `init_trackers`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hubqueue.config.home import Home
from hubqueue.integrations.framework import check_options, guarded, not_installed, started
from hubqueue.integrations.interruption import expect_end, has_ended
from hubqueue.producer.called_with import destination_names
from hubqueue.producer.run import Run
from hubqueue.producer.startup.wanted import Wanted
from hubqueue.producer.survival import logger

try:
    from accelerate.state import PartialState
    from accelerate.tracking import GeneralTracker, on_main_process
except ModuleNotFoundError as error:
    if error.name != "accelerate":
        raise
    raise not_installed("accelerate", "accelerate") from None

_LOG = logger()


class HubqueueTracker(GeneralTracker):
    """Give it to `Accelerator(log_with=…)`. `run` is the run of the training, None before its first value or checkpoint.

    `model_name` is the name of the model, `args` are added to the `config` of `init_trackers`. `timeout` is how many seconds
    `end_training` waits for the uploads; the worker sends the rest. `options` are those of `start_run`.

    The run begins with the first value or checkpoint: until then, `load_state` may say which run is continued. Without
    `end_training` it ends with the script, as every run does.

    Raises `InvalidArgument` for unknown options and `ConfigError` for a wrong configuration.
    """

    name = "hubqueue"
    requires_logging_directory = False
    main_process_only = True

    def __init__(
        self,
        model_name: str,
        *,
        args: Mapping[str, object] | None = None,
        timeout: float = 30.0,
        **options: Any,
    ) -> None:
        super().__init__()
        check_options("HubqueueTracker", options)
        self.run: Run | None = None
        self._name, self._args, self._timeout, self._options = model_name, dict(args or {}), timeout, options
        self._config: dict[str, object] = {}
        self._has_begun = False
        self._resume: str | None = None
        self._step = -1  # the newest one

    @property
    def tracker(self) -> Run | None:
        """The run, started if it was not yet; None in other processes than the main one."""
        self._begin()
        return self.run

    # In the order of a training.

    @on_main_process  # type: ignore[untyped-decorator]
    def start(self) -> None:
        """Check what the run will be started with. Raises `InvalidModel` and `ConfigError`."""
        home, names = (
            Home.locate(self._options.get("home")),
            destination_names(self._options.get("destination")),
        )
        Wanted(home, self._options.get("config"), self._name, {}, names, None).start(strict=False)

    @guarded
    @on_main_process  # type: ignore[untyped-decorator]
    def store_init_configuration(self, values: Mapping[str, object]) -> None:
        """Keep the arguments of the training, for the start of its run."""
        self._config.update(values)

    @guarded
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the run of a checkpoint. `accelerator.load_state` calls it, if the tracker is registered."""
        if self._has_begun:
            _LOG.warning(
                "load_state was called after the first value was logged: the run of the checkpoint is not continued"
            )
            return
        self._resume, self._step = state.get("run"), int(state.get("step", -1))

    @guarded
    @on_main_process  # type: ignore[untyped-decorator]
    def log(
        self,
        values: Mapping[str, object],
        step: int | None = None,
        *,
        epoch: int | None = None,
        **_others: Any,
    ) -> None:
        """Save the values of a step (default: the one after the newest). `epoch` comes from `log_kwargs` of `accelerator.log`."""
        self._begin()
        self._step = self._step + 1 if step is None else int(step)
        if self.run is not None:
            self.run.log_metrics(values, step=self._step, epoch=epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must have, so that a resumed training continues this run. `accelerator.save_state` calls it."""
        self._begin()
        return {"run": self._resume if self.run is None else self.run.id, "step": self._step}

    @guarded
    @on_main_process  # type: ignore[untyped-decorator]
    def save_checkpoint(
        self,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        epoch: int | None = None,
        is_best: bool = False,
        final: bool = False,
        archive: bool = False,
    ) -> None:
        """Save a copy of a checkpoint, a file or a folder, as `Run.save_checkpoint` does; `step` is by default the newest one.

        Every process may call it, after `accelerator.wait_for_everyone()`: each of them writes a part of `save_state`.
        """
        self._begin()
        at = max(0, self._step) if step is None else int(step)
        if self.run is not None:
            self.run.save_checkpoint(
                path, step=at, epoch=epoch, is_best=is_best, final=final, archive=archive
            )

    @guarded
    @on_main_process  # type: ignore[untyped-decorator]
    def finish(self) -> None:
        """Finish the run. `accelerator.end_training` calls it."""
        if self.run is not None:
            has_ended(self.run)
            self.run.finish(timeout=self._timeout)

    @guarded
    def _begin(self) -> None:
        if self._has_begun or not PartialState().is_main_process:
            return
        self._has_begun = True
        options = {"resume": self._resume, **self._options}
        self.run = started(self._name, {**self._config, **self._args}, options)
        if self.run is not None:
            expect_end(self.run, by_callback=False)
