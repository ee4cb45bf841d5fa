"""Real `hubqueue` processes without the third of a second that each spends on loading.

A helper process loads the package once and forks for each command: the child has its own environment, folder, streams
and exit code, and runs the same `main` as the command does. It can be killed and leaves nothing behind, as any process.
What depends on how an interpreter starts (its flags, its encoding) needs a process of its own: `suits` says so.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_START = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")
_HELPER: list[tuple[subprocess.Popen[bytes], str]] = []


def suits(environ: Mapping[str, str]) -> bool:
    """Whether a command with this environment starts as the helper did, on a machine where it can be watched."""
    if not hasattr(os, "pidfd_open"):
        return False
    names = {name for name in {*environ, *os.environ} if name.startswith("PYTHON") or name in _START}
    same = all(environ.get(name) == os.environ.get(name) for name in names - {"PYTHONPATH"})
    return same and environ.get("PYTHONPATH", str(ROOT)) == str(ROOT)


def run(
    arguments: Sequence[str], environ: Mapping[str, str], stdin: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with its output as text. Raises `TimeoutExpired`, and the process is killed then."""
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryFile() as given,
        socket.socket(socket.AF_UNIX) as link,
    ):
        given.write(stdin.encode())
        given.seek(0)
        link.connect(_address())
        asked = json.dumps([list(arguments), dict(environ), os.getcwd()]).encode()
        streams = array.array("i", [given.fileno(), out.fileno(), err.fileno()])
        link.sendmsg([b"%010d" % len(asked)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        link.sendall(asked)
        link.settimeout(timeout)
        try:
            code = int(link.makefile("r").readline())
        except TimeoutError:
            raise subprocess.TimeoutExpired(
                list(arguments), timeout
            ) from None  # the link ends, and the process
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(["hubqueue", *arguments], code, *texts)


def _address() -> str:
    if not _HELPER or _HELPER[0][0].poll() is not None:
        folder = tempfile.mkdtemp(prefix="hq-zygote-")
        place = f"{folder}/socket"
        helper = subprocess.Popen(
            [sys.executable, __file__, place],
            stdin=subprocess.PIPE,  # it ends with us
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert helper.stdout is not None
        helper.stdout.readline()
        _HELPER[:] = [(helper, place)]
        atexit.register(_end, helper, folder)
    return _HELPER[0][1]


def _end(helper: subprocess.Popen[bytes], folder: str) -> None:
    helper.kill()
    helper.wait()
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    os.rmdir(folder)


# The helper's side.


def _serve(place: str) -> None:
    _load()
    parent = os.getppid()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(64)
    listener.settimeout(5.0)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == parent:
        try:
            link, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            _handle(link)
        link.close()


def _load() -> None:
    """What most commands load anyway."""


def _handle(link: socket.socket) -> None:
    """Run one command in a child, and send its exit code. The child ends when the link does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, rights, _, _ = link.recvmsg(10, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i")
    streams.frombytes(rights[0][2][: 3 * 4])
    asked = b""
    while len(asked) < int(head):
        asked += link.recv(65536)
    arguments, environ, folder = json.loads(asked)
    child = os.fork()
    if child == 0:
        link.close()
        _become(arguments, environ, folder, list(streams))
    ended = os.pidfd_open(child)
    if link in select.select([ended, link], [], [])[0]:
        os.kill(child, signal.SIGKILL)  # whoever asked has given up
    else:
        _, status = os.waitpid(child, 0)
        link.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(arguments: list[str], environ: dict[str, str], folder: str, streams: list[int]) -> None:
    code = 1
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 256)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environ)
        sys.argv = ["hubqueue", *arguments]
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        from hubqueue.__main__ import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
