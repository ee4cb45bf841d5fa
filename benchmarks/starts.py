"""The cost of a start: `import hubqueue` above a bare Python, and a whole `hubqueue status` with a long history."""

from __future__ import annotations

import statistics
import subprocess
import time

from benchmarks.context import Context, python
from benchmarks.report import Found, Line
from benchmarks.timing import shown


def measure(context: Context) -> Found:
    rounds = 7 if context.quick else 15
    crowd = context.crowd
    environ = context.environ(crowd.home)

    def took(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run(python(*arguments), check=True, stdout=subprocess.DEVNULL, env=environ)
        return time.perf_counter() - start

    bare, importing, status = [], [], []
    for _ in range(rounds):
        bare.append(took("-c", "pass"))
        importing.append(took("-c", "import hubqueue"))
        status.append(took("-m", "hubqueue", "status"))
    more = statistics.median(mine - its for mine, its in zip(importing, bare, strict=True))
    whole = statistics.median(status)
    floor = f"`python -c pass`: {shown(statistics.median(bare))}"
    return Found(
        [
            Line("`import hubqueue`", floor, f"{shown(more)} more", "", "< 50 ms", more < 0.05),
            Line(
                f"`hubqueue status` with {crowd.words}",
                floor,
                shown(whole),
                f"{whole / statistics.median(bare):.1f}x",
                "< 0.4 s",
                whole < 0.4,
            ),
        ]
    )
