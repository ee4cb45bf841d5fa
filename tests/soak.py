"""Run `make test` many times in a row, with busy loops in parallel, to find tests that fail only sometimes.

    .venv/bin/python tests/soak.py --runs 20 --busy 2

Every run has its own order of the tests. Its number, seed, seconds and last line are printed. The soak stops at the first
run that fails, with exit code 1 and the end of that run's output. The busy loops end with it, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TAIL = 200
# Ends when the soak was killed: then the loop has another parent process.
BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))"


def main(argv: list[str] | None = None) -> int:
    """Run the tests N times. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20, help="number of runs [20]")
    parser.add_argument("--busy", type=int, default=2, help="number of parallel busy loops [2]")
    parser.add_argument(
        "--seed", type=int, help="the random seed of the first run; each further run adds 1 [random]"
    )
    parser.add_argument("--target", default="test", help="the target of make that is run [test]")
    chosen = parser.parse_args(argv)
    # SIGTERM must end the children too; and they must not inherit an ignored SIGINT (`make soak &` in a script).
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    first = random.SystemRandom().randrange(1 << 31) if chosen.seed is None else chosen.seed
    took: list[float] = []
    try:
        with busy_loops(chosen.busy):
            for number in range(1, chosen.runs + 1):
                seed, began = first + number - 1, time.monotonic()
                code, said = run(chosen.target, seed)
                took.append(time.monotonic() - began)
                lines = said.rstrip().splitlines() or ["(no output)"]
                last = next((line for line in reversed(lines) if line.startswith("==")), lines[-1]).strip(
                    "= "
                )
                print(f"run {number}: seed {seed}, {took[-1]:.0f} s, {last}", flush=True)
                if code:
                    print("\n".join(lines[-TAIL:]))
                    print(f"run {number} of {chosen.runs} failed, {number - 1} passed before it")
                    return 1
    except KeyboardInterrupt:
        print(f"stopped; {len(took)} of {chosen.runs} runs passed until then")
        return 130
    print(f"{len(took)} of {chosen.runs} runs passed, {min(took):.0f} to {max(took):.0f} s")
    return 0


def run(target: str, seed: int) -> tuple[int, str]:
    """One run of the tests. Returns its exit code and its output."""
    command = ["make", "--no-print-directory", target, f"PYTEST_OPTIONS=--randomly-seed={seed}"]
    # Its own process group, so that everything it has started can be ended with it.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)  # pytest then ends its fixtures, including a server
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        raise
    return process.returncode, said


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Start `count` processes that each keep a processor busy."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for each in loops:
            each.kill()
        for each in loops:
            each.wait()


if __name__ == "__main__":
    sys.exit(main())
