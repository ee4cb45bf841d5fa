"""What every part of the torture has: a seed, a scale, a place to say its counts, and a sentence to prove."""

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
class Options:
    """What a part was told, and what it found."""

    part: str
    sentence: str
    seed: int
    scale: str
    failures: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        print(f"{self.part}: {line}", flush=True)

    def require(self, true: bool, failure: str) -> None:
        """Note a failure, and go on: the other counts are wanted too."""
        if not true:
            self.failures.append(failure)
            self.say(f"FAILED: {failure}")

    @contextmanager
    def verdict(self) -> Iterator[None]:
        """Say what is proved, in the beginning and in the end."""
        self.say(f"seed {self.seed}, scale {self.scale}")
        yield
        self.say(
            f"NOT proved ({len(self.failures)} failures)" if self.failures else f"proved: {self.sentence}"
        )

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0


def options(part: str, sentence: str, argv: list[str] | None) -> Options:
    """The command line of a part: `--seed N`, `--scale quick|normal|full` (TORTURE=full chooses the last)."""
    parser = argparse.ArgumentParser(prog=f"torture.{part}", description=sentence)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--scale", choices=("quick", "normal", "full"), default=None)
    found = parser.parse_args(argv)
    seed = found.seed if found.seed is not None else random.SystemRandom().randrange(1 << 32)
    return Options(part, sentence, seed, found.scale or os.environ.get("TORTURE") or "normal")
