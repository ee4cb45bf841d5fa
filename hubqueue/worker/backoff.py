"""When a failed attempt may be repeated: capped exponential backoff with equal jitter.

Promises a moment that is never sooner than the server asked for and that never overflows, however many failures
came before. It never gives up: there is no last retry. The claim enforces the pace of the lane, and spreads the lanes
that wait together.

The formula, random between half of min(cap, base * 2 ** failures) and the whole of it, is "equal jitter" of
"Exponential Backoff And Jitter" (Marc Brooker, AWS Architecture Blog, 2015). Full jitter, which begins at 0, makes 32
requests a lane in an hour's outage on average and up to 48. Equal jitter makes 24 and up to 27 (base 1 s, cap 300 s).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

from hubqueue.config.settings import RetrySettings

# 2 ** 64 microseconds exceed any cap, and a float holds the product: no larger power is needed.
_LARGEST_EXPONENT = 64
_DICE = random.Random()


def equal_jitter(ceiling: float, dice: random.Random | None = None) -> float:
    """A random number of seconds in (ceiling / 2, ceiling]."""
    return ceiling * (1.0 - (dice or _DICE).random() / 2)


def next_attempt_at(
    failures: int,
    *,
    now: datetime,
    retry: RetrySettings,
    asked: timedelta | None = None,
    jitter: Callable[[float], float] = equal_jitter,
) -> datetime:
    """The moment from which the next attempt is allowed.

    `failures` counts the attempts that failed in a row before the one that has just failed: 0 waits up to
    `retry.base`. `asked` is the wait that the server requested. It is honoured in full, and up to `retry.base` is
    added, so that many machines with the same moment do not return in one instant. `jitter` takes a ceiling and
    returns a number in (0, ceiling], both in seconds.
    """
    base, cap = retry.base.total_seconds(), retry.cap.total_seconds()
    exponent = min(max(failures, 0), _LARGEST_EXPONENT)
    wait = timedelta(seconds=jitter(min(cap, base * 2.0**exponent)))
    if asked is not None:
        spread = timedelta(seconds=jitter(min(cap, base)))
        wait = max(wait, max(asked, timedelta(0)) + spread)
    return now + wait


def spread_after(asked: timedelta | None, *, retry: RetrySettings) -> timedelta:
    """Within which time the lanes return after a wait that the server requested of all of them.

    As in the backoff of one lane, the random part is as long as the fixed one, at most half of `retry.cap`, so that a
    lane alone is not late by more than it would be after an outage.
    """
    return min(max(asked or timedelta(0), retry.base), retry.cap / 2)
