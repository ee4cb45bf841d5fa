"""Trainings that a part of the torture directs: real processes that log, wait, and end as they are ordered to.

Each writes a receipt after every call that returned an id, with the times of the call, and its log lines into a file. A
process forks from the helper of the tests, or is a new interpreter where the end of one matters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zygote
from stage import PATIENCE, Process

# How a process can end, and the state that its run must have then. `kill` and `terminate` are signals from outside.
ENDS = {
    "finish": "finished",
    "finish failed": "failed",
    "return": "finished",
    "exit 0": "finished",
    "exit 3": "failed",
    "raise": "failed",
    "leave 0": "interrupted",
    "leave 3": "interrupted",
    "kill": "interrupted",
    "terminate": "interrupted",
}
_SIGNALS = ("kill", "terminate")
# Only the end of an interpreter of its own shows how these ended.
FRESH = ("return", "exit 0", "exit 3", "raise")

_SCRIPT = """
import json, logging, os, select, sys, threading, time
import hubqueue

given = json.loads(sys.argv[1])
log = logging.FileHandler(given["log"])
log.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
logging.getLogger("hubqueue").addHandler(log)
if given["defect"]:
    exec(given["defect"])
receipts = os.open(given["receipts"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
epoch = given["first"]

def say(**facts):
    os.write(1, (json.dumps(facts) + "\\n").encode())

def note(what, began, entry, **facts):
    if entry is not None:
        facts |= {"what": what, "began": began, "returned": time.monotonic_ns()}
        os.write(receipts, (json.dumps(facts) + "\\n").encode())

def log_one():
    global epoch
    began = time.monotonic_ns()
    note("epoch", began, run.log_metrics({"loss": epoch + 0.5}, epoch=epoch), epoch=epoch, loss=epoch + 0.5)
    epoch += 1

def save(path, digest, final):
    began = time.monotonic_ns()
    entry = run.save_checkpoint(path, epoch=epoch, map=0.5, final=final)
    note("final" if final else "last", began, entry, sha256=digest)

def act(what, *rest):
    global run
    if what == "log":
        for _ in range(int(rest[0])):
            log_one()
    elif what == "flow":  # until the next command
        while not select.select([0], [], [], 0.002)[0]:
            log_one()
    elif what == "save":
        save(rest[0], rest[1], rest[2] == "final")
    elif what == "finish":
        status, timeout = (rest + ("finished", "0"))[:2] if rest else ("finished", "0")
        left = run.finish(status=status, timeout=float(timeout))
        return {"entries": left.entries, "unsaved": left.unsaved, "dead": left.dead, "why": left.unsaved_why}
    elif what == "exit":
        sys.exit(int(rest[0]))
    elif what == "raise":
        raise ValueError("of the training")
    elif what == "leave":
        os._exit(int(rest[0]))
    return {}

run = hubqueue.start_run(given["model"], args=given["args"], worker=given["worker"], resume=given["resume"])
say(run=run.id)
commands = os.fdopen(0, "rb", 0)  # unbuffered: `flow` waits on the descriptor
while (line := commands.readline()):
    what = json.loads(line)
    if what == ["return"]:
        break
    say(**act(*what))
"""


@dataclass(frozen=True, slots=True)
class Receipt:
    """A call that returned the id of an entry. The times are of `time.monotonic_ns`."""

    what: str
    began: int
    returned: int
    epoch: int | None = None
    loss: float | None = None
    sha256: str | None = None


class Puppet:
    """One training process, started. `defect` is code that breaks hubqueue in it, for a control.

    Use `fresh` where it ends in one of `FRESH`.

    Its name is the name of its model at a HUB (`NAME.yaml`), and of its training at a Platform.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        environ: Mapping[str, str],
        *,
        worker: str = "none",
        resume: str | None = None,
        first: int = 0,
        defect: str = "",
        fresh: bool = False,
    ) -> None:
        self.name, self._receipts = name, folder / f"receipts-{name}.jsonl"
        self._log = folder / f"log-{name}.txt"
        given = {
            "model": f"{name.partition('+')[0]}.yaml",
            "args": {"project": "torture", "name": name.partition("+")[0]},
            "log": str(self._log),
            "receipts": str(self._receipts),
            "worker": worker,
            "resume": resume,
            "first": first,
            "defect": defect,
        }
        reading, self._commands = os.pipe()
        self._errors = open(folder / f"errors-{name}.txt", "w+")  # noqa: SIM115 - it ends with the process
        self._process = start_python(
            _SCRIPT, environ, json.dumps(given), stdin=reading, stderr=self._errors.fileno(), fresh=fresh
        )
        os.close(reading)
        self.run: str = self._response()["run"]

    def do(self, *what: object) -> dict[str, Any]:
        """Let it do something, and wait until that is done."""
        self.begin(*what)
        return self._response()

    def begin(self, *what: object) -> None:
        """Let it do something. Read the response with `done`."""
        os.write(self._commands, (json.dumps([str(each) for each in what]) + "\n").encode())

    def done(self) -> dict[str, Any]:
        """The response to the oldest command without one."""
        return self._response()

    def end(self, how: str) -> None:
        """Let it end in one of the `ENDS`, and wait for that."""
        if how in _SIGNALS:
            (self._process.kill if how == "kill" else self._process.terminate)()
        else:
            what, _, rest = how.partition(" ")
            if what == "finish":
                self.do("finish", rest or "finished", "0")
                what, rest = "return", ""
            self.begin(what, *([rest] if rest else []))
        self.wait()

    def wait(self) -> int:
        """Wait for its end. Returns its exit code."""
        self._process.communicate(timeout=PATIENCE)
        os.close(self._commands)
        self._errors.close()
        return self._process.returncode or 0

    def receipts(self) -> list[Receipt]:
        """What it has acknowledged so far."""
        if not self._receipts.exists():
            return []
        whole = self._receipts.read_text().rpartition("\n")[0]
        return [Receipt(**json.loads(line)) for line in whole.splitlines()]

    def log(self) -> list[str]:
        """Its log lines, each with its level."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    def _response(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(PATIENCE)
            self._errors.seek(0)
            raise RuntimeError(f"the training {self.name} has ended: {self._errors.read()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


def start_python(
    code: str,
    environ: Mapping[str, str],
    *arguments: str,
    stdin: int | None = None,
    stderr: int | None = None,
    fresh: bool = False,
) -> Process:
    """A Python process whose stdout is a pipe."""
    if zygote.suits(environ) and not fresh:
        return zygote.Forked(
            environ, *arguments, code=code, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr
        )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(
        command, env=environ, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True
    )


def pause(seconds: float) -> None:
    """Let the processes run for a while."""
    threading.Event().wait(seconds)


def now() -> int:
    """The clock of the receipts: the same for all processes of this machine."""
    return time.monotonic_ns()
