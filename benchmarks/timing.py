"""Times, their quantiles, and the ratio of interleaved rounds. Pure except for the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

# The scalars of one epoch of a detection training, as its callbacks pass them.
SCALARS = {f"metrics/scalar{n}": 1.0 / (n + 1) for n in range(12)}

Rounds = Sequence[Sequence[float]]


def timed(act: Callable[[int], object], calls: int, first: int = 0) -> list[float]:
    """The seconds of each of `calls` calls; they get the numbers from `first` on."""
    found = []
    for number in range(first, first + calls):
        start = time.perf_counter()
        act(number)
        found.append(time.perf_counter() - start)
    return found


def quantile(seconds: Sequence[float], share: float) -> float:
    """The value that a share of `share` does not exceed."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def of_rounds(rounds: Rounds, share: float) -> float:
    """The median over the rounds of a quantile of each round."""
    return statistics.median(quantile(each, share) for each in rounds)


def ratio(ours: Rounds, floor: Rounds, share: float = 0.5) -> float:
    """The ratio to the floor: the median of the ratios within each round."""
    return statistics.median(
        quantile(mine, share) / quantile(its, share) for mine, its in zip(ours, floor, strict=True)
    )


def shown(seconds: float) -> str:
    """A readable time, in three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{seconds * 1e6:.0f} µs"
