"""The report of one part of the torture: its seed, its scale, its counts, and the sentence that it proves."""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class Failed(Exception):
    """The sentence is false."""


@dataclass(slots=True)
class Report:
    """The options of a part, and the failures that it found."""

    part: str
    sentence: str
    seed: int
    scale: str
    failures: list[str] = field(default_factory=list)

    def write(self, line: str) -> None:
        print(f"{self.part}: {line}", flush=True)

    def require(self, true: bool, failure: str) -> None:
        """Record a failure and continue, so that the other counts are made too."""
        if not true:
            self.failures.append(failure)
            self.write(f"FAILED: {failure}")

    @contextmanager
    def verdict(self) -> Iterator[None]:
        """Print the seed at the start and the result at the end."""
        self.write(f"seed {self.seed}, scale {self.scale}")
        yield
        self.write(
            f"NOT proved ({len(self.failures)} failures)" if self.failures else f"proved: {self.sentence}"
        )

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0


def new_report(part: str, sentence: str, argv: list[str] | None) -> Report:
    """Read the command line of a part: `--seed N`, `--scale quick|normal|full` (TORTURE=full selects full)."""
    parser = argparse.ArgumentParser(prog=f"torture.{part}", description=sentence)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--scale", choices=("quick", "normal", "full"), default=None)
    found = parser.parse_args(argv)
    seed = found.seed if found.seed is not None else random.SystemRandom().randrange(1 << 32)
    return Report(part, sentence, seed, found.scale or os.environ.get("TORTURE") or "normal")
