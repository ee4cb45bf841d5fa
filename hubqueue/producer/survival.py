"""Errors that must not stop a training: they are logged, and the training continues."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from hubqueue.domain.errors import (
    CheckpointUnreadable,
    HubqueueError,
    OutboxAlien,
    OutboxTooNew,
    SpoolError,
    WorkerError,
)

_T = TypeVar("_T")


class _Safe(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods never raise.

    A handler may raise: that of Python itself does when stderr was closed (`sys.stderr.close()`, some launchers).
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the record names the caller, not this file
        with contextlib.suppress(Exception):
            super().log(level, msg, *args, **kwargs)


def logger() -> logging.LoggerAdapter[logging.Logger]:
    """The logger of hubqueue; its methods never raise."""
    return _Safe(logging.getLogger("hubqueue"), {})


_LOG = logger()
_START = "start of the run"
_WORKER = "worker"
COPY = "copy of a checkpoint"
"""What is attempted when only the spool is needed, not the database."""
_NUMBERS = re.compile(r"[0-9]+")
# The number of different errors that are logged separately.
_KINDS = 50


def survive(what: str, act: Callable[[], _T], *, strict: bool) -> _T | None:
    """Call `act`, which needs the storage; return None when it failed and was logged. With `strict`, raise instead."""
    return Survivor(strict=strict).attempt(what, act)


class Survivor:
    """Calls functions that need the storage. Each kind of error is logged once, then counted until saving works again.

    With `strict` every error is raised. An outbox of another program or of a newer version is always raised, because
    only the caller can fix it. `name` returns the run's id for log lines. `note` is called with each error not raised.
    `family` has the survivors of the training's other destinations: an error that they share is logged once.
    """

    def __init__(
        self,
        *,
        strict: bool,
        name: Callable[[], str | None] = lambda: None,
        note: Callable[[BaseException], None] = lambda _error: None,
        family: list[Survivor] | None = None,
    ) -> None:
        self._strict, self._name, self._note = strict, name, note
        self._repeated: dict[tuple[str, str], int] = {}
        self._family = [] if family is None else family
        self._family.append(self)

    def attempt(self, what: str, act: Callable[[], _T]) -> _T | None:
        """Call `act`; return None when it failed and the error was logged or counted."""
        try:
            done = act()
        except (OutboxAlien, OutboxTooNew):
            raise
        except Exception as error:
            if self._strict:
                raise
            # A log that cannot be written must not stop the training either.
            with contextlib.suppress(Exception):
                self._note(error)
                self._log(what, error)
            return None
        with contextlib.suppress(Exception):
            self._log_recovery(what)
        return done

    def _log(self, what: str, error: Exception) -> None:
        if isinstance(error, CheckpointUnreadable):
            _LOG.warning("the checkpoint was not saved: %s%s", error, hint_of(error))
            return
        known = isinstance(error, HubqueueError | OSError)
        kind = (_part(error), _NUMBERS.sub("#", str(error)) if known else type(error).__name__)
        if kind in self._repeated or len(self._repeated) >= _KINDS:
            self._repeated[kind] = self._repeated.get(kind, 0) + 1
            return
        is_logged = any(kind in each._repeated for each in self._family)
        self._repeated[kind] = 1 if is_logged else 0
        if is_logged:
            return
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

    def _log_recovery(self, what: str) -> None:
        if not self._repeated or what == _WORKER:
            return
        recovered = "spool" if what == COPY else "storage"
        over = [kind for kind in self._repeated if kind[0] == recovered]
        if over:
            more = sum(self._repeated.pop(kind) for kind in over)
            still = next((each for each in self._family if over[0] in each._repeated), None)
            if still is not None:  # its recovery is logged
                still._repeated[over[0]] += more
                return
            again = f" ({more} more failures were not shown)" if more else ""
            _LOG.warning("run %s: saving works again%s", self._name(), again)


def hint_of(error: BaseException) -> str:
    """The hint of an error in brackets, to append to its message; empty without a hint."""
    hint = getattr(error, "hint", None)
    return f" ({hint})" if hint else ""


def _part(error: Exception) -> str:
    if isinstance(error, WorkerError):
        return "worker"
    return "spool" if isinstance(error, SpoolError) else "storage"
