"""The checkpoints of a training: what a `ModelCheckpoint` has written is copied, before the framework removes it.

Promises: copies on the thread of the training take at most 5 % of its time. One that was not due is made at the end of the
training, if no newer one was made meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hubqueue.integrations.cadence import Cadence
from hubqueue.integrations.framework import guarded
from hubqueue.integrations.lightning.writes import CheckpointWrites
from hubqueue.integrations.record import write_record
from hubqueue.producer.run import Run


class Checkpoints:
    """Saves checkpoints to a run. `archive` saves one that is a folder as one tar."""

    def __init__(self, *, archive: bool) -> None:
        self._archive, self._noted = archive, ""
        # By whether it is the best one: when the next copy is due, and the newest copy that was not due.
        self._cadences = {False: Cadence(), True: Cadence()}
        self._skipped: dict[bool, tuple[str, Callable[[], object]]] = {}
        self._writes: CheckpointWrites | None = None

    def watch(self, io: Any) -> None:
        """Notice when the `CheckpointIO` of the trainer has written a file, if it writes on another thread."""
        if self._writes is None or self._writes.io is not io:
            self._writes = CheckpointWrites(io)

    def save(self, run: Run, saving: Any, *, epoch: int | None) -> None:
        """Save what a `ModelCheckpoint` has written, or has given to another thread to write. `epoch` counts from 0."""
        path, step = str(saving._last_checkpoint_saved), int(saving._last_global_step_saved)
        is_best = saving.monitor is not None and path == saving.best_model_path
        copy = partial(self._copy, run, path, epoch=epoch, step=step, is_best=is_best)
        if self._writes is not None and self._writes.defers(path, copy):
            return  # it costs the training no time
        if self._cadences[is_best].is_due:
            self._cadences[is_best].timed(copy)
            self._skipped.pop(is_best, None)
        else:
            self._skipped[is_best] = (path, copy)

    def complete(self, timeout: float) -> None:
        """Make the copies that are still to be made. Waits up to `timeout` seconds for files that are being written.

        The trainer itself waits for these files, too, but after an exception only when the run has ended.
        """
        if self._writes is not None:
            self._writes.wait(timeout)
        for path, copy in self._skipped.values():
            if os.path.exists(path):
                copy()
        self._skipped.clear()

    @guarded
    def _copy(self, run: Run, path: str, *, epoch: int | None, step: int, is_best: bool) -> None:
        run.save_checkpoint(path, epoch=epoch, step=step, is_best=is_best, archive=self._archive)
        folder = os.path.dirname(path)
        if run.id is not None and self._noted != folder + run.id:
            self._noted = folder + run.id
            write_record(Path(folder), {"run": run.id})

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        return {**vars(self), "_skipped": {}, "_writes": None}
