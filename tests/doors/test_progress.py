"""The progress of an upload in status, drain and finish, and how a worker is started and stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import zygote
from stage import (
    Process,
    command_process,
    end,
    environ_of,
    hubqueue,
    in_one_interpreter,
    kill,
    log,
    new_run,
    python,
    start_worker,
    wait_until,
)

from hubqueue.config.home import Home
from hubqueue.outbox.outbox import open_outbox
from hubqueue.sandbox import Sandbox
from hubqueue.worker.daemon import worker_lives

pytestmark = pytest.mark.usefixtures("migrated_home")

SIZE = 8 << 20  # more than the kernel buffers, so that its progress shows
# The slow line carries one block a pause: about 3 MB/s, or 0.6 MB/s.
BLOCK, PAUSE, LONG_PAUSE = 65_536, 0.02, 0.1


@pytest.fixture
def environ(request: pytest.FixtureRequest, home: Path, hub: Sandbox) -> Iterator[dict[str, str]]:
    """A hub at the end of a slow line, and a checkpoint of 8 MiB that waits for it."""
    with slow_line(hub.port, getattr(request, "param", PAUSE)) as port:
        yield _with_a_checkpoint(home, f"http://127.0.0.1:{port}")


def _with_a_checkpoint(home: Path, url: str) -> dict[str, str]:
    # A worker that is stopped in the middle of the upload need not wait long for its end.
    environ = environ_of(home, url, HUBQUEUE_WORKER__GRACE="0.5")
    run = hubqueue(environ, "enqueue", "run", "yolov8n.pt").stdout.strip()
    assert hubqueue(environ, "drain").returncode == 0
    body = home.parent / "best.pt"
    body.write_bytes(bytes(SIZE))
    hubqueue(environ, "enqueue", "checkpoint", "--run", run, "--epoch", "1", "--final", str(body))
    return environ


@contextlib.contextmanager
def slow_line(port: int, pause: float) -> Iterator[int]:
    """Relay to a local port at a limited rate; yields the port of the relay."""
    stop = threading.Event()

    def carry(source: socket.socket, target: socket.socket, pause: float) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(BLOCK):
                target.sendall(block)
                if stop.wait(pause):
                    break
            target.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client = listener.accept()[0]
                hub = socket.create_connection(("127.0.0.1", port))
                for direction in ((client, hub, pause), (hub, client, 0.0)):
                    threading.Thread(target=carry, args=direction, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        # The connections inherit it. Without it the kernel buffers the whole file at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)


class Terminal:
    """A `hubqueue` command, or the code of a training, whose output is a terminal. `output` is all it has written there."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *arguments: str,
        code: str | None = None,
        width: int = 100,
        height: int = 25,
        on: str = "stdout",
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, on: slave}
        # Programs read the size from the terminal, or from these variables if only stderr is one.
        sized = {**environ, "TERM": "xterm", "COLUMNS": str(width), "LINES": str(height)}
        self.process: Process
        if code is None:
            self.process = command_process(sized, *arguments, **streams)
        elif zygote.suits(sized):
            self.process = zygote.Forked(sized, *arguments, code=code, **streams)
        else:
            command = [sys.executable, "-c", code, *arguments]
            self.process = subprocess.Popen(command, env=sized, close_fds=True, text=True, **streams)
        os.close(slave)
        self.output = ""

    def read(self) -> bool:
        """Read a block; False at the end."""
        try:
            block = os.read(self._master, 65536)
        except OSError:
            return False
        self.output += block.decode()
        return bool(block)

    def until(self, words: str) -> None:
        while words not in self.output:
            assert self.read(), self.output

    def read_all(self) -> str:
        while self.read():
            pass
        self.process.communicate(timeout=60)
        os.close(self._master)
        return self.output


def hubqueue_on_terminal(environ: Mapping[str, str], *arguments: str, **options: Any) -> Terminal:
    return Terminal(environ, *arguments, **options)


@contextlib.contextmanager
def worker(environ: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = start_worker(environ)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def uploading(environ: dict[str, str]) -> dict[str, Any] | None:
    shown = json.loads(hubqueue(environ, "status", "--json").stdout)
    (lane,) = [lane for lane in shown["runs"][0]["lanes"] if lane["kind"] == "ckpt"]
    found: dict[str, Any] | None = lane["uploading"]
    return found


@pytest.mark.parametrize("environ", [LONG_PAUSE], indirect=True)
def test_the_status_shows_bytes_rate_and_time_left(environ: dict[str, str]) -> None:
    assert uploading(environ) is None
    with worker(environ) as process:
        seen: list[dict[str, Any]] = []

        def has_progressed() -> bool:
            found = uploading(environ)
            seen.extend([found] if found and found["rate"] else [])
            return len({each["sent"] for each in seen}) > 1

        wait_until(has_progressed)
        text = hubqueue(environ, "status").stdout

        assert [each["sent"] for each in seen] == sorted(each["sent"] for each in seen)
        # The body of the request is a little more than the file.
        assert all(each["size"] >= SIZE > each["sent"] > 0 and each["seconds_left"] > 0 for each in seen)
        (line,) = [line for line in text.splitlines() if line.startswith("  ckpt")]
        assert "1 in flight, " in line
        assert " MB of 8.4 MB, " in line
        assert "/s, " in line and " left" in line

        kill(process)
        assert uploading(environ) is None, "the progress file of a killed worker is shown"


@pytest.mark.parametrize("environ", [LONG_PAUSE / 2], indirect=True)
def test_a_drain_beside_a_worker_shows_its_bytes_and_why_it_waits(environ: dict[str, str]) -> None:
    with worker(environ) as process:
        wait_until(lambda: uploading(environ))

        output = hubqueue_on_terminal(environ, "drain", on="stderr").read_all()

        assert "ckpt of " in output
        assert "M/8.39M" in output
        assert "another worker is sending" in output
        end(process)


def test_a_drain_shows_why_it_waits(home: Path) -> None:
    environ = environ_of(home, "http://127.0.0.1:9")
    hubqueue(environ, "enqueue", "run", "yolov8n.pt")

    shown = hubqueue_on_terminal(environ, "drain", on="stderr")
    shown.until("hub: 127.0.0.1: connection refused; next try")
    shown.process.terminate()
    shown.read_all()


def test_an_upload_is_shown_until_the_response_arrives(hub: Sandbox, home: Path) -> None:
    environ = _with_a_checkpoint(home, hub.url)
    hub.fail("ckpt:silence")

    shown = hubqueue_on_terminal(environ, "drain", on="stderr")
    shown.until("100%")
    found = uploading(environ)
    end(shown.process)
    output = shown.read_all()

    assert "ckpt of " in output
    assert found and found["sent"] == found["size"]


FINISH = """
import sys, threading
import hubqueue
assert "tqdm" not in sys.modules
run = hubqueue.start_run("yolov8n.pt")
run.save_checkpoint(sys.argv[1], epoch=0, final=True)
left = run.finish(timeout=60)
print("tqdm" in sys.modules, bool(left))
"""


def test_finish_shows_the_upload_on_a_terminal_and_nowhere_else(environ: dict[str, str], home: Path) -> None:
    body = str(home.parent / "best.pt")
    shown = Terminal(environ, body, code=FINISH, on="stderr")
    output = shown.read_all()
    hidden = python(FINISH, environ, body)
    redirected = hidden.communicate(timeout=90)[0]
    notebook = "import sys, types; sys.modules['ipykernel'] = types.ModuleType('ipykernel')" + FINISH
    in_notebook = python(notebook, environ, body).communicate(timeout=90)[0]
    hubqueue(environ, "stop")

    assert "uploading" in output
    assert "uploading" in in_notebook and "M/8.39M" in in_notebook
    assert "M/8.39M" in output
    assert "uploading" not in redirected
    assert redirected.splitlines()[-1] == "False False"


def test_a_worker_in_the_background_is_started_once_and_stopped(environ: dict[str, str], home: Path) -> None:
    first, second = hubqueue(environ, "worker", "--detach"), hubqueue(environ, "worker", "--detach")
    wait_until(lambda: json.loads(hubqueue(environ, "status", "--json").stdout)["worker"]["alive"])

    stopped, again = hubqueue(environ, "stop"), hubqueue(environ, "stop")

    assert (first.returncode, first.stdout.startswith("worker started, ")) == (0, True), first.stderr
    assert second.stdout == "a worker of this home is already running\n"
    assert (stopped.returncode, stopped.stdout) == (0, "1 worker stopped\n")
    assert (again.returncode, again.stdout) == (0, "no worker is running\n")
    assert not worker_lives(Home(home))


def test_a_worker_is_stopped_when_its_configuration_cannot_be_read_any_more(
    environ: dict[str, str], home: Path
) -> None:
    assert hubqueue(environ, "worker", "--detach").returncode == 0
    (home / "config.toml").write_text("this is not TOML")
    broken = hubqueue(environ, "status")

    stopped, again = hubqueue(environ, "stop"), hubqueue(environ, "stop")

    assert broken.returncode == 2
    assert (stopped.returncode, stopped.stdout) == (0, "1 worker stopped\n"), stopped.stderr
    assert (again.returncode, again.stdout) == (0, "no worker is running\n")
    assert not worker_lives(Home(home))


SELF_SENDING = """
import hubqueue, threading
run = hubqueue.start_run("yolov8n.pt", worker="thread")
print("ready", flush=True)
threading.Event().wait(100)
"""


def test_stop_does_not_stop_a_training_that_sends_from_its_own_process(hub: Sandbox, home: Path) -> None:
    environ = environ_of(home, hub.url)
    trainer = python(SELF_SENDING, environ)
    assert trainer.stdout is not None
    trainer.stdout.readline()
    wait_until(lambda: json.loads(hubqueue(environ, "status", "--json").stdout)["worker"]["alive"])

    shown = hubqueue(environ, "stop")

    assert f"pid {trainer.pid} is a drain or a training" in shown.stdout
    assert trainer.poll() is None
    kill(trainer)


def test_a_run_that_has_just_started_needs_no_attention(home: Path) -> None:
    environ = environ_of(home)
    code = SELF_SENDING.replace('worker="thread"', 'worker="none"')
    trainer = python(code, environ)
    assert trainer.stdout is not None
    trainer.stdout.readline()

    young = hubqueue(environ, "status", "--check")
    kill(trainer)
    dead = hubqueue(environ, "status", "--check")

    assert (young.returncode, young.stdout.startswith("starting  1 upload waiting")) == (0, True), (
        young.stdout
    )
    assert "worker  starting" in young.stdout
    assert (dead.returncode, "no worker is running" in dead.stdout) == (1, True)


def test_the_headline_shows_an_outage(home: Path) -> None:
    environ = environ_of(home, "http://127.0.0.1:9")
    hubqueue(environ, "enqueue", "run", "yolov8n.pt")
    with worker(environ) as process:
        wait_until(lambda: hubqueue(environ, "status").stdout.startswith("waiting  hub unreachable for "))
        shown = hubqueue(environ, "status", "--check")

        assert shown.returncode == 0
        assert ", 1 upload waiting (" in shown.stdout.splitlines()[0]
        end(process)


def test_a_narrow_terminal_cuts_lines_instead_of_wrapping_them(home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox), *range(3))

    for command in ("status", "entries", "runs"):
        output = hubqueue_on_terminal(environ_of(home), command, width=60).read_all()
        assert max(len(line) for line in output.splitlines()) <= 60, command
    assert "hubqueue worker --detach" in hubqueue_on_terminal(environ_of(home), "status", width=60).read_all()


def test_watch_uses_the_alternate_screen_and_restores_the_first_one(home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        for number in range(20):
            log(outbox, new_run(outbox, remote_id=f"model-{number}"), 0)
    shown = hubqueue_on_terminal(environ_of(home), "status", "--watch", height=10)
    for _ in range(2):
        shown.until("attention  20 uploads waiting")
        frame, shown.output = shown.output, ""
    assert frame.count("\r\n") < 10, "the headline scrolls away"

    shown.process.terminate()
    output = shown.read_all()

    assert shown.process.returncode == 0
    assert output.endswith("\x1b[?25h\x1b[?1049l")


def test_times_are_local_and_show_their_offset(home: Path) -> None:
    with open_outbox(home, environ={}) as outbox:
        log(outbox, new_run(outbox), 0)

    done = in_one_interpreter(environ_of(home, TZ="America/New_York"), "entries", "show 1")

    _, shown, *one = done.stdout.decode().splitlines()
    assert "-05:00" in shown or "-04:00" in shown
    assert any("-05:00" in line or "-04:00" in line for line in one)
    assert "+00:00" not in "".join(one)
