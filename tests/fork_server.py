"""The helper process of `zygote`: it loads the package, then forks a process for each request.

The child is like a new interpreter: `__main__` is empty, the only descriptors are its three streams, signals have
their defaults, no thread runs, no database is open. At its end its threads are joined, its exit handlers run and its
streams are flushed. The finalization of modules is left out unless the request asks for it.
"""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from importlib import import_module
from types import CodeType
from typing import Any, NoReturn

from hubqueue.config import registry

LONGEST = 1 << 22


def serve(address: str) -> CodeType:
    """Fork at each request until the tests end.

    Returns only in a child that the interpreter has to finalize: the program, for the caller to run.
    """
    load()
    assert threading.active_count() == 1, "a thread would not be in the children"
    gc.collect()
    gc.freeze()  # loaded objects stay: a garbage collection in a child need not copy them
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    children: dict[int, tuple[int, socket.socket]] = {}
    events = select.poll()
    events.register(0, 0)  # it ends with the tests
    events.register(listener, select.POLLIN)
    while True:
        for descriptor, _ in events.poll():
            if descriptor == 0:
                os._exit(0)
            if descriptor in children:
                events.unregister(descriptor)
                pid, link = children.pop(descriptor)
                _, status = os.waitpid(pid, 0)
                with suppress(OSError):  # its parent no longer waits for it
                    link.send(b"%d" % os.waitstatus_to_exitcode(status))
                link.close()
                os.close(descriptor)
                continue
            link, _ = listener.accept()
            request, streams, _, _ = socket.recv_fds(link, LONGEST, 3)
            if len(streams) < 3:
                link.close()
                continue
            pid = os.fork()
            if pid == 0:
                for each in (listener, link, *(other for _, other in children.values())):
                    each.close()
                for each in children:
                    os.close(each)
                asked = json.loads(request)
                _become(asked, streams)
                program = compile(asked["program"], "<string>", "exec", dont_inherit=True)
                if asked["finalize"]:
                    atexit.register(
                        gc.unfreeze
                    )  # as in a new interpreter, the last collections see everything
                    return program
                _run(program)
            for stream in streams:
                os.close(stream)
            pidfd = os.pidfd_open(pid)
            with suppress(OSError):
                socket.send_fds(link, [b"%d" % pid], [pidfd])
            children[pidfd] = pid, link
            events.register(pidfd, select.POLLIN)


def load() -> None:
    """Import what most commands and trainings load."""
    for name in (
        "alembic.command",
        "alembic.migration",
        "alembic.script",
        "apscheduler.triggers.date",
        "concurrent.futures.thread",
        "encodings.ascii",
        "hubqueue.cli.drain",
        "hubqueue.cli.enqueue",
        "hubqueue.cli.repair",
        "hubqueue.cli.status",
        "hubqueue.cli.worker",
        "hubqueue.destinations.folder.store",
        "hubqueue.integrations.hub_session.session",
        "hubqueue.outbox.moves.settle",
        "hubqueue.outbox.status",
        "hubqueue.producer.run",
        "hubqueue.producer.several.shell",
        "hubqueue.worker.check",
        "hubqueue.worker.log",
        "hubqueue.worker.service",
        "runpy",
    ):
        import_module(name)
    for name in registry.BUILT_IN.values():
        import_module(name.partition(":")[0])
    with suppress(ImportError):
        import_module("pysqlite3.dbapi2")


def _become(request: dict[str, Any], streams: list[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.orig_argv = request["line"]
    sys.argv = request["line"][1:2] + request["line"][3:]
    ours = {os.path.dirname(os.path.abspath(__file__))}
    if "PYTHONPATH" not in os.environ:
        ours.add(os.path.dirname(*ours))
    first = os.getcwd() if request["is_module"] else ""
    sys.path[:] = [first, *(each for each in sys.path[1:] if each not in ours)]
    sys.stdin = sys.__stdin__ = _stream(0, "<stdin>", sys.stdin)
    sys.stdout = sys.__stdout__ = _stream(1, "<stdout>", sys.stdout)
    sys.stderr = sys.__stderr__ = _stream(2, "<stderr>", sys.stderr)


def _stream(number: int, name: str, before: io.TextIOWrapper) -> io.TextIOWrapper:
    """A standard stream as the interpreter makes it: line-buffered on a terminal and for stderr."""
    at_once = before.write_through  # PYTHONUNBUFFERED
    raw: Any = io.FileIO(number, "rb" if number == 0 else "wb", closefd=False)
    raw.name = name
    buffer: Any = raw if at_once else io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
    stream = io.TextIOWrapper(
        buffer,
        before.encoding,
        before.errors,
        None if number == 0 else "\n",
        line_buffering=not at_once and (number == 2 or raw.isatty()),
        write_through=at_once,
    )
    stream.mode = "r" if number == 0 else "w"  # type: ignore[misc]
    return stream


def _run(program: CodeType) -> NoReturn:
    """Run the program as `python -c` does, and end."""
    code: int | None = 0
    try:
        exec(program, sys.modules["__main__"].__dict__)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        code = None if isinstance(error, KeyboardInterrupt) else 1
        frames = error.__traceback__
        error = error.with_traceback(frames and frames.tb_next)  # without this frame
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            stream.flush()
    if code is None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code or 0)
