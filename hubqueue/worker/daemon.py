"""The detached worker: started by a training process, alive after it, one for each address and account.

It is a process of its own session with its output in `worker.log`. Promises: nothing is started that is not certainly a
Python with this hubqueue; the worker is as isolated from its environment as the process that starts it; a worker that ends
at once is reported once, and followed by the next one only after a while. Keys reach it through its environment or
`credentials.toml`, never through its arguments.
"""

from __future__ import annotations

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
# In the environment of each worker: whoever has it and would start one is a program that was taken for a Python.
_GUARD = "HUBQUEUE_IS_WORKER"
_PYTHON = re.compile(
    r"\.?(python|pypy|graalpy)w?[0-9.]*([td]|-dbg|-debug|-intel64|-wrapped)*(\.exe)?", re.IGNORECASE
)
_BY_HAND = "start one by hand: hubqueue worker"
# One that ends within this time has ended at once; the next one waits, each time twice as long.
_AT_ONCE = 60.0
_TO_BEGIN = 3.0
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0
_TAIL = 4096


@dataclass(slots=True)
class _Started:
    """A worker that this process has started, for the runs of a row of `destinations`."""

    home: Path
    destination: str
    child: subprocess.Popen[bytes]
    at: float


@dataclass(slots=True)
class _Wait:
    """Until when no further worker is started, after how many that ended at once."""

    until: float
    deaths: int


# Kept, and asked now and then, so that one that has ended does not stay behind as a zombie.
_STARTED: list[_Started] = []
_WAITS: dict[tuple[Path, str], _Wait] = {}
_REFUSED: set[Path] = set()


def worker_lives(home: Home, destination: str | None = None) -> bool:
    """Whether a worker of this home lives, in the foreground or not, that takes care of a row of `destinations`, or any."""
    if destination is not None:
        return is_held(serving(home.locks, destination)) or is_held(waiting(home.locks, destination))
    return any(is_held(path) for path in home.locks.glob("worker-*.lock"))


def start_worker(home: Home, *, config: str | None = None) -> None:
    """Start a detached worker with this environment. Raises `WorkerError`."""
    _start(home, "", config)


def ensure_worker(home: Home, destination: str, *, config: str | None = None) -> bool:
    """Start a detached worker with this environment unless one lives that sends for a row of `destinations`.

    Whether one was started. Does not wait for it: one that finds another at work for all that it could do leaves at
    once. Raises `WorkerError` when no process can be started (once, where that cannot change).
    """
    if worker_lives(home, destination):
        return False
    return _start(home, destination, config)


def _start(home: Home, destination: str, config: str | None) -> bool:
    """Start a worker for the runs of a row of `destinations`; False when one has hardly begun, or ended at once a moment ago, or when none can be started and that was said already.

    Raises `WorkerError`.
    """
    _look_after()
    wait = _WAITS.get((home.path, destination))
    if home.path in _REFUSED or (wait is not None and time.monotonic() < wait.until):
        return False
    begun = [each for each in _STARTED if (each.home, each.destination) == (home.path, destination)]
    if any(time.monotonic() - each.at < _TO_BEGIN for each in begun):
        return False  # it has hardly begun
    refusal = _why_not()
    if refusal:
        _REFUSED.add(home.path)
        raise WorkerError(refusal, hint=_BY_HAND)
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


def _look_after() -> None:
    """Take leave of the workers that have ended, and say so of those that ended at once by themselves."""
    for each in list(_STARTED):
        code, key = each.child.poll(), (each.home, each.destination)
        if code is None:
            if time.monotonic() - each.at > _AT_ONCE:
                _WAITS.pop(key, None)
            continue
        _STARTED.remove(each)
        told_to = code in (0, -signal.SIGTERM, -getattr(signal, "SIGKILL", signal.SIGTERM))
        if told_to or time.monotonic() - each.at > _AT_ONCE:
            continue
        deaths = _WAITS[key].deaths if key in _WAITS else 0
        wait = min(_FIRST_WAIT * 2**deaths, _LONGEST_WAIT)
        _WAITS[key] = _Wait(time.monotonic() + wait, deaths + 1)
        if not deaths:
            message = "the worker ended at once (exit code %d): %s; everything is kept, and the next start waits a while"
            hint = "hubqueue check finds out why"
            _LOG.error(f"{message} (%s)", code, _last_line(each.home / "worker.log"), hint)


def _why_not() -> str | None:
    """Why no worker may be started by this process; None when one may."""
    if os.environ.get(_GUARD):
        return "this process was started as a worker itself"
    if getattr(sys, "frozen", False):
        return "this is a frozen program, which cannot start a Python"
    if not sys.executable:
        return "this Python does not know its own executable"
    if not _PYTHON.fullmatch(Path(sys.executable).name) or not os.access(sys.executable, os.X_OK):
        return f"{sys.executable} is not certainly a Python"
    return None


def _command(home: Home) -> list[str]:
    # -P: the folder a training script was started in must not shadow modules of the worker.
    begin = f"import sys; sys.path += [each for each in {list(_ways())!r} if each not in sys.path]; "
    begin += "from hubqueue.__main__ import main; main()"
    return [
        sys.executable,
        *_isolation(),
        "-P",
        "-c",
        begin,
        "--home",
        str(home.path),
        "worker",
        "--detached",
    ]


def _isolation() -> list[str]:
    """The flags by which this interpreter leaves out what its environment or its user would add."""
    flags = sys.flags
    if flags.isolated:
        return ["-I", *(["-S"] if flags.no_site else [])]
    found = [("-E", flags.ignore_environment), ("-s", flags.no_user_site), ("-S", flags.no_site)]
    return [flag for flag, is_set in found if is_set]


def _ways() -> Iterator[str]:
    """Where this process finds modules: hubqueue's own place, and all others but the folder of the script.

    For the end of the worker's own list: they fill gaps (a zipapp, a list that was changed), and shadow nothing.
    """
    yield str(Path(__about__.__file__).absolute().parents[1])
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    others = {os.path.realpath(Path(script).parent) if script else "", os.path.realpath(os.curdir)}
    for each in sys.path:
        if os.path.isabs(each) and os.path.realpath(each) not in others and os.path.exists(each):
            yield each


def _environment(config: str | None) -> dict[str, str]:
    environ = {**os.environ, _GUARD: "1"}
    named = config or environ.get("HUBQUEUE_CONFIG")
    if named:  # a relative path would mean something else in the folder of the home
        environ["HUBQUEUE_CONFIG"] = os.path.abspath(named)
    paths = environ.pop("PYTHONPATH", "").split(os.pathsep)
    kept = [os.path.abspath(path) for path in paths if path]  # and so would these
    if kept and not _isolation():
        environ["PYTHONPATH"] = os.pathsep.join(kept)
    return environ


def _last_line(log: Path) -> str:
    try:
        with os.fdopen(open_private(log, os.O_RDONLY), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    found = (line.strip() for line in reversed(lines))
    return next((line for line in found if line and not line.startswith("hint:")), "it wrote nothing")
