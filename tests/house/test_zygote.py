"""A process that the tests fork starts and ends like a new interpreter."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import zygote
from stage import environ_of, kill, python

pytestmark = pytest.mark.skipif(
    not zygote.suits(environ_of(Path("home"))), reason="no processes are forked on this machine"
)

BEGINNING = """
import gc, json, os, resource, signal, sys, threading
names = sorted(set(globals()) - {"__loader__", "logging"})
limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
open_files = [os.path.realpath(f"/proc/self/fd/{each}").split(":")[0] for each in os.listdir("/proc/self/fd")]
print(json.dumps({
    "names": names,
    "arguments": [sys.argv, sys.orig_argv],
    "path": sys.path,
    "flags": list(sys.flags),
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "umask": os.umask(0),
    "open": sorted(each for each in open_files if not each.startswith("/proc")),
    "handlers": [str(signal.getsignal(each)) for each in sorted(signal.valid_signals())],
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "limits": [resource.getrlimit(getattr(resource, name)) for name in limits],
    "threads": [each.name for each in threading.enumerate()],
    "group": [os.getpgrp(), os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0)],
    "collector": [gc.isenabled(), gc.get_threshold()],
    "streams": [[each.encoding, each.errors, each.mode, each.name, each.line_buffering, each.isatty()]
        for each in (sys.stdin, sys.stdout, sys.stderr)],
    "unsaved": logging.getLogger().handlers + [logging.getLogger().level],
}))
"""
ENDS = {
    "nothing": "",
    "a number": "raise SystemExit(3)",
    "a text": "raise SystemExit('enough')",
    "an error": "def fails():\n    1 / 0\nfails()",
    "a handler": "import atexit; atexit.register(print, 'at the end')",
    "a thread": "import threading; threading.Timer(0.1, print, ['the thread']).start(); print('the script')",
    "a signal": "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGTERM)",
    "an interrupt": "raise KeyboardInterrupt",
    "at once": "import os; print('not written'); os._exit(4)",
}


def test_a_forked_process_begins_as_a_new_one(home: Path) -> None:
    environ = environ_of(home, ANOTHER="ü")

    new, forked = (
        json.loads(python(BEGINNING, environ, "one", "two", fresh=fresh).communicate(timeout=60)[0] or "")
        for fresh in (True, False)
    )

    assert forked == new


@pytest.mark.parametrize("end", ENDS)
def test_a_forked_process_ends_as_a_new_one(home: Path, end: str) -> None:
    environ = environ_of(home)
    new, forked = python(ENDS[end], environ, fresh=True), python(ENDS[end], environ)
    finalized = python(ENDS[end], environ, finalize=True)

    said, copied, last = (each.communicate(timeout=60)[0] for each in (new, forked, finalized))

    assert (forked.returncode, copied) == (new.returncode, said)
    assert last is not None
    # In a traceback, the line of the helper that ran the program is the first one.
    last = last.replace('  File "<string>", line 1, in <module>\n', "", 1)
    assert (finalized.returncode, last) == (new.returncode, said)


def test_a_forked_process_is_finalized_where_that_is_asked(home: Path) -> None:
    code = "import builtins\nclass Kept:\n    def __del__(self): print('finalized', flush=True)\nbuiltins.kept = Kept()"

    said = [
        python(code, environ_of(home), finalize=each).communicate(timeout=60)[0] for each in (True, False)
    ]

    assert said == ["finalized\n", ""]


def test_a_forked_process_can_be_killed(home: Path) -> None:
    process = python(
        "import threading; print('ready', flush=True); threading.Event().wait(60)", environ_of(home)
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert process.poll() is None

    kill(process)

    assert process.returncode == -signal.SIGKILL
