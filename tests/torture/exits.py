"""All ways in which the process of a training ends, in interpreters of their own: the recorded state is the true one.

A script that reaches its end, or exits with code 0, has finished. One that exits with another code, or by an exception,
has failed. One that vanishes was interrupted. A fork that ends decides nothing, unless it calls `finish` last.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TextIO

from stage import PATIENCE, end, hubqueue, platform_environ, start_worker
from torture.overlaps import AT_HUB
from torture.puppet import pause, start_python

from hubqueue.sandbox import Sandbox

_START = """
import os, signal, sys, threading
import hubqueue
{defect}
run = hubqueue.start_run("yolo26n.pt", args={{"project": "exits", "name": sys.argv[1]}}, worker="none")
for epoch in range(int(sys.argv[2])):
    run.log_metrics({{"loss": epoch + 0.5}}, epoch=epoch)
print(run.id, flush=True)
"""
_FORK = "pid = os.fork()\nif not pid:\n    {}\nos.waitpid(pid, 0)\n"
# Name, state, and what the script does after its epochs. `wait` is ended by a signal from outside.
EXITS = {
    "finish": ("finished", "run.finish(timeout=0)"),
    "finish failed": ("failed", "run.finish(timeout=0, status='failed')"),
    "finish and exit 3": ("finished", "run.finish(timeout=0); sys.exit(3)"),
    "finish and vanish": ("finished", "run.finish(timeout=0); os._exit(3)"),
    "with": ("finished", "with run: pass"),
    "with exit": ("finished", "with run: sys.exit()"),
    "with exit 0": ("finished", "with run: sys.exit(0)"),
    "with exit 3": ("failed", "with run: sys.exit(3)"),
    "with exit text": ("failed", "with run: sys.exit('no data')"),
    "with exception": ("failed", "with run: 1 / 0"),
    "with SIGINT": ("failed", "with run: wait()"),
    "with SIGTERM": ("interrupted", "with run: wait()"),
    "with SIGKILL": ("interrupted", "with run: wait()"),
    "end": ("finished", "pass"),
    "exit 0": ("finished", "sys.exit(0)"),
    "exit 3": ("failed", "sys.exit(3)"),
    "exception": ("failed", "1 / 0"),
    "SIGINT": ("failed", "wait()"),
    "SIGTERM": ("interrupted", "wait()"),
    "SIGKILL": ("interrupted", "wait()"),
    "SIGTERM with a handler": (
        "failed",
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); wait()",
    ),
    "vanish 0": ("interrupted", "os._exit(0)"),
    "vanish 3": ("interrupted", "os._exit(3)"),
    "abort": ("interrupted", "os.abort()"),
    "thread with exception": ("finished", "threading.Thread(target=lambda: 1 / 0).start()"),
    "fork ends": ("finished", _FORK.format("sys.exit(3)") + "run.finish(timeout=0)"),
    "fork vanishes": ("finished", _FORK.format("os._exit(3)")),
    "fork logs": ("failed", _FORK.format("run.log_metrics({'loss': 9.5}, epoch=99); os._exit(0)") + "1 / 0"),
    # The process logs on, so the end that its child reported is taken back.
    "fork finishes": (
        "failed",
        _FORK.format("run.finish(timeout=0); os._exit(0)")
        + "run.log_metrics({'loss': 9.5}, epoch=99); run.finish(timeout=0, status='failed')",
    ),
    "fork finishes, vanish": (
        "interrupted",
        _FORK.format("run.finish(timeout=0); os._exit(0)")
        + "run.log_metrics({'loss': 9.5}, epoch=99); os._exit(0)",
    ),
}
_WAIT = """
def wait():
    print("waiting", flush=True)
    threading.Event().wait()
"""
# A control: nothing notes the end of the interpreter, as before 2026-12.
_UNNOTICED = "import atexit\nhubqueue.start_run\nfrom hubqueue.producer.ending import unfinished\natexit.unregister(unfinished._at_exit)"
# Few: on a crowded machine the second that an interpreter has at its end may be too short.
_AT_ONCE = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


@dataclass(slots=True)
class Exited:
    """The counts over scripts, and those whose recorded state was wrong."""

    scripts: int = 0
    acknowledged: int = 0
    missing: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Exited) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


def exit_round(seed: str, folder: Path, names: tuple[str, ...], *, unnoticed: bool = False) -> Exited:
    """One home in which each of these scripts runs once, several at a time, beside a worker or before one."""
    dice, counted = random.Random(seed), Exited(scripts=len(names))
    folder.mkdir()
    with Sandbox(folder / "hub") as hub:
        environ = platform_environ(folder / "home", hub.url, HUBQUEUE_RETRY__CAP="1")
        workers = [start_worker(environ)] if dice.random() < 0.5 else []
        epochs = {name: dice.randrange(1, 5) for name in names}
        delays = {name: dice.uniform(0.0, 0.3) for name in names}
        defect = _UNNOTICED if unnoticed else ""
        with ThreadPoolExecutor(_AT_ONCE) as pool:

            def run(name: str) -> str:
                with open(_errors(folder, name), "w") as errors:
                    return _run(name, environ, epochs[name], delays[name], defect, errors)

            runs = dict(zip(names, pool.map(run, names), strict=True))
        workers.append(start_worker(environ))  # which looks for dead processes at its start
        ended = hub.wait_until(
            lambda: sum(hub.run(each).state != "training" for each in hub.runs) == len(names),
            timeout=PATIENCE,
        )
        for each in workers:
            end(each)
        drained = hubqueue(environ, "drain", "--timeout", "60")
        if drained.returncode or not ended:
            counted.wrong.append(f"not all ends reached the hub: {drained.stderr.strip()}")
        _judge(hub, environ, runs, epochs, counted, folder)
    shutil.rmtree(folder)
    return counted


def _run(
    name: str, environ: Mapping[str, str], epochs: int, delay: float, defect: str, errors: TextIO
) -> str:
    """Run one script to its end. Returns the id of its run."""
    code = _WAIT + _START.format(defect=defect) + EXITS[name][1] + "\n"
    script = start_python(code, environ, _slug(name), str(epochs), stderr=errors.fileno(), fresh=True)
    assert script.stdout is not None
    run_id = script.stdout.readline().strip()
    if "wait()" in EXITS[name][1]:
        assert script.stdout.readline() == "waiting\n", f"{name} did not get there"
        pause(delay)
        number = next(each for each in _SIGNALS if each.name in name)
        script.send_signal(number)
    script.communicate(timeout=PATIENCE)
    return run_id


def _errors(folder: Path, name: str) -> Path:
    return folder / f"errors-{_slug(name)}.txt"


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower())


def _judge(
    hub: Sandbox,
    environ: Mapping[str, str],
    runs: dict[str, str],
    epochs: dict[str, int],
    counted: Exited,
    folder: Path,
) -> None:
    recorded = {
        each["id"]: each["state"] for each in json.loads(hubqueue(environ, "runs", "--all", "--json").stdout)
    }
    at_hub = {hub.run(each).asked_name: hub.run(each) for each in hub.runs}
    for name, run_id in runs.items():
        expected, shown = EXITS[name][0], at_hub.get(_slug(name))
        if recorded.get(run_id) != expected:
            errors = _errors(folder, name).read_text()[-300:]
            counted.wrong.append(
                f"after {name!r} the run is {recorded.get(run_id)}, not {expected}: {errors}"
            )
        state = None if shown is None else shown.state
        if state != AT_HUB[expected]:
            counted.wrong.append(f"after {name!r} the hub shows {state}")
        counted.acknowledged += epochs[name]
        counted.missing += len(set(range(epochs[name])) - set(shown.epochs if shown else ()))
