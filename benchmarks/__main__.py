"""`python -m benchmarks [ROW…] [--quick] [--write [FOLDER]]`: measure the given rows, by default all."""

from __future__ import annotations

import argparse
import logging
import os
import time
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks.context import ROOT, Context, machine
from benchmarks.report import Line, Standing, tables, terminal, write

ROWS = (
    "enqueue",
    "storm",
    "history",
    "checkpoint",
    "drain",
    "upload",
    "s3",
    "latency",
    "idle",
    "starts",
    "size",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller rounds: about four minutes")
    parser.add_argument(
        "--write",
        nargs="?",
        type=Path,
        const=ROOT / "docs",
        help="write performance.md and .svg there [docs]",
    )
    asked = parser.parse_args()
    unknown = [row for row in asked.rows if row not in ROWS]
    if unknown:
        parser.error(f"unknown row: {', '.join(unknown)}; known: {', '.join(ROWS)}")
    if asked.write and asked.rows:
        parser.error("--write takes all rows of one run")
    # Warnings about entries that are still owed at the end of a run are irrelevant here.
    logging.getLogger("hubqueue").setLevel(logging.ERROR)
    lines: list[Line] = []
    standings: list[Standing] = []
    failed: list[str] = []
    with Context(quick=asked.quick) as context:
        facts = dict(machine(context))
        for name, fact in facts.items():
            print(f"{name:12} {fact}")
        for row in asked.rows or ROWS:
            start = time.monotonic()
            try:
                found = import_module(f"benchmarks.{row}").measure(context)
            except Exception:
                traceback.print_exc()
                failed.append(row)  # the other rows are still measured
                continue
            print(f"\n-- {row}, {time.monotonic() - start:.0f} s")
            print(terminal(found.lines), flush=True)
            lines += found.lines
            standings += found.standings
    facts["load"] += f" before, {os.getloadavg()[0]:.2f} after"
    print(f"\n{tables(lines, standings)}")
    if failed:
        raise SystemExit(f"error: not measured: {', '.join(failed)}")
    if asked.write:
        print(f"\nwritten: {write(asked.write, facts, lines, standings)}")


if __name__ == "__main__":
    main()
