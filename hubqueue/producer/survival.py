"""What a training run survives: trouble that is not its fault is logged, and the training continues."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hubqueue.config.home import Home
from hubqueue.config.reader import Config, parse
from hubqueue.domain.errors import (
    CheckpointUnreadable,
    HubqueueError,
    OutboxAlien,
    OutboxTooNew,
    OutboxUnavailable,
    SpoolError,
    WorkerError,
)

_T = TypeVar("_T")
_LOG = logging.getLogger("hubqueue")
_START = "start of the run"
_WORKER = "worker"
_CHECKPOINT = "checkpoint"
_NUMBERS = re.compile(r"[0-9]+")
# So many different troubles are told apart.
_KINDS = 50


def survive(what: str, act: Callable[[], _T], *, strict: bool) -> _T | None:
    """Do something that needs the storage; None when it failed and that was logged. With `strict` everything is raised."""
    return Survivor(strict=strict).attempt(what, act)


class Survivor:
    """Does what needs the storage. Trouble is logged once of each kind, then counted until it is over.

    With `strict` everything is raised. A wrong setting that shows at the start of a run (an outbox of another
    program or of a newer version) is raised always: only the caller can fix it.
    """

    def __init__(
        self,
        *,
        strict: bool,
        name: Callable[[], str | None] = lambda: None,
        hear: Callable[[BaseException], None] = lambda _error: None,
    ) -> None:
        self._strict, self._name, self._hear = strict, name, hear
        self._repeated: dict[tuple[str, str], int] = {}

    def attempt(self, what: str, act: Callable[[], _T]) -> _T | None:
        """Do something; None when it failed and that was logged or counted. `hear` is told of what was survived."""
        try:
            done = act()
        except (OutboxAlien, OutboxTooNew):
            raise
        except Exception as error:
            if self._strict:
                raise
            with contextlib.suppress(Exception):  # not even a log that cannot be written reaches the training
                self._hear(error)
                self._tell(what, error)
            return None
        with contextlib.suppress(Exception):
            self._heal(what)
        return done

    def _tell(self, what: str, error: Exception) -> None:
        if isinstance(error, CheckpointUnreadable):
            _LOG.warning("the checkpoint was not saved: %s%s", error, hint_of(error))
            return
        known = isinstance(error, HubqueueError | OSError)
        kind = (_part(error), _NUMBERS.sub("#", str(error)) if known else type(error).__name__)
        if kind in self._repeated or len(self._repeated) >= _KINDS:
            self._repeated[kind] = self._repeated.get(kind, 0) + 1
            return
        self._repeated[kind] = 0
        if not known:
            _LOG.error(
                "the %s could not be saved: a defect in hubqueue; the training continues",
                what,
                exc_info=error,
            )
        elif what == _START:
            _LOG.error("NOTHING of this run can be saved: %s%s", error, hint_of(error))
        elif isinstance(error, WorkerError):
            _LOG.warning("no worker could be started: %s%s", error, hint_of(error))
        else:
            _LOG.warning("the %s could not be saved yet: %s%s", what, error, hint_of(error))

    def _heal(self, what: str) -> None:
        if not self._repeated or what == _WORKER:
            return
        healed = ("storage", "spool") if what == _CHECKPOINT else ("storage",)
        over = [kind for kind in self._repeated if kind[0] in healed]
        if over:
            more = sum(self._repeated.pop(kind) for kind in over)
            again = f" ({more} more failures were not shown)" if more else ""
            _LOG.warning("run %s: saving works again%s", self._name(), again)


def settings_of(home: Home, config: str | os.PathLike[str] | None, *, strict: bool) -> Config:
    """The settings a training begins with. Where its home cannot be used or trusted, those of the environment alone.

    Nothing is read or written there until it is in order: opening the outbox fails for the same reason, which is
    survived and logged where it happens. With `strict` it is raised here. Raises `ConfigError` for what only the
    caller can fix.
    """
    try:
        return home.load_config(Path(config) if config is not None else None, os.environ)
    except OutboxUnavailable:
        if strict:
            raise
        return parse("", os.environ, source="the environment")


def hint_of(error: BaseException) -> str:
    """The hint of an error, to be put behind its message; empty where it has none."""
    hint = getattr(error, "hint", None)
    return f" ({hint})" if hint else ""


def _part(error: Exception) -> str:
    if isinstance(error, WorkerError):
        return "worker"
    return "spool" if isinstance(error, SpoolError) else "storage"
