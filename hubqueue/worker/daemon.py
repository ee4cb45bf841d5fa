"""The detached worker: started by a training process, outlives it, one for each address and account.

It is a process in a session of its own, with its output in `worker.log`. Promises: only a program that is certainly a
Python with this hubqueue is started. The worker is as isolated from its environment as the process that starts it. A
worker that ends at once is reported once, and the next one is started only after a wait. Keys reach the worker through
its environment or `credentials.toml`, never through its arguments.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubqueue import __about__
from hubqueue.config.home import Home, open_private
from hubqueue.domain.errors import WorkerError
from hubqueue.outbox.locks import is_held, serving, waiting

_LOG = logging.getLogger("hubqueue")
# In the environment of each worker. A process that has it and would start a worker is no Python: a program that was
# mistaken for one.
_GUARD = "HUBQUEUE_IS_WORKER"
_PYTHON = re.compile(
    r"\.?(python|pypy|graalpy)w?[0-9.]*([td]|-dbg|-debug|-intel64|-wrapped)*(\.exe)?", re.IGNORECASE
)
_BY_HAND = "start one by hand: hubqueue worker"
_SILENT = "it wrote nothing"
# A line that a worker has logged; other lines are the output of an error that ended it.
_LOGGED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]+Z [A-Z]+ ")
# Packages that a process with an outbox has loaded.
_LOADED = ("sqlalchemy", "filelock")
# What the new process executes. It is valid for any version of Python. hubqueue itself comes from where this process has it,
# and its folder shadows nothing else. The folder that the process is started in is not searched.
_BEGIN = """
import importlib, sys, typing
tag = getattr(getattr(sys, "implementation", None), "cache_tag", sys.version)
if tag != {tag!r}:
    sys.exit("error: %s is not the Python of the training: %s, not %s" % ({python!r}, tag, {tag!r}))
sys.path[:] = [each for each in sys.path if each]
sys.path.insert(0, {root!r})
import hubqueue
del sys.path[0]
own = [at for at, each in enumerate(sys.path) if each.endswith(("site-packages", "dist-packages"))]
at = own[0] if own else len(sys.path)
sys.path[at:at] = [each for each in {first!r} if each not in sys.path]
sys.path += [each for each in {last!r} if each not in sys.path]
from hubqueue.__main__ import main
main()
"""
# In seconds. A worker that ends within `_AT_ONCE` has ended at once; the wait for the next one doubles each time.
_AT_ONCE = 60.0
_TO_BEGIN = 60.0
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0
_TAIL = 4096


@dataclass(slots=True)
class _Started:
    """A worker that this process started, for the runs of a row of `destinations`."""

    home: Path
    destination: str
    child: subprocess.Popen[bytes]
    at: float
    is_reported: bool = False


@dataclass(slots=True)
class _Wait:
    """Until when no further worker is started, and how many ended at once before."""

    until: float
    deaths: int


# Kept and polled, so that a worker that has ended does not remain as a zombie.
_STARTED: list[_Started] = []
_WAITS: dict[tuple[Path, str], _Wait] = {}
_REFUSED: set[Path] = set()


def worker_lives(home: Home, destination: str | None = None) -> bool:
    """Whether a worker of this home is alive, detached or not, that serves or watches a row of `destinations` (None: any)."""
    if destination is not None:
        return is_held(serving(home.locks, destination)) or is_held(waiting(home.locks, destination))
    return any(is_held(path) for path in home.locks.glob("worker-*.lock"))


def start_worker(home: Home, *, config: str | None = None) -> None:
    """Start a detached worker with this environment. Raises `WorkerError`."""
    _start(home, "", config)


def ensure_worker(home: Home, destination: str, *, config: str | None = None) -> bool:
    """Start a detached worker with this environment unless a living one sends for a row of `destinations`.

    Returns whether one was started. Does not wait for it: the new worker exits at once if others already serve all of
    its rows. Raises `WorkerError` when no process can be started (only once, if that cannot change).
    """
    if worker_lives(home, destination):
        return False
    return _start(home, destination, config)


def _start(home: Home, destination: str, config: str | None) -> bool:
    """Start a worker for the runs of a row of `destinations`.

    False when one was started a moment ago, or one has ended at once and the wait is not over, or when none can be
    started and that was reported already. Raises `WorkerError`.
    """
    _reap()
    wait = _WAITS.get((home.path, destination))
    if home.path in _REFUSED or (wait is not None and time.monotonic() < wait.until):
        return False
    begun = [each for each in _STARTED if (each.home, each.destination) == (home.path, destination)]
    if begun:
        for each in begun:
            _report_hanging(each)
        return False  # it is still starting, or is no worker: another one would be the same
    refusal = _why_not()
    if refusal:
        _REFUSED.add(home.path)
        raise WorkerError(refusal, hint=_BY_HAND)
    if not os.access(sys.executable, os.X_OK):  # an environment that is being replaced
        raise WorkerError(f"cannot start a worker: {sys.executable} is not there now", hint=_BY_HAND)
    try:
        log = open_private(home.worker_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            child = subprocess.Popen(
                _command(home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=home.path,
                env=_environment(config),
                start_new_session=True,
                close_fds=True,
            )
        finally:
            os.close(log)
    except OSError as error:
        raise WorkerError(f"cannot start a worker: {error.strerror or error}", hint=_BY_HAND) from error
    _STARTED.append(_Started(home.path, destination, child, time.monotonic()))
    return True


def _report_hanging(started: _Started) -> None:
    """Report, once, a process that lives and is no worker after a long time."""
    if time.monotonic() - started.at > _TO_BEGIN and not started.is_reported:
        started.is_reported = True
        hint = "end it, and see worker.log in the home"
        _LOG.error("the worker has not started: process %d hangs (%s)", started.child.pid, hint)


def _reap() -> None:
    """Remove the workers that have ended, and report one that ended at once without being stopped."""
    for each in list(_STARTED):
        code, key = each.child.poll(), (each.home, each.destination)
        if code is None:
            if time.monotonic() - each.at > _AT_ONCE:
                _WAITS.pop(key, None)
            continue
        _STARTED.remove(each)
        stopped = code in (0, -signal.SIGTERM, -getattr(signal, "SIGKILL", signal.SIGTERM))
        if stopped or time.monotonic() - each.at > _AT_ONCE:
            continue
        deaths = _WAITS[key].deaths if key in _WAITS else 0
        wait = min(_FIRST_WAIT * 2**deaths, _LONGEST_WAIT)
        _WAITS[key] = _Wait(time.monotonic() + wait, deaths + 1)
        if not deaths:
            message = "the worker ended at once (exit code %d): %s; everything is kept, and another one is started later"
            hint = "hubqueue check finds out why"
            _LOG.error(f"{message} (%s)", code, _last_line(each.home / "worker.log") or _SILENT, hint)


def _why_not() -> str | None:
    """Why this process may not start a worker; None when it may."""
    if os.environ.get(_GUARD):
        return "this process was itself started as a worker"
    if getattr(sys, "frozen", False):
        return "this is a frozen program, which cannot start a Python"
    if not sys.executable:
        return "this Python does not know its own executable"
    if not _PYTHON.fullmatch(Path(sys.executable).name):
        return f"{sys.executable} may not be a Python"
    return None


def last_failure(home: Home) -> str | None:
    """Why the last worker of a home ended, if an error ended it: the last line of its log. None if a worker lives."""
    if worker_lives(home):
        return None
    line = _last_line(home.worker_log)
    return None if line is None or _LOGGED.match(line) else line


def _command(home: Home) -> list[str]:
    begin = _BEGIN.format(
        python=sys.executable,
        tag=sys.implementation.cache_tag,
        root=str(Path(__about__.__file__).absolute().parents[1]),
        first=list(_dependencies()),
        last=list(_module_paths()),
    )
    return [sys.executable, *_isolation(), "-c", begin, "--home", str(home.path), "worker", "--detached"]


def _isolation() -> list[str]:
    """The flags with which this interpreter ignores module paths of its environment or its user."""
    flags = sys.flags
    if flags.isolated:
        return ["-I", *(["-S"] if flags.no_site else [])]
    found = [("-E", flags.ignore_environment), ("-s", flags.no_user_site), ("-S", flags.no_site)]
    return [flag for flag, is_set in found if is_set]


def _dependencies() -> Iterator[str]:
    """Where this process has found what hubqueue needs: the worker's own packages may be too old, or none."""
    for name in _LOADED:
        for folder in getattr(sys.modules.get(name), "__path__", ()):
            yield os.path.dirname(os.path.abspath(folder))


def _module_paths() -> Iterator[str]:
    """Where this process finds modules, except the folder of the script and the one it was started in.

    Appended to the worker's own `sys.path`: they fill gaps (a zipapp, a changed `sys.path`), and shadow nothing.
    """
    for each in sys.path:
        if os.path.isabs(each) and os.path.exists(each) and not _is_a_script_folder(each):
            yield each


def _is_a_script_folder(path: str) -> bool:
    """Whether this is the folder of the script, or the one it was started in: their modules are not the worker's."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    folders = [os.curdir, *([os.path.dirname(script) or os.curdir] if script else [])]
    with contextlib.suppress(OSError):  # a deleted folder
        return os.path.realpath(path) in map(os.path.realpath, folders)
    return False


def _environment(config: str | None) -> dict[str, str]:
    environ = {**os.environ, _GUARD: "1"}
    named = config or environ.get("HUBQUEUE_CONFIG")
    if named:  # the worker runs in the home, where a relative path would be another file
        environ["HUBQUEUE_CONFIG"] = _absolute(named)
    paths = environ.pop("PYTHONPATH", "").split(os.pathsep)
    kept = [_absolute(path) for path in paths if path and not _is_a_script_folder(path)]
    if kept and not _isolation():
        environ["PYTHONPATH"] = os.pathsep.join(kept)
    return environ


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # the working directory was deleted: then nothing is found there
        return path


def _last_line(log: Path) -> str | None:
    try:
        with os.fdopen(open_private(log, os.O_RDONLY), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    found = (line.strip() for line in reversed(lines))
    return next((line for line in found if line and not line.startswith("hint:")), None)
