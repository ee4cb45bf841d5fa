"""Real Python processes without the half second that each needs to load the package.

A helper process loads the package once and forks for each requested process. The child has its own pid, environment,
folder, streams and exit code, and runs the same program. It can be killed like any process. Tests that depend on the
start of an interpreter (flags, encoding, command line, loaded modules) need a new interpreter: `suits` refuses an
environment that sets flags or the encoding. Tests that depend on the end of an interpreter have it finalized.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
# Variables that affect the start of an interpreter, its C library or its loader.
_START = ("PYTHON", "LANG", "LC_", "TZ", "LD_", "MALLOC_", "GLIBC_", "TMPDIR")
# Code that is equivalent to a command line that runs a module.
_MODULE = "import runpy; runpy.run_module({!r}, run_name='__main__', alter_sys=True)"
_HELPER: list[tuple[subprocess.Popen[bytes], str]] = []
_STARTING = threading.Lock()
_LONGEST = 1 << 22


def suits(environ: Mapping[str, str]) -> bool:
    """Whether a fork of the helper is equivalent to a new process with this environment, on a supported machine."""
    if not hasattr(os, "pidfd_open"):
        return False
    names = {name for name in {*environ, *os.environ} if name.startswith(_START)} - {"PYTHONPATH"}
    same = all(environ.get(name) == os.environ.get(name) for name in names)
    return same and environ.get("PYTHONPATH", str(ROOT)) == str(ROOT)


class Forked:
    """A process that the helper forked, with the part of `subprocess.Popen` that tests use. Its streams are text.

    `program` is code, as after `python -c`, or the name of a module, as after `python -m`. Each stream is as in Popen:
    None (inherited), PIPE (not stdin), DEVNULL, STDOUT (stderr only), or a descriptor. With `finalize` the interpreter ends
    the process, as after any program, instead of a short imitation.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *arguments: str,
        code: str | None = None,
        module: str | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        finalize: bool = False,
    ) -> None:
        self.args = ["-m", module, *arguments] if module else ["-c", code or "", *arguments]
        self.returncode: int | None = None
        self.stdin = None
        self._reads: dict[str, tuple[threading.Thread, list[str]]] = {}
        opened: list[int] = []
        pipes: dict[str, TextIO] = {}

        def descriptor(name: str, number: int, chosen: int | None) -> int:
            if chosen is None:
                return number
            if chosen == subprocess.PIPE:
                reading, writing = os.pipe()
                opened.append(writing)
                pipes[name] = open(reading)  # noqa: SIM115 - the caller's
                return writing
            if chosen == subprocess.DEVNULL:
                opened.append(os.open(os.devnull, os.O_RDWR))
                return opened[-1]
            return chosen

        try:
            streams = [descriptor("stdin", 0, stdin), descriptor("stdout", 1, stdout)]
            streams.append(streams[1] if stderr == subprocess.STDOUT else descriptor("stderr", 2, stderr))
            request = {
                "program": _MODULE.format(module) if module else code,
                "is_module": module is not None,
                "finalize": finalize,
                "line": [sys.executable, *self.args],
                "environ": dict(environ),
                "folder": os.getcwd(),
                "umask": _umask(),
            }
            self._link, self.pid, self._pidfd = _ask(json.dumps(request).encode(), streams)
        finally:
            for each in opened:
                os.close(each)
        self.stdout, self.stderr = pipes.get("stdout"), pipes.get("stderr")

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Returns the exit code. Raises `TimeoutExpired`."""
        if self.returncode is None:
            ending = select.poll()
            ending.register(self._link, select.POLLIN)
            if not ending.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            ended = self._link.recv(16)
            assert ended, "the helper has ended"
            self.returncode = int(ended)
            self._link.close()
            os.close(self._pidfd)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Read the pipes to their end, and wait. Raises `TimeoutExpired`; a later call continues."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for name, pipe in (("stdout", self.stdout), ("stderr", self.stderr)):
            if pipe is not None and name not in self._reads:
                texts: list[str] = []
                reader = threading.Thread(target=_read, args=(pipe, texts), daemon=True)
                reader.start()
                self._reads[name] = reader, texts
        for reader, _ in self._reads.values():
            reader.join(_rest(deadline))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(_rest(deadline))
        said = {name: texts[0] for name, (_, texts) in self._reads.items()}
        return said.get("stdout"), said.get("stderr")

    def send_signal(self, number: int) -> None:
        """Send a signal unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[str], environ: Mapping[str, str], stdin: str, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a `hubqueue` command to its end, with its output as text. Kills it and raises `TimeoutExpired` after the timeout."""
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryFile() as given,
    ):
        given.write(stdin.encode())
        given.seek(0)
        process = Forked(
            environ,
            *arguments,
            module="hubqueue",
            stdin=given.fileno(),
            stdout=out.fileno(),
            stderr=err.fileno(),
        )
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(["hubqueue", *arguments], code, *texts)


def _read(pipe: TextIO, texts: list[str]) -> None:
    texts.append(pipe.read())
    pipe.close()


def _rest(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _umask() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))


def _ask(request: bytes, streams: list[int]) -> tuple[socket.socket, int, int]:
    """Ask the helper for a process. Returns the socket that gets its exit code, its pid, and its descriptor."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
    link.connect(_address())
    socket.send_fds(link, [request], streams)
    pid, (pidfd,), _, _ = socket.recv_fds(link, 16, 1)
    return link, int(pid), pidfd


def _address() -> str:
    with _STARTING:
        if not _HELPER or _HELPER[0][0].poll() is not None:
            folder = tempfile.mkdtemp(prefix="hq-zygote-")
            address = f"{folder}/socket"
            # Its children must start like `python -c`: nothing of the helper may remain in their `__main__`.
            begin = f"exec(__import__('fork_server').serve({address!r}))"
            helper = subprocess.Popen(
                [sys.executable, "-c", begin],
                stdin=subprocess.PIPE,  # it ends with this process
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"},
                cwd=ROOT,  # modules in the folder of a test are not for the helper
            )
            assert helper.stdout is not None
            assert helper.stdout.readline() == b"ready\n", "the helper did not start"
            _HELPER[:] = [(helper, address)]
            atexit.register(_end, helper, folder)
        return _HELPER[0][1]


def _end(helper: subprocess.Popen[bytes], folder: str) -> None:
    helper.kill()
    helper.wait()
    shutil.rmtree(folder)
