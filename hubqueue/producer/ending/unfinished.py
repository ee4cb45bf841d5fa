"""The end of a process that has not finished its runs: an `atexit` callback records how the training ended.

A script that reaches its end has finished; an exception that nobody catches has failed. Promises: the callback takes at
most about a second, never raises, and does nothing in a forked child. A notebook or an interactive interpreter is closed
by a person, at any point of a training: there the callback only saves, and the run counts as interrupted.

The exit code is unknown to a callback. Where the C library reports it (see `outbox/exits.py`), a worker corrects the state
after `sys.exit(3)`; elsewhere such a script has finished.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hubqueue.domain.errors import HubqueueError
from hubqueue.outbox import exits
from hubqueue.outbox.database.patience import impatient
from hubqueue.producer.ending.departure import Departure, departure
from hubqueue.producer.saving import Saving

# Seconds for all runs together, and for each wait on another writer.
_LONGEST = 1.0
_PATIENCE = 0.25

_UNFINISHED: dict[int, _Unfinished] = {}
# The runs that the script has no reference to any more.
_DROPPED: list[_Unfinished] = []
# The exception that was printed before the first run, by its id: it says nothing about the end.
_KNOWN: list[int] = []
_NUMBERS = itertools.count()
# The processes of `multiprocessing` that have their callback.
_WATCHED: list[int] = []


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """A run that was started here and has not ended; `number` rises from run to run, and is that of all its destinations."""

    saving: Saving
    number: int


def expect_end(run: object, savings: Iterable[Saving], number: int | None = None) -> int:
    """From now on, the end of the process ends this run. Returns its number, for its further destinations."""
    if not _KNOWN:
        _KNOWN.append(id(_printed()))
    number = next(_NUMBERS) if number is None else number
    for saving in savings:
        unfinished = _UNFINISHED[id(saving)] = _Unfinished(saving, number)
        # The garbage collector calls this at any moment, so that it must not do more.
        weakref.finalize(run, _DROPPED.append, unfinished).atexit = False
    abandon_dropped()
    _watch_child()
    return number


def abandon_dropped() -> None:
    """Do not count any more as a process of the runs that the script has dropped, if it has started another one since.

    Nobody can log to them, so that they must not look like running ones. They end with the process nevertheless. Never raises.
    """
    if not _DROPPED:
        return
    newest = max((each.number for each in list(_UNFINISHED.values())), default=-1)
    for each in [each for each in list(_DROPPED) if each.number < newest]:
        # Another thread was first, or a lock cannot be released.
        with suppress(ValueError, HubqueueError, OSError):
            _DROPPED.remove(each)
            if each.saving.ended is None:
                each.saving.opening.leave()
                each.saving.opening.give_back()


def has_ended(saving: Saving) -> None:
    """The run has ended; nothing is left to do for it."""
    _UNFINISHED.pop(id(saving), None)


def _at_exit() -> None:
    if _UNFINISHED:
        uncaught = _uncaught()
        how = replace(departure(uncaught), certain=uncaught is not None or not exits.can_report())
        _end_all(None if _is_interactive() else how)


def _at_exit_of_child() -> None:
    """In a process of `multiprocessing`, which ends without `atexit`: its exception is known here, if there is one."""
    _end_all(departure(sys.exc_info()[1]))


def _end_all(how: Departure | None) -> None:
    runs = [each.saving for each in reversed(_UNFINISHED.values())]
    _UNFINISHED.clear()
    deadline = time.monotonic() + _LONGEST

    def end() -> None:
        depend: dict[Path, list[str]] = {}
        with impatient(_PATIENCE):
            for saving in runs:
                outbox, run_id = saving.opening.outbox, saving.opening.run_id
                if time.monotonic() < deadline and saving.leave(how) and outbox is not None and run_id:
                    depend.setdefault(outbox.home.locks, []).append(run_id)
        for folder, run_ids in depend.items():
            with suppress(OSError):
                exits.report(folder, run_ids)

    # On a thread: a disk that does not respond must not keep the process from ending.
    thread = threading.Thread(target=end, name="hubqueue-end", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # too late for a thread in some versions of Python
        end()
    else:
        thread.join(_LONGEST)


def _uncaught() -> BaseException | None:
    """The exception that ends this process, as the interpreter has printed it; None without one."""
    found = _printed()
    if found is None or id(found) in _KNOWN:
        return None
    trace = found.__traceback__
    # One that a callback of a main loop had printed began above other frames.
    return found if trace is None or trace.tb_frame.f_back is None else None


def _printed() -> BaseException | None:
    found = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return found if isinstance(found, BaseException) else None


def _is_interactive() -> bool:
    """Whether a person types the code. IPython sets `ps1` too, also in a notebook; a script may import its modules."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


def _watch_child() -> None:
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None and os.getpid() not in _WATCHED:
        from multiprocessing.util import Finalize

        _WATCHED.append(os.getpid())
        Finalize(None, _at_exit_of_child, exitpriority=0)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_UNFINISHED.clear)
