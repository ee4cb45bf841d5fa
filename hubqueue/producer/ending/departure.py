"""How a training ended whose script has not called `finish`: what the way out of a block or a process says about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hubqueue.domain.plain import text_of
from hubqueue.domain.redact import clean

# Seconds that `finish` waits after Ctrl-C, or when a task is cancelled: the person or the event loop waits for it.
_BRIEF = 1.0
_USUAL = 30.0
_LONGEST_TEXT = 200


@dataclass(frozen=True, slots=True)
class Departure:
    """How a block or a process was left: the state of its training, the reason of a failed one, and how long to wait.

    It is not `certain` where only the exit code of the process, which is unknown before its very end, says whether it failed.
    """

    status: Literal["finished", "failed"] = "finished"
    error: str | None = None
    timeout: float = _USUAL
    certain: bool = True


def departure(error: BaseException | None) -> Departure:
    """How a training ended whose block or process was left by `error`, or (None) by reaching its end.

    An exit with code 0 is no failure: that of `sys.exit()`, or of a command line's own exception with an `exit_code`.
    """
    if error is None:
        return Departure()
    name = type(error).__name__
    if isinstance(error, SystemExit):
        if error.code is None or (isinstance(error.code, int) and error.code == 0):
            return Departure()
        return Departure("failed", clean(f"{name}: {text_of(error.code)}", limit=_LONGEST_TEXT))
    if isinstance(error, Exception):
        code = getattr(error, "exit_code", None)
        return Departure() if isinstance(code, int) and code == 0 else Departure("failed", name)
    # KeyboardInterrupt, GeneratorExit, asyncio.CancelledError and their like.
    return Departure("failed", name, _BRIEF)
