"""Processes for plans, without the time that each would need to load the package.

One process loads it, and forks for each plan. It ends with the process that has started it.

    python -m hubqueue.testing.forks       reads a plan from each line, and writes how its process ended
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NoReturn

from hubqueue.testing.child import Done, Plan, carry_out

_PATIENCE = 120.0


def work(plan: Plan) -> Done:
    """Carry out a plan in a new process, with the path and the environment of this one.

    Raises `AssertionError` if the process ends without a report.
    """
    text = {
        "home": str(plan.home),
        "environ": {**os.environ, **plan.environ},
        "passed": plan.passed,
        "killed": None if plan.killed is None else sorted(plan.killed),
        "kill_after": plan.kill_after,
        "path": sys.path,
    }
    server, errors = _server()
    assert server.stdin is not None and server.stdout is not None
    too_long = threading.Timer(_PATIENCE, server.kill)
    too_long.start()
    report: dict[str, Any] = {}
    try:
        server.stdin.write(json.dumps(text) + "\n")
        server.stdin.flush()
        for line in server.stdout:
            found = json.loads(line)
            if "status" in found:
                break
            report = found
    except OSError:
        report = {}
    finally:
        too_long.cancel()
    if not report or not hasattr(os, "fork"):
        _stop()
    assert report, f"the process of the worker ended without a report: {_end_of(errors)}"
    return Done(report["killed_at"], report["peak"])


@cache
def _server() -> tuple[subprocess.Popen[str], IO[bytes]]:
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - it is open as long as the process
    command = [sys.executable, "-m", "hubqueue.testing.forks"]
    package = str(Path(__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([package, *sys.path])}
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ
    )
    atexit.register(_stop)
    return server, errors


def _stop() -> None:
    """End the process; the next plan starts another one."""
    if _server.cache_info().currsize:
        server, _ = _server()
        _server.cache_clear()
        for stream in (server.stdin, server.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        server.kill()
        server.wait()


def _end_of(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read()[-2000:].decode(errors="replace")


# In the process that forks.


def _serve() -> None:
    # What a plugin prints must not be read as a report.
    reports = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        if not hasattr(os, "fork"):
            _carry_out(line, reports)
        child = os.fork()
        if child == 0:
            _carry_out(line, reports)
        _, status = os.waitpid(child, 0)
        _write(reports, {"status": status})


def _carry_out(line: str, reports: int) -> NoReturn:
    try:
        text = json.loads(line)
        sys.path[:] = text["path"]
        os.environ.clear()
        os.environ.update(text["environ"])
        killed = None if text["killed"] is None else frozenset(text["killed"])
        plan = Plan(Path(text["home"]), text["environ"], text["passed"], killed, text["kill_after"])
        carry_out(plan, lambda done: _write(reports, {"killed_at": done.killed_at, "peak": done.peak}))
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    os._exit(0)


def _write(reports: int, found: dict[str, Any]) -> None:
    os.write(reports, json.dumps(found).encode() + b"\n")


if __name__ == "__main__":
    # Before the first fork: what a transport over HTTP needs.
    import hubqueue.destinations.wire.api
    import hubqueue.destinations.wire.signed_url  # noqa: F401

    _serve()
