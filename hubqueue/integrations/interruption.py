"""Trainings that end before the last callback of their framework, which tells its callbacks nothing about that.

Promises: the run of such a training is `failed`, not `finished`, even if the script has caught the exception and reaches its
end. It is `failed`, not `interrupted`, if a launcher (torchrun, `accelerate launch`) ends this process because another rank has
died. The end of the process is delayed by two seconds at most. A forked child ends no run, and has the usual signals.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType

from hubqueue.producer.run import Run
from hubqueue.producer.survival import logger

_LOG = logger()
# Seconds to record an end, and those that the process waits for it.
_TO_RECORD, _LONGEST = 1.0, 2.0
_UNREACHED = "the training did not reach its end"
_SEVERAL = ("TORCHELASTIC_RUN_ID", "LOCAL_RANK")

# The runs of this process, and whether only the framework's last callback can finish them.
_TRAINING: list[tuple[Run, bool]] = []


def expect_end(run: Run, *, by_callback: bool) -> None:
    """From now on, the end of the process ends this run as failed, if a signal of the launcher is the reason.

    With `by_callback` it is also failed if the script reaches its end. If not, the run has finished then, as any run.
    """
    has_ended(run)
    _TRAINING.append((run, by_callback))
    _watch_launcher()


def has_ended(run: Run) -> None:
    """The run has ended, also that of an earlier training which this one has continued; nothing is left to do for it."""
    same = run.id
    _TRAINING[:] = [each for each in _TRAINING if each[0] is not run and (same is None or each[0].id != same)]


def _at_exit() -> None:
    """Before the callback of the producer, which knows the exception that nobody has caught, and writes it to the run."""
    uncaught = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if uncaught is None and not hasattr(sys, "ps1"):
        _fail([run for run, by_callback in _TRAINING if by_callback], _UNREACHED)


def _watch_launcher() -> None:
    if not any(name in os.environ for name in _SEVERAL):
        return
    # Only the main thread may set a handler, and one that somebody else has set stays.
    with suppress(ValueError):
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminated)


def _terminated(number: int, _frame: FrameType | None) -> None:
    _fail([run for run, _ in _TRAINING], signal.Signals(number).name)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _fail(runs: list[Run], reason: str) -> None:
    """Record the ends on a thread: the interrupted code may hold a lock, and a disk may not respond."""
    if not runs:
        return

    def record() -> None:
        for run in runs:
            try:
                run.finish(timeout=_TO_RECORD / len(runs), status="failed", error=reason)
            except Exception:
                _LOG.exception("run %s could not be marked as failed", run.id)

    thread = threading.Thread(target=record, name="hubqueue-failed", daemon=True)
    with suppress(RuntimeError):  # too late for a thread
        thread.start()
        thread.join(_LONGEST)


def _after_fork_in_child() -> None:
    _TRAINING.clear()
    with suppress(ValueError):
        if signal.getsignal(signal.SIGTERM) is _terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
