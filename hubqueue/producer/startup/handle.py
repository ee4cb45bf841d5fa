"""A pickled run: how another process (multiprocessing with spawn, joblib, a cluster) continues it.

Promises: a handle contains no key, no argument of the training and no setting. Unpickling reads nothing and never fails
because of the storage. The run is continued only in the outbox it is in: no outbox and no run is made for a handle.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from hubqueue.config.config import Config
from hubqueue.config.home import Home
from hubqueue.config.registry import declaration
from hubqueue.config.settings import DestinationSettings
from hubqueue.domain.errors import OutboxUnavailable, RunFinished
from hubqueue.domain.identifier import Identifier
from hubqueue.domain.lifecycle import RunState
from hubqueue.outbox.outbox import Outbox
from hubqueue.producer.startup.wanted import Start

_ENDED = (RunState.FINISHED, RunState.FAILED)


@dataclass(frozen=True, slots=True)
class RunHandle:
    """The run at one destination. `run_id` is None for a run that was not saved yet."""

    run_id: str | None
    destination: str
    type: str


@dataclass(frozen=True, slots=True)
class Handle:
    """What is pickled: the run at each destination. `made_by` names the process and its object."""

    home: str
    config: str | None
    runs: tuple[RunHandle, ...]
    strict: bool
    made_by: tuple[int, int]

    def start(self) -> Start:
        """A preliminary start: the settings are read at the first use."""
        first, *further = (self._start_of(each) for each in self.runs)
        return replace(first, further=tuple(further))

    def _start_of(self, run: RunHandle) -> Start:
        return Start(
            Home(Path(self.home)),
            Config(),
            _target(run, Config()),
            Identifier(filename="model.pt"),
            {},
            run.run_id,
            again=lambda: self._read(run),
            is_joined=True,
        )

    def _read(self, run: RunHandle) -> Start:
        chosen = None if self.config is None else Path(self.config)
        start = self._start_of(run)
        settings = start.home.load_config(chosen, os.environ)
        return replace(start, config=settings, destination=_target(run, settings), again=None)


def _target(run: RunHandle, settings: Config) -> DestinationSettings:
    known = settings.destinations.get(run.destination)
    return known or declaration(run.type).settings(run.destination, run.type)


def refuse_new_outbox(start: Start) -> None:
    """Raise `OutboxUnavailable` if a handle would make the outbox of its run."""
    if not start.config.outbox.url and not start.home.outbox.exists():
        hint = "a pickled run is continued only where its home is"
        raise OutboxUnavailable(f"the outbox of a pickled run is not here: {start.home.outbox}", hint=hint)


def join(outbox: Outbox, run_id: str | None) -> str:
    """The id of the run of a handle. Raises `OutboxUnavailable` if it is not in the outbox, `RunFinished` if it has ended."""
    if run_id is None:
        hint = "pickle a run after its start was saved: when its id is not None"
        raise OutboxUnavailable("a run was pickled before it was saved", hint=hint)
    row = outbox.stats.run(run_id)
    if row is None:
        hint = "a pickled run is continued only in its own outbox"
        raise OutboxUnavailable(f"a pickled run is not in this outbox: {run_id}", hint=hint)
    if row["state"] in _ENDED:
        raise RunFinished(f"run {run_id} is {row['state']}", hint="start another: hubqueue.start_run")
    return run_id
