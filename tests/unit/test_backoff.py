"""The next attempt: exponential, capped, with jitter, and never before the time that the server asked for."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubqueue.config.settings import RetrySettings
from hubqueue.worker.backoff import equal_jitter, next_attempt_at, spread_after

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
RETRY = RetrySettings(base=timedelta(seconds=1), cap=timedelta(seconds=300))


def whole(ceiling: float) -> float:
    return ceiling


def tiniest(ceiling: float) -> float:
    return ceiling / 1e6


@pytest.mark.parametrize(("failures", "seconds"), [(0, 1), (1, 2), (2, 4), (8, 256), (9, 300), (10, 300)])
def test_the_ceiling_doubles_up_to_the_cap(failures: int, seconds: int) -> None:
    at = next_attempt_at(failures, now=NOW, retry=RETRY, jitter=whole)

    assert at == NOW + timedelta(seconds=seconds)


def test_millions_of_failures_do_not_overflow() -> None:
    at = next_attempt_at(10_000_000, now=NOW, retry=RETRY, jitter=whole)

    assert at == NOW + RETRY.cap


def test_the_wait_that_the_server_asks_for_is_kept_in_full_with_jitter_on_top() -> None:
    asked = timedelta(seconds=600)

    earliest = next_attempt_at(0, now=NOW, retry=RETRY, asked=asked, jitter=tiniest)
    latest = next_attempt_at(0, now=NOW, retry=RETRY, asked=asked, jitter=whole)

    assert NOW + asked < earliest < latest == NOW + asked + RETRY.base


def test_a_short_wait_that_the_server_asks_for_does_not_shorten_the_backoff() -> None:
    at = next_attempt_at(20, now=NOW, retry=RETRY, asked=timedelta(seconds=2), jitter=whole)

    assert at == NOW + RETRY.cap


def test_a_cap_below_the_base_holds_for_the_first_failure_too() -> None:
    retry = RetrySettings(base=timedelta(seconds=60), cap=timedelta(seconds=5))

    at = next_attempt_at(0, now=NOW, retry=retry, jitter=whole)

    assert at == NOW + retry.cap


def test_equal_jitter_uses_the_upper_half_of_the_range() -> None:
    drawn = [equal_jitter(8.0) for _ in range(500)]

    assert all(4.0 < each <= 8.0 for each in drawn)
    assert min(drawn) < 5 and max(drawn) > 7


def test_an_outage_of_an_hour_costs_each_lane_at_most_30_requests() -> None:
    def requests(seed: int) -> int:
        dice = random.Random(seed)
        at, count = NOW, 0
        while at < NOW + timedelta(hours=1):
            jitter = partial(equal_jitter, dice=dice)
            at, count = next_attempt_at(count, now=at, retry=RETRY, jitter=jitter), count + 1
        return count

    assert max(map(requests, range(500))) <= 30


@pytest.mark.parametrize(("asked", "seconds"), [(None, 1), (-5, 1), (0, 1), (5, 5), (60, 60), (3600, 150)])
def test_lanes_return_from_a_shared_wait_within_as_long_again_up_to_half_the_cap(
    asked: int | None, seconds: int
) -> None:
    spread = spread_after(None if asked is None else timedelta(seconds=asked), retry=RETRY)

    assert spread == timedelta(seconds=seconds)


@given(
    failures=st.integers(min_value=-5, max_value=10**9),
    base=st.timedeltas(timedelta(0), timedelta(days=3650)),
    cap=st.timedeltas(timedelta(0), timedelta(days=3650)),
    asked=st.none() | st.timedeltas(timedelta(days=-2), timedelta(days=2)),
)
def test_the_moment_lies_between_the_requested_wait_and_the_cap(
    failures: int, base: timedelta, cap: timedelta, asked: timedelta | None
) -> None:
    retry = RetrySettings(base=base, cap=cap)

    at = next_attempt_at(failures, now=NOW, retry=retry, asked=asked)

    least = max(asked or timedelta(0), timedelta(0))
    assert NOW + least <= at <= NOW + max(cap, least + min(base, cap))
