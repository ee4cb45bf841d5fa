"""A contender in its own process, so that its threads and caches do not affect the others.

The process reads commands from its standard input, one per line. It replies to each with one line of JSON: the seconds of
every call, the errors, and the begin and end of the block (wall clock). It ends when its input ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.context import ROOT, python, version
from benchmarks.peers import Known
from benchmarks.processes import tree
from benchmarks.timing import SCALARS

PATIENCE = 180.0


class ContenderFailedError(Exception):
    """The contender does not run here; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Block:
    """The cost of a block of calls. `began` and `ended` are wall-clock seconds, for comparison with a trace."""

    seconds: list[float]
    errors: list[str]
    began: float
    ended: float


class Contender:
    """The parent's side. `with` starts the process; raises `ContenderFailedError` if it does not reply."""

    def __init__(
        self,
        name: str,
        folder: Path,
        environ: Mapping[str, str] | None = None,
        *,
        under: tuple[str, ...] = (),
    ) -> None:
        self.name, self._folder, self._under = name, folder, under
        self._environ = {**(environ or os.environ), "PYTHONPATH": str(ROOT)}
        self._log = folder / f"{name.replace(' ', '-')}-{id(self):x}.log"
        self._process: subprocess.Popen[str] | None = None
        self._next = 0

    def call(self, calls: int) -> Block:
        """Make `calls` calls, one after the other."""
        return self.read_block(self.start(calls=calls))

    def start(self, **what: float) -> Self:
        """Start a block of `calls` calls or `seconds` seconds, at the time `at` (monotonic)."""
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({**what, "first": self._next}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ContenderFailedError(f"{self.name}: {self._last_words()}") from error
        return self

    def read_block(self, _asked: object = None) -> Block:
        """The result of the block that was started."""
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise ContenderFailedError(f"{self.name}: {self._last_words()}")
        block = Block(**json.loads(line))
        self._next += len(block.seconds) + len(block.errors)
        return block

    def settle(self) -> None:
        """Sync its files, so that its unwritten data does not slow the next contender's syncs."""
        for path in self._folder.rglob("*"):
            if path.is_file():
                with suppress(OSError), path.open("rb") as file:
                    os.fsync(file.fileno())

    def kill(self) -> None:
        """kill -9 of the process and of all its descendants, as simultaneously as possible."""
        assert self._process is not None
        for pid in tree(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        command = [*self._under, *python("-m", "benchmarks.contender", self.name, str(self._folder))]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environ,
                cwd=self._folder,
            )
        try:
            self.read_block()  # it is open
        except ContenderFailedError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None and self._process.stdin is not None
        with suppress(OSError):  # it has already ended
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE if kind is None else 5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "no output"


def main(name: str, folder: str) -> None:
    # The output of a peer goes to the log; the pipe is only for replies.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    kind = Known.ALL[name]
    if kind.package and not version(kind.package):
        raise SystemExit("is not installed")
    peer = kind(Path(folder))
    _write(replies, [], [], time.time())
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        threading.Event().wait(max(0.0, command.get("at", 0.0) - time.monotonic()))
        _block(peer, command, replies)
    peer.close()


def _block(peer: Any, command: Mapping[str, Any], replies: Any) -> None:
    seconds: list[float] = []
    errors: list[str] = []
    began, step = time.time(), int(command["first"])
    last = step + command.get("calls", float("inf"))
    until = time.monotonic() + command.get("seconds", PATIENCE / 2)
    while step < last and time.monotonic() < until:
        start = time.perf_counter()
        try:
            peer.log(step, SCALARS)
            seconds.append(time.perf_counter() - start)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
        step += 1
    _write(replies, seconds, errors, began)


def _write(replies: Any, seconds: list[float], errors: list[str], began: float) -> None:
    block = {"seconds": seconds, "errors": errors, "began": began, "ended": time.time()}
    replies.write(json.dumps(block) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
