"""What a training run survives: trouble that is not its fault is logged, and the training goes on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hubqueue.config import Config, parse
from hubqueue.errors import (
    CheckpointUnreadable,
    HubqueueError,
    OutboxAlien,
    OutboxTooNew,
    OutboxUnavailable,
)
from hubqueue.home import Home

_T = TypeVar("_T")
_LOG = logging.getLogger("hubqueue")


def survive(what: str, act: Callable[[], _T], *, strict: bool) -> _T | None:
    """Do something that needs the storage; None when it failed and that was logged.

    With `strict` everything is raised. A wrong setting that shows at the start of a run (an outbox of another
    program or of a newer version) is raised always: only the caller can mend it.
    """
    try:
        return act()
    except (OutboxAlien, OutboxTooNew):
        raise
    except CheckpointUnreadable as error:
        if strict:
            raise
        _LOG.warning("the checkpoint was not saved: %s%s", error, hint_of(error))
    except (HubqueueError, OSError) as error:
        if strict:
            raise
        _LOG.warning("the %s could not be saved yet: %s%s", what, error, hint_of(error))
    except Exception:
        if strict:
            raise
        _LOG.exception("the %s could not be saved: a defect in hubqueue; the training goes on", what)
    return None


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
