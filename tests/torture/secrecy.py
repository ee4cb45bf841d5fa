"""Canary keys in runs with faults: real trainers, workers and commands, against faulty hubs that repeat the key.

Proves: the key is in no spelling in a file (except credentials.toml), in an output, in a process list or in a request
to another host; and everything in the home is private under umask 000.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from peer import Peer, answer
from stage import ROOT, wait_until
from torture.frame import Report, new_report
from torture.parrot import Parrot, keys, needles

from hubqueue.config.home import Home
from hubqueue.sandbox import Sandbox
from hubqueue.worker.daemon import worker_lives

SENTENCE = (
    "In no spelling is a key in a file (except credentials.toml), an output, a process list or another host's "
    "request, whatever the hub, the worker and the trainer do; and every file is private under umask 000."
)
WAYS = ("HUB_API_KEY", "HUBQUEUE_KEY_HUB", "login", "url", "KEY_MODELID")
_SCALES = {"quick": (2, 3), "normal": (10, 6), "full": (100, 10)}
_MODEL = "abcdefghij01234567"
_RULES = (
    *(
        "401:0.1",
        "metrics:html:0.3",
        "metrics:500:0.3",
        "ckpt:reset:0.5",
        "ckpt:cut-body:0.5",
        "metrics:400:0.2",
    ),
    *("registration:null:0.5", "any:429:0.2:retry-after=1", "metrics:lost-ack:0.3", "heartbeat:close:0.5"),
    *("any:cut-head:0.2", "metrics:gzip:0.3", "404:0.05", "any:redirect:0.3:to={other}/v1/models/x"),
)
_TRAINER = """
import http.client, json, logging, os, sys, traceback
from urllib.parse import quote
os.umask(0)
logging.basicConfig(level=logging.DEBUG)
http.client.HTTPConnection.debuglevel = 1
import hubqueue
given = json.load(sys.stdin)
for number, model in enumerate(given["models"]):
    try:
        run = hubqueue.start_run(model, worker=given["worker"], strict=number % 2 == 0, args={
            "data": "https://x.invalid/data.zip?api_key=" + quote(given["key"], safe=""), "api_key": given["key"], "epochs": 3,
            "deep": [{"hubToken": given["key"]}], "note": "with " + given["key"][:-1], given["key"]: 1})
        for epoch in range(2):
            run.log_metrics({"loss": epoch, "loss/" + given["key"][1:]: 1}, epoch=epoch)
        run.log_console("the key is " + given["key"])
        run.save_checkpoint(given["ckpt"], epoch=1)
        print(run, vars(run), run.url, flush=True)
        print(run.finish(timeout=given["patience"]), flush=True)
        run.log_metrics({"loss": 1}, epoch=9)
    except Exception:
        traceback.print_exc()
"""
_COMMANDS = (
    *("status", "status --json", "runs --all", "runs --json", "entries", "entries --json", "log --limit 500"),
    *("log --json", "show 1", "show 3 --json", "check", "check --json", "drain --timeout 1", "redrive --all"),
    *("resume hub", "prune", "migrate", "cancel 2", "login nowhere", "status --check"),
)


@dataclass(slots=True)
class Scene:
    """One home, its canary keys, and all outputs of its processes."""

    folder: Path
    way: str
    plain: str
    loud: str
    outputs: list[tuple[str, bytes]] = field(default_factory=list)
    asked: int = 0  # requests that the hub received from here

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def key(self) -> str:
        return self.plain if self.way == "KEY_MODELID" else self.loud

    def environ(self, hub: str, **more: str) -> dict[str, str]:
        """The environment of a process here: it must not write outside the folder."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("HUB", "ULTRALYTICS_"))
        }
        own = {
            "HUBQUEUE_HOME": str(self.home), "HOME": str(self.folder), "TMPDIR": str(self.folder),
            "PYTHONPATH": str(ROOT), "ULTRALYTICS_HUB_API": hub, "HUBQUEUE_WORKER__IDLE_EXIT": "3",
            "HUBQUEUE_RATE_LIMITS__METRICS": "0.05", "HUBQUEUE_RATE_LIMITS__CKPT": "0.1", "HUBQUEUE_RETRY__CAP": "1",
            "HUBQUEUE_DESTINATIONS__HUB__ANSWER_TIMEOUT": "2", "HUBQUEUE_RATE_LIMITS__HEARTBEAT": "0.2",
            "PYTHONFAULTHANDLER": "1", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        if self.way in ("HUB_API_KEY", "HUBQUEUE_KEY_HUB"):
            own[self.way] = self.loud
        return {**kept, **own, **more}

    def models(self, count: int) -> list[str]:
        """The models for the trainer."""
        if self.way == "KEY_MODELID":
            return [f"{self.plain}_{_MODEL}{number:02d}" for number in range(count)]
        if self.way == "url":
            from urllib.parse import quote

            query = quote(self.loud, safe="")
            return [
                f"https://hub.ultralytics.com/models/{_MODEL}{n:02d}?api_key={query}" for n in range(count)
            ]
        wrong = f"{self.loud}_{_MODEL}00"  # a typing error must not leak the key either
        return [*(f"yolov8n-{number}.pt" for number in range(count - 1)), wrong]


def _call(scene: Scene, environ: dict[str, str], *arguments: str, stdin: str = "") -> None:
    command = [sys.executable, "-m", "hubqueue", *arguments]
    done = subprocess.run(
        command,
        env=environ,
        input=stdin.encode(),
        capture_output=True,
        timeout=120,
        check=False,
        cwd=scene.folder,
    )
    scene.outputs.append((f"hubqueue {' '.join(arguments)}", done.stdout + done.stderr))


def _train(scene: Scene, environ: dict[str, str], count: int, dice: random.Random) -> None:
    """Run a trainer with its worker; one of them is often killed."""
    mode = dice.choice(("auto", "auto", "thread", "none"))
    given = {
        "models": scene.models(count),
        "worker": mode,
        "key": scene.key,
        "patience": 1.0,
        "ckpt": str(scene.folder / "last.pt"),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAINER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environ,
        cwd=scene.folder,
    )  # fmt: skip
    worker = None
    if mode != "auto":
        worker = subprocess.Popen(
            [sys.executable, "-m", "hubqueue", "worker", "--verbose", "--idle-exit", "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            cwd=scene.folder,
        )
    end = dice.choice((None, None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGABRT))
    timer = threading.Timer(
        dice.uniform(1.0, 4.0), lambda: process.poll() is None and process.send_signal(end)
    )
    if end is not None:
        timer.start()
    scene.outputs.append(
        (f"a trainer ({mode})", process.communicate(json.dumps(given).encode(), timeout=200)[0])
    )
    timer.cancel()
    if worker is not None:
        worker.send_signal(dice.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGKILL, signal.SIGABRT)))
        scene.outputs.append(("a worker", worker.communicate(timeout=200)[0]))


def _mistakes(scene: Scene, hub: str) -> None:
    """Put a key into wrong settings: the error message must not repeat it."""
    key, host = scene.loud, hub.removeprefix("http://")
    from urllib.parse import quote

    coded = quote(key, safe="")
    for name, value in (
        ("ULTRALYTICS_HUB_API", f"http://{coded}@{host}"),
        ("ULTRALYTICS_HUB_API", f"{hub}/?api_key={coded}"),
        ("ULTRALYTICS_HUB_API", f"{hub}/{coded}#{key}"),
        ("HUBQUEUE_DESTINATIONS__HUB__API_KEY", key),
        ("HUBQUEUE_DESTINATIONS__HUB__PROXY", f"http://user:{coded}@127.0.0.1:9"),
        ("HUBQUEUE_OUTBOX__URL", f"postgresql+psycopg://user:{coded}@127.0.0.1:9/x"),
        ("HUBQUEUE_OUTBOX__URL", f"mysql://user:{coded}@127.0.0.1:9/x"),
        ("HUBQUEUE_OUTBOX__URL", f"postgresql+psycopg://127.0.0.1:9/x?user=u&password={coded}"),
        ("HUBQUEUE_OUTBOX__URL", f"postgresql+psycopg://127.0.0.1:9/x?pasword={coded}"),
        ("HUBQUEUE_SPOOL__MAX_BYTES", key),
        ("HUB_API_KEY", key + "\ud83d"[:0] + " \t" + key),
    ):
        environ = scene.environ(hub, **{name: value})
        for command in ("check --json", "status"):
            _call(scene, environ, *command.split())
    config = Path(tempfile.mkdtemp()) / "config.toml"
    for text in (
        f'[destinations.hub]\napi_key = "{key}"\n',
        f"api_key = {key}\n",
        f'[destinations.hub]\nurl = "{key}"\n',
    ):
        config.write_text(text)
        _call(scene, scene.environ(hub), "--config", str(config), "check")
    shutil.rmtree(config.parent)
    for text in (f"{key} {key}\n", f'"{key}"\n', key * 20 + "\n", f"ключ{key}\n"):
        _call(scene, scene.environ(hub), "login", "hub", stdin=text)
    held = scene.home / "credentials.toml"
    kept = held.read_bytes() if held.exists() else None
    for text in (
        f"[hub]\nkey = {key}\n",
        f'hub = "{key}"\n',
        f'[hub]\nkey = ["{key}"]\n',
        f'[hub\nkey = "{key}"\n',
    ):
        held.write_text(text)
        held.chmod(0o600)
        for command in ("check --offline", "drain --timeout 0.2"):
            _call(scene, scene.environ(hub), *command.split())
        _call(scene, scene.environ(hub), "login", "hub", stdin=key)
    held.unlink(missing_ok=True)
    if kept is not None:
        held.write_bytes(kept)
        held.chmod(0o600)


class ProcessList:
    """Reads the arguments of every process of the machine, many times a second."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._thread.join(10)

    def _read(self) -> None:
        while not self._end.wait(0.02):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    self.seen.add((folder / "cmdline").read_bytes())
                except OSError:
                    continue


def play(scene: Scene, runs: int, dice: random.Random, *, parrot: bool, mistakes: bool) -> list[str]:
    """Run one home through its scenario. Returns the leaks."""
    scene.folder.mkdir()
    (scene.folder / "last.pt").write_bytes(dice.randbytes(3000))
    processes = ProcessList()
    with ExitStack() as stack:
        other = stack.enter_context(Peer(lambda connection, _request: connection.sendall(answer())))
        if parrot:
            peer = stack.enter_context(Peer(Parrot(dice.randrange(1 << 30), other.url)))
            hub, received = peer.url, peer.requests
        else:
            rules = [rule.replace("{other}", other.url) for rule in dice.sample(_RULES, 5)]
            sandbox = stack.enter_context(Sandbox(scene.folder / "hub", faults=rules))
            hub, received = sandbox.url, []
        stack.enter_context(processes.watching())
        environ = scene.environ(hub)
        if scene.way == "login":
            _call(scene, environ, "login", "hub", stdin=scene.loud + "\n")
        else:
            scene.home.mkdir(mode=0o700)
        log = scene.home / "worker.log"  # large enough to be rotated
        with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as file:
            file.write(b"." * 999_000 + b"\n")
        _train(scene, environ, runs, dice)
        for command in dice.sample(_COMMANDS, 8):
            _call(scene, environ, *command.split())
        if mistakes:
            _mistakes(scene, hub)
        _end_worker(scene, environ)
        scene.asked = len(sandbox.requests if not parrot else received)
    found = needles(scene.plain, scene.loud)
    faults = [f"{what}: {_shown(hit, text)}" for what, text in scene.outputs if (hit := found.search(text))]
    faults += [f"a process list: {line!r}" for line in processes.seen if found.search(line)]
    if other.connections:
        faults.append(f"another host got {other.connections} connections")
    for path in scene.folder.rglob("*"):
        if path.name == "credentials.toml" or not path.is_file():
            continue
        data = path.read_bytes()
        if hit := found.search(data):
            faults.append(f"{path.relative_to(scene.folder)}: {_shown(hit, data)}")
    for path in (scene.home, *scene.home.rglob("*")):
        if stat.S_IMODE(path.lstat().st_mode) & 0o077:
            faults.append(
                f"{path.relative_to(scene.folder)} has mode {stat.S_IMODE(path.lstat().st_mode):04o}"
            )
    return faults


def _end_worker(scene: Scene, environ: dict[str, str]) -> None:
    """End the detached worker, if there is one, so that all its output is searched."""

    def worker() -> object:
        command = [sys.executable, "-m", "hubqueue", "status", "--json"]
        found = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
        return json.loads(found.stdout or "{}").get("worker")

    home = Home(scene.home)
    if worker_lives(home):
        wait_until(lambda: not worker_lives(home) or (isinstance(now := worker(), dict) and now["pid"]))
        now = worker()
        if worker_lives(home) and isinstance(now, dict):
            with suppress(ProcessLookupError):
                os.kill(now["pid"], signal.SIGTERM)
    wait_until(lambda: not worker_lives(home))


def _shown(hit: re.Match[bytes], text: bytes) -> str:
    return repr(text[max(0, hit.start() - 60) : hit.end() + 60])


def main(argv: list[str] | None = None) -> int:
    """Run this part. Returns the exit code."""
    report = new_report("secrets", SENTENCE, argv)
    homes, runs = _SCALES[report.scale]
    with report.verdict(), tempfile.TemporaryDirectory(prefix="hubqueue-secrets-") as folder:
        outputs = faulty = asked = 0
        for number in range(homes):
            dice = random.Random(f"{report.seed}/{number}")
            scene = Scene(Path(folder) / str(number), WAYS[number % len(WAYS)], *keys(dice))
            faults = play(scene, runs, dice, parrot=number % 3 != 1, mistakes=number % 5 == 1)
            outputs += len(scene.outputs)
            asked += scene.asked
            faulty += bool(faults)
            for fault in faults[:5]:
                report.require(False, f"home {number} ({scene.way}): {fault}")
            shutil.rmtree(scene.folder)
        _two_hubs(report, Path(folder))
        report.write(
            f"{homes * runs} runs in {homes} homes, {outputs} outputs of processes, {asked} requests to the hub; "
            f"homes with a leak: {faulty}"
        )
        report.require(asked > homes * runs, "too few requests: these runs prove nothing")
        _control(report)
    return report.exit_code


def _two_hubs(report: Report, folder: Path) -> None:
    """Two hubs of one type, each with its key, one behind a proxy with a password: no host gets another's secret."""
    plain, loud = keys(random.Random(f"{report.seed}/two"))
    password = "".join(
        random.Random(f"{report.seed}/proxy").choice("ghijkmnpqrstuvwxyz23456789") for _ in range(24)
    )
    scene = Scene(folder / "two", "two hubs", plain, loud)
    scene.folder.mkdir()
    (scene.folder / "last.pt").write_bytes(b"weights" * 500)

    def respond(connection: socket.socket, _request: bytes) -> None:
        data = {"id": "abcdefghij0123456789", "agentId": "agent-1"}
        connection.sendall(answer(json.dumps({"success": True, "data": data}).encode()))

    with Peer(respond) as first, Peer(respond) as second, Peer(respond) as proxy:
        environ = scene.environ(
            first.url,
            HUBQUEUE_KEY_HUB=plain,
            HUBQUEUE_KEY_SECOND=loud,
            HUBQUEUE_DESTINATIONS__SECOND__TYPE="hub",
            HUBQUEUE_DESTINATIONS__SECOND__URL=second.url,
            HUBQUEUE_DESTINATIONS__HUB__PROXY=proxy.url.replace("://", f"://user:{password}@"),
        )
        for destination in ("hub", "second"):
            _call(scene, environ, "enqueue", "run", "yolo26n.pt", "--to", destination)
            run = scene.outputs[-1][1].decode().split()[-1]
            _call(scene, environ, "enqueue", "metrics", "--run", run, "--epoch", "0", "loss=1")
            _call(
                scene,
                environ,
                "enqueue",
                "checkpoint",
                "--run",
                run,
                "--epoch",
                "0",
                str(scene.folder / "last.pt"),
            )
        for command in ("drain --timeout 10", "status --json", "check --json"):
            _call(scene, environ, *command.split())
        received = {"hub": (*first.requests, *proxy.requests), "second": tuple(second.requests)}
    written = b"".join(text for _, text in scene.outputs)
    written += b"".join(path.read_bytes() for path in scene.folder.rglob("*") if path.is_file())
    report.require(
        needles(plain, loud, password).search(written) is None, "two hubs: a key or a password leaked"
    )
    crossed = _crossed(received, {"hub": plain, "second": loud})
    report.require(not crossed, f"two hubs: {crossed}")
    report.require(
        password.encode() not in b"".join(received["second"]),
        "the password of the proxy was sent to another host",
    )
    swapped = _crossed({"hub": received["second"], "second": received["hub"]}, {"hub": plain, "second": loud})
    counts = ", ".join(f"{name} {len(requests)}" for name, requests in received.items())
    report.write(
        f"two hubs of one type, one behind a proxy: requests {counts}; with the key of the other: {len(crossed)}"
    )
    report.write(f"control: the same requests swapped, detected {len(swapped)}")
    report.require(len(swapped) >= 4, "requests with the wrong key were not detected, or too few were sent")
    shutil.rmtree(scene.folder)


def _crossed(received: Mapping[str, Sequence[bytes]], own: Mapping[str, str]) -> list[str]:
    """Requests with the key of another destination."""
    return [
        f"{name} got the key of {other}"
        for name, requests in received.items()
        for other, key in own.items()
        for request in requests
        if other != name and needles(key).search(request)
    ]


def _control(report: Report) -> None:
    """The control: the search must find every planted spelling of a key."""
    plain, loud = keys(random.Random(report.seed))
    from torture.parrot import spellings

    found = needles(plain, loud)
    missed = [
        name
        for key in (plain, loud)
        for name, form in spellings(key).items()
        if not found.search(form.encode())
    ]
    cut = [part for key in (plain, loud) for part in (key[:-1], key[1:], key[:8], key[-8:], key[9:17])]
    missed += [part for part in cut if not found.search(part.encode())]
    planted = f"{len(spellings(plain))} spellings each of two keys and {len(cut)} parts of them"
    report.write(f"control: {planted} planted, missed {len(missed)}")
    report.require(not missed, f"the search misses {missed}")


if __name__ == "__main__":
    sys.exit(main())
