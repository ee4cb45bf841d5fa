"""Trainers and workers that end by SIGKILL: forks of one process with everything loaded, each with its own failpoint.

A failpoint is before or after a commit, an fsync, a rename, a send, a response or a settle; at its n-th passage
the process kills itself. Without a failpoint it is killed from outside, at a random instant.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from hubqueue import start_run
from hubqueue.destinations.wire.exchange import Wire
from hubqueue.domain.entry import Kind
from hubqueue.domain.errors import OutboxUnavailable
from hubqueue.domain.outcome import Remote
from hubqueue.outbox.database.database import Database
from hubqueue.outbox.moves.settle import Settlement
from hubqueue.outbox.outbox import open_outbox
from hubqueue.worker.delivery import Delivery
from hubqueue.worker.service import Service

_STORAGE = ("before commit", "after commit", "before fsync", "after fsync", "before rename", "after rename")
POINTS = {
    "trainer": _STORAGE,
    "worker": (
        "before commit",
        "after commit",
        "before send",
        "after response",
        "before settle",
        "after settle",
    ),
}
_EPOCHS = 14


@dataclass(slots=True)
class Life:
    """One forked process."""

    role: str
    pid: int
    point: str | None

    def end(self, dice: random.Random) -> bool:
        """Wait for its end, or kill it at a random instant. Returns whether it was killed."""
        if self.point is None:
            threading.Event().wait(dice.uniform(0.0, 0.4))
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> bool:
        """Wait for its end. Returns whether it was killed."""
        _, status = os.waitpid(self.pid, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError(f"a {self.role} failed with {os.WEXITSTATUS(status)}")
        return os.WIFSIGNALED(status)


def live(
    role: str,
    folder: Path,
    environ: dict[str, str],
    turn: int,
    point: str | None,
    passage: int | None,
    *,
    control: str | None = None,
    to_the_end: bool = False,
) -> Life:
    """Fork a trainer or a worker."""
    pid = os.fork()
    if pid:
        return Life(role, pid, point)
    code = 1
    try:
        os.environ.clear()
        os.environ.update(environ)
        logging.getLogger("hubqueue").addHandler(logging.NullHandler())
        if point is not None:
            arm(point, passage or 1)
        if control == "early settle" and role == "worker":
            settle_early()
        if role == "trainer":
            _train(folder, turn, early=control == "early receipt")
        else:
            _work(to_the_end=to_the_end)
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _train(folder: Path, turn: int, *, early: bool) -> None:
    """Log epochs and a final checkpoint; write a receipt for each call that returned."""
    writer, receipts = f"writer-{turn}.yaml", folder / f"receipts-{turn}.jsonl"
    descriptor = os.open(receipts, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def receipt(**facts: Any) -> None:
        os.write(descriptor, (json.dumps({"writer": writer, **facts}) + "\n").encode())

    run = start_run(writer, worker="none", strict=True)
    content = random.Random(turn).randbytes(30_000)
    (folder / f"best-{turn}.pt").write_bytes(content)
    for epoch in range(_EPOCHS):
        if early:
            receipt(what="epoch", epoch=epoch, loss=epoch + 0.5)
        run.log_metrics({"loss": epoch + 0.5}, epoch=epoch)
        if not early:
            receipt(what="epoch", epoch=epoch, loss=epoch + 0.5)
        if epoch == _EPOCHS // 2:
            run.save_checkpoint(folder / f"best-{turn}.pt", epoch=epoch, final=True, map=0.5)
            receipt(what="final", sha256=hashlib.sha256(content).hexdigest())
    # A tenth of a second may be too short on a busy machine. Nothing was acknowledged then, and a worker detects the end.
    with suppress(OutboxUnavailable):
        run.finish(timeout=0)


def _work(*, to_the_end: bool) -> None:
    """Run a worker until it is killed or (the last one) until nothing is left."""
    with open_outbox(courtesy=timedelta(milliseconds=5)) as outbox:
        service = Service(outbox, emit=lambda _fact: None)
        deadline = time.monotonic() + (120 if to_the_end else 3)

        def until() -> str | None:
            if to_the_end and not outbox.stats.owed().entries:
                return "everything is delivered"
            return _late(deadline)

        service.run(until=until, every=0.05, grace=timedelta(seconds=5))


def _late(deadline: float) -> str | None:
    return "the deadline has passed" if time.monotonic() > deadline else None


def arm(point: str, passage: int) -> None:
    """Kill this process at the n-th passage of a failpoint."""
    left = [passage]
    guard = threading.Lock()

    def pass_(name: str) -> None:
        if name != point:
            return
        with guard:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    _around(os, "fsync", "fsync", pass_)
    _around(Path, "rename", "rename", pass_)
    _around(Path, "replace", "rename", pass_)
    write = Database.write

    @contextmanager
    def writing(self: Database, within: Any = None) -> Iterator[Any]:
        with write(self, within) as tx:
            yield tx
            if within is None:
                pass_("before commit")
        if within is None:
            pass_("after commit")

    Database.write = writing  # type: ignore[method-assign, assignment]
    for name in ("ack", "retry", "release"):
        _around(Settlement, name, "settle", pass_)
    exchange = Wire.exchange

    def exchanging(self: Wire, *given: Any, **options: Any) -> Any:
        pass_("before send")
        response = exchange(self, *given, **options)
        pass_("after response")
        return response

    Wire.exchange = exchanging  # type: ignore[method-assign]


def _around(owner: Any, name: str, what: str, pass_: Callable[[str], None]) -> None:
    inner = getattr(owner, name)

    def around(*given: Any, **options: Any) -> Any:
        pass_(f"before {what}")
        result = inner(*given, **options)
        pass_(f"after {what}")
        return result

    setattr(owner, name, around)


def settle_early() -> None:
    """The defect of a control: the entry is marked as delivered before it is sent."""
    inner = Delivery._send

    def send(self: Delivery, lease: Any, attempt: Any) -> Any:
        if lease.batch.kind is Kind.METRICS:
            self._outbox.settlement.ack(lease, started_at=None, remote=Remote())
        return inner(self, lease, attempt)

    Delivery._send = send  # type: ignore[method-assign]
