"""The n-th call fails: each system call of an enqueue, a drain and a status in turn.

The disk of `disk.c` makes the n-th call return an error, or write half. Data that an operation reported as saved must be
there afterwards. A training sees no exception, and everything is delivered once the disk works again. The ballast is
tested on a small file system that is really full. The control counts each call that returned as saved.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from stage import totals
from torture.disk import Shim, build, can_build
from torture.frame import Report, new_report

from hubqueue import start_run
from hubqueue.cli import main as command_line
from hubqueue.domain.errors import HubqueueError
from hubqueue.domain.lane import Batch
from hubqueue.domain.outcome import Outcome
from hubqueue.outbox.outbox import COURTESY, open_outbox
from hubqueue.outbox.spool.ballast import Ballast
from hubqueue.testing import MemoryTransport
from hubqueue.worker.service import Service, nothing_left

SENTENCE = (
    "if any call of an enqueue, a drain or a status fails, what was acknowledged is there, a training sees no "
    "exception, a person no traceback, and everything is delivered once the disk works"
)
ERRORS = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, "EINTR": errno.EINTR, "short": 0}
# The share of all calls that is tried.
PART = {"quick": 0.04, "normal": 0.3, "full": 1.0}
_ENVIRON = {
    "HUBQUEUE_RATE_LIMITS__METRICS": "0",
    "HUBQUEUE_RATE_LIMITS__CKPT": "0",
    "HUBQUEUE_RETRY__BASE": "0.02",
    "HUBQUEUE_RETRY__CAP": "0.02",
    "HUBQUEUE_SPOOL__MIN_FREE_BYTES": "0",
    "HUB_API_KEY": "key-of-the-tests",
}
_EPOCHS = 4


def main(argv: list[str] | None = None) -> int:
    """Make each call fail and check; 1 if the sentence is false."""
    report = new_report("failing", SENTENCE, argv)
    if not can_build():
        report.write("not run: it needs Linux and a C compiler")
        return 0
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with report.verdict(), tempfile.TemporaryDirectory(prefix="hubqueue-failing-", dir=room) as name:
        folder = Path(name)
        environ = {**os.environ, **build(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        shares = os.cpu_count() or 1
        started = []
        for share in range(shares):
            command = [sys.executable, "-m", "torture.failing", "--inside", str(folder / f"share-{share}")]
            command += [str(report.seed), report.scale, str(share), str(shares)]
            started.append(subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True))
        with ThreadPoolExecutor(shares) as pool:  # read all pipes: a full one would block its share
            outputs = [output for output, _ in pool.map(subprocess.Popen.communicate, started)]
        report.require(not any(each.returncode for each in started), "a share of the calls was not checked")
        cases = [json.loads(line) for output in outputs for line in output.splitlines()]
        _count(report, cases)
        try:
            _full_disk(report, folder)
        finally:
            logging.disable(logging.NOTSET)
    return report.exit_code


def _count(report: Report, cases: list[dict[str, Any]]) -> None:
    for operation in ("enqueue", "drain", "status"):
        for error in (*ERRORS, "EIO for good", "ENOSPC for good"):
            mine = [each for each in cases if (each["operation"], each["error"]) == (operation, error)]
            met = [each for each in mine if each["met"]]
            wrong = Counter(each["problem"] for each in met if each["problem"])
            if mine:
                report.write(
                    f"{operation}, {error}: of about {max(each['calls'] for each in mine)} calls {len(met)} failed, "
                    f"wrong {wrong.total()}"
                )
            report.require(not wrong, f"{operation}, {error}: {wrong.most_common(3)}")
    control = [each for each in cases if each["operation"] == "enqueue" and each["unsaved"]]
    report.write(f"control: counting each call that returned as saved is wrong {len(control)} times")
    report.require(bool(control), "the control was never wrong: these failures prove nothing")


def inside(folder: Path, seed: int, scale: str, share: int, shares: int) -> None:
    """One share of the cases, in a process with the disk loaded."""
    folder.mkdir()
    root = folder / "disk"
    root.mkdir()
    shim, dice = Shim(root), random.Random(f"{seed} {share}")
    os.environ.update(_ENVIRON)
    logging.disable(logging.CRITICAL)
    _prepare(folder / "owing")
    for operation, act in (("enqueue", _enqueue), ("drain", _drain), ("status", _status)):
        calls = _case(shim, folder, operation, act, 10**9, 0, for_good=False)["calls"]
        faults = [(name, number, False) for name, number in ERRORS.items()]
        if operation != "drain":
            faults += [(f"{name} for good", ERRORS[name], True) for name in ("EIO", "ENOSPC")]
        for name, number, for_good in faults:
            for at in range(1 + share, calls + 2, shares):
                if dice.random() < PART[scale]:
                    case = _case(shim, folder, operation, act, at, number, for_good=for_good)
                    print(json.dumps({"operation": operation, "error": name, **case}), flush=True)


def _prepare(home: Path) -> None:
    """A home with a run that owes epochs and a checkpoint."""
    run = start_run("before.yaml", home=home, worker="none", strict=True)
    for epoch in range(_EPOCHS):
        run.log_metrics({"loss": epoch + 0.5}, epoch=epoch)
    (home / "weights.pt").write_bytes(bytes(range(256)) * 100)
    run.save_checkpoint(home / "weights.pt", epoch=1, final=True)
    assert run.outbox is not None
    run.outbox.close()


def _case(
    shim: Shim,
    folder: Path,
    operation: str,
    act: Callable[[Path], dict[str, Any]],
    at: int,
    error: int,
    *,
    for_good: bool,
) -> dict[str, Any]:
    """Make one call fail in a child process. Returns the problem then, or afterwards."""
    home, report = folder / "disk" / "home", folder / "report"
    shutil.rmtree(home, ignore_errors=True)
    report.unlink(missing_ok=True)
    shutil.copytree(folder / "owing", home)
    child = os.fork()
    if not child:
        try:
            shim.fail(at, error, for_good=for_good)
            result = act(home)
            calls = shim.calls()
            shim.fail(0, 0)
            report.write_text(json.dumps({**result, "calls": calls}))
            os._exit(0)
        except BaseException:
            shim.fail(0, 0)
            report.write_text(
                json.dumps({"problem": f"raised: {traceback.format_exc()[-700:]}", "calls": shim.calls()})
            )
            os._exit(0)
    os.waitpid(child, 0)
    case = json.loads(report.read_text()) if report.exists() else {"problem": "the process died", "calls": at}
    case["met"] = case["calls"] >= at
    case.setdefault("unsaved", 0)
    case["problem"] = case.get("problem") or _afterwards(home, case)
    return case


def _enqueue(home: Path) -> dict[str, Any]:
    """A training that is not strict."""
    run = start_run("after.yaml", home=home, worker="none")
    saved = [run.log_metrics({"loss": epoch + 0.5}, epoch=epoch) for epoch in range(_EPOCHS)]
    checkpoint = run.save_checkpoint(home / "weights.pt", epoch=0, final=True)
    left = run.finish(timeout=0)
    unsaved = sum(each is None for each in saved)
    if unsaved < left.unsaved - 2:  # the end of the run and its checkpoint may be counted too
        return {"problem": f"{unsaved} were not saved, but {left.unsaved} are reported as unsaved"}
    return {"saved": [each for each in (*saved, checkpoint) if each is not None], "unsaved": unsaved}


def _drain(home: Path) -> dict[str, Any]:
    """Run a worker until everything is delivered."""
    sent: list[int] = []
    died: list[str] = []
    threading.excepthook = lambda hook: died.append(f"a thread died: {hook.exc_value!r}")
    try:
        _deliver(home, sent)
    except HubqueueError as error:
        return {"sent": sent, "refused": str(error)}
    return {"sent": sent, "problem": died[0] if died else None}


def _deliver(home: Path, sent: list[int]) -> None:
    def take(batch: Batch) -> Outcome:
        sent.extend(entry.id for entry in batch.entries)
        return MemoryTransport()._answer(batch)

    with open_outbox(home, courtesy=COURTESY) as outbox:
        service = Service(outbox, emit=lambda _fact: None, dial=MemoryTransport(take).dial)
        deadline = time.monotonic() + 10
        until = nothing_left(
            outbox, service.worker, run_id=None, deadline=deadline, report=lambda _owed: None
        )
        service.run(until=until, every=0.02, grace=timedelta(seconds=2))


def _status(home: Path) -> dict[str, Any]:
    """The command, as a person sees it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            command_line(["--home", str(home), "status", "--json"], prog_name="hubqueue")
        except SystemExit as end:
            code = end.code
        else:
            code = 0
    if code not in (0, 1, 2) or "Traceback" in out.getvalue():
        return {"problem": f"status ended with {code}: {out.getvalue()[-300:]}"}
    return {}


def _afterwards(home: Path, case: dict[str, Any]) -> str | None:
    """The problem once the disk works again."""
    try:
        with open_outbox(home) as outbox:
            if outbox.database.integrity() != "ok":
                return "integrity"
            totals(outbox)
            there = {each["id"]: each["state"] for each in outbox.stats.entries(limit=1000)}
            lost = [each for each in case.get("saved", ()) if each not in there]
            if lost:
                return f"{len(lost)} acknowledged are missing"
            if "sent" in case and any(
                state == "delivered" and entry not in case["sent"] for entry, state in there.items()
            ):
                return "delivered but never sent"
        sent: list[int] = []
        _deliver(home, sent)
        with open_outbox(home) as outbox:
            if totals(outbox).get("pending") or totals(outbox).get("dead"):
                return f"at the end {totals(outbox)}"
    except (HubqueueError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextlib.contextmanager
def _small_disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    mounted = folder / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(mounted)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def _full_disk(report: Report, folder: Path) -> None:
    """On a file system without a free byte, the drain succeeds with the ballast, and the training continues without it."""
    os.environ.update(_ENVIRON)
    logging.disable(logging.CRITICAL)
    with _small_disk(folder, 96) as mounted:
        if mounted is None:
            report.write("full disk: not run, a file system cannot be mounted here")
            return
        home = mounted / "home"
        _prepare(home)
        report.require(Ballast(home / "ballast").create(), "there is no ballast")
        with (mounted / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        sent: list[int] = []
        _deliver(home, sent)
        with open_outbox(home) as outbox:
            counts = totals(outbox)
        report.require(not counts.get("pending"), f"on the full disk {counts}")
        with (mounted / "more").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        run = start_run("full.yaml", home=home, worker="none")
        saved = [run.log_metrics({"loss": 1}, epoch=epoch) for epoch in range(300)]
        for name in ("filler", "more"):
            (mounted / name).unlink()
        run.log_metrics({"loss": 1}, epoch=300)
        left = run.finish(timeout=0)
        report.write(
            f"full disk: {counts['delivered']} delivered with the ballast; of 301 epochs {saved.count(None)} waited in "
            f"memory, {left.unsaved} were left unsaved after there was room again"
        )
        with open_outbox(home) as outbox:
            found = outbox.stats.entries(run_id=run.id, kind="metrics", limit=1000)
        report.require(
            len(found) == 301 and not left.unsaved, f"{left.unsaved} unsaved, {len(found)} in the outbox"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        sys.exit(main())
