"""What a training run survives: trouble that is not its fault is logged, and the training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from hubqueue.errors import CheckpointUnreadable, HubqueueError, OutboxAlien, OutboxTooNew

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


def hint_of(error: BaseException) -> str:
    """The hint of an error, to be put behind its message; empty where it has none."""
    hint = getattr(error, "hint", None)
    return f" ({hint})" if hint else ""
