"""How the processes of a round are killed, and the processes: forks of one process with everything loaded."""

from __future__ import annotations

import logging
import os
import pickle
import random
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torture import lives
from torture.destinations.tap import WHEN, Tap
from torture.destinations.target import Target

from hubqueue.outbox.outbox import open_outbox
from hubqueue.worker.service import Service

# By the name of a failpoint in every worker, the highest number of its passage.
_POINTS = {"before commit": 12, "after commit": 12, "before settle": 5, "after settle": 5}
# The highest number of an upload at which a worker is killed.
_UPLOADS = 5
# In seconds: a process that has not ended then hangs.
_LONGEST = 120
# In seconds: a worker that nothing kills. It does not end sooner, since a training may have just begun.
_SOONEST, _LATEST = 0.5, 4.0
INSTANT = "a random instant"


@dataclass(frozen=True, slots=True)
class Death:
    """How a process is killed: at the n-th passage of a point, or, at `INSTANT`, after so many seconds.

    `only` is a pattern of the requests that count, for a kill by the tap.
    """

    point: str
    number: int = 0
    after: float = 0.0
    only: str = ""

    def __str__(self) -> str:
        if not self.only:
            return self.point
        return self.point.replace("a request", "an upload").replace("a response", "the response to an upload")


@dataclass(slots=True)
class Process:
    """A forked process, which waits until it is let go."""

    role: str
    pid: int
    gate: int
    death: Death | None = None
    status: int = 0

    def let_go(self) -> None:
        os.write(self.gate, b"1")
        os.close(self.gate)

    @property
    def was_killed(self) -> bool:
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL

    @property
    def wrong(self) -> list[str]:
        """An end that is neither a kill nor a success."""
        if self.was_killed or self.status == 0:
            return []
        hung = os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGALRM
        return [f"a {self.role} {'hung' if hung else 'failed'}"]


def of_worker(dice: random.Random, target: Target) -> Death | None:
    """How a worker is killed; None if it lives."""
    at = dice.random()
    if at < 0.04:
        return None
    if at < 0.25:
        return Death(INSTANT, after=dice.uniform(0.0, 0.8))
    if at < 0.5 and target.uploads:
        return Death(dice.choice(WHEN), _early(dice, _UPLOADS), only=target.uploads)
    if at < 0.75 and target.requests:
        return Death(dice.choice(WHEN), _early(dice, target.requests))
    points = target.points if at < 0.75 else _POINTS
    point = dice.choice(sorted(points))
    return Death(point, _early(dice, points[point]))


def _early(dice: random.Random, most: int) -> int:
    """A number from 1 on, rather a small one: a worker that sends everything leaves nothing to the next one."""
    return min(dice.randrange(1, most + 1), dice.randrange(1, most + 1))


def of_defect(dice: random.Random, target: Target) -> Death:
    """How a worker with a defect is killed: when something has arrived that is not settled."""
    if not target.requests:
        return Death("within a large file", dice.randrange(1, _UPLOADS + 1))
    if dice.random() < 0.5:
        return Death(dice.choice(WHEN[1:3]), dice.randrange(1, _UPLOADS), only=target.uploads)
    return Death("before a response", _early(dice, target.requests))


def of_trainer(dice: random.Random) -> Death | None:
    """How a trainer is killed; None if it lives."""
    if dice.random() < 0.6:
        return None
    if dice.random() < 0.3:
        return Death(INSTANT, after=dice.uniform(0.05, 0.6))
    return Death(dice.choice(lives.POINTS["trainer"]), dice.randrange(3, 40))


def fork(role: str, act: Callable[[], object], environ: Mapping[str, str], death: Death | None) -> Process:
    """A process that does this, with this environment, once it is let go."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reading)
        return Process(role, pid, writing, death)
    code = 1
    try:
        os.close(writing)
        signal.alarm(_LONGEST)
        os.environ.clear()
        os.environ.update(environ)
        logging.getLogger("hubqueue").addHandler(logging.NullHandler())
        os.read(reading, 1)
        act()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def run(processes: Sequence[Process], tap: Tap | None) -> None:
    """Let processes go, kill those that are to be killed at an instant, and wait for the end of all.

    The tap kills at most one of them.
    """
    for each in processes:
        if each.death is not None and each.death.point in WHEN and tap is not None:
            tap.arm(each.pid, each.death.number, each.death.point, each.death.only)
    for each in processes:
        each.let_go()
    begun, pause = time.monotonic(), threading.Event()
    timed = [(each.death.after, each.pid) for each in processes if each.death and each.death.point == INSTANT]
    for after, pid in sorted(timed):
        pause.wait(max(0.0, begun + after - time.monotonic()))
        os.kill(pid, signal.SIGKILL)  # its id is taken until it is reaped
    for each in processes:
        os.waitid(os.P_PID, each.pid, os.WEXITED | os.WNOWAIT)
    if tap is not None:
        tap.disarm()
    for each in processes:
        each.status = os.waitpid(each.pid, 0)[1]


def result_of(act: Callable[[], Any], environ: Mapping[str, str]) -> Any:
    """What this returns in a process of its own: it may open files, connections and databases. None if it fails."""
    with tempfile.TemporaryFile() as file:
        process = fork("judge", lambda: pickle.dump(act(), file) or file.flush(), environ, None)
        run([process], None)
        file.seek(0)
        return pickle.load(file) if process.status == 0 else None


def work(target: Target, death: Death | None, defect: Callable[[], None] | None, *, to_the_end: bool) -> None:
    """Be a worker until everything is delivered, or for some seconds."""
    target.prepare()
    if defect is not None:
        defect()
    if death is not None and death.point in target.points:
        target.arm(death.point, death.number)
    elif death is not None and death.number and death.point not in WHEN:
        lives.arm(death.point, death.number)
    with open_outbox(courtesy=timedelta(milliseconds=5)) as outbox:
        service = Service(outbox, emit=lambda _fact: None)
        begun = time.monotonic()
        soonest, latest = (0.0, _LONGEST - 30) if to_the_end else (_SOONEST, _LATEST)

        def until() -> str | None:
            passed = time.monotonic() - begun
            # In this order: a run whose end is recorded while this asks has its completion in the same transaction.
            if passed >= soonest and not outbox.stats.running() and not outbox.stats.owed().entries:
                return "everything is delivered"
            return "the time has passed" if passed > latest else None

        service.run(until=until, every=0.05, grace=timedelta(seconds=5))
