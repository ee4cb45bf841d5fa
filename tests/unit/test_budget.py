"""The budget of a key: how many requests it may make at once, and when it may make the next one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hubqueue.sandbox.budget import Budget


def test_no_budget_is_no_limit() -> None:
    budget = Budget(None)

    assert {budget.take("key", now=0.0) for _ in range(10_000)} == {0}


def test_each_key_has_its_own_budget_of_a_minute() -> None:
    budget = Budget(10)

    taken = [budget.take("key", now=5.0) for _ in range(11)]

    assert taken == [0] * 10 + [6]
    assert budget.take("other", now=5.0) == 0


@given(
    per_minute=st.integers(1, 1000),
    gaps=st.lists(st.floats(0, 100), min_size=1, max_size=200),
)
def test_a_client_that_waits_as_asked_is_served_within_its_budget(per_minute: int, gaps: list[float]) -> None:
    budget, now = Budget(per_minute), 0.0

    for served, gap in enumerate(gaps, start=1):
        now += gap
        wait = budget.take("key", now=now)
        if wait:
            now += wait
            assert budget.take("key", now=now) == 0

        assert served <= per_minute * (1 + now / 60) + 1e-6
