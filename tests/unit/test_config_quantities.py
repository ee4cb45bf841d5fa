"""Sizes and durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubqueue.config.forms import MAX_SECONDS
from hubqueue.config.reader import Config, parse
from hubqueue.domain.errors import ConfigError
from hubqueue.domain.quantities import read_size, read_span, written_size, written_span


def read(text: str = "", **environ: str) -> Config:
    return parse(text, environ, source="/etc/hubqueue.toml")


def problems_of(text: str = "", **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(text, **environ)
    return caught.value.problems


DURATIONS = {
    "90 s": timedelta(seconds=90),
    "90s": timedelta(seconds=90),
    "0.5 s": timedelta(milliseconds=500),
    "250 ms": timedelta(milliseconds=250),
    "1 second": timedelta(seconds=1),
    "15 min": timedelta(minutes=15),
    "1.5 minutes": timedelta(seconds=90),
    "1 h": timedelta(hours=1),
    "2 hours": timedelta(hours=2),
    "1 h 30 min": timedelta(minutes=90),
    "1h30min": timedelta(minutes=90),
    "1 day": timedelta(days=1),
    " 7 days ": timedelta(days=7),
    "2 weeks": timedelta(weeks=2),
    "0 s": timedelta(0),
}
SIZES = {
    "7 B": 7,
    "7 bytes": 7,
    "1 kB": 1000,
    "20 GB": 20_000_000_000,
    "20GB": 20_000_000_000,
    "20 gb": 20_000_000_000,
    "1.5 TB": 1_500_000_000_000,
    "512 MiB": 512 * 1024 * 1024,
    "1 KiB": 1024,
    "0.5 GiB": 512 * 1024 * 1024,
}


@pytest.mark.parametrize("text", DURATIONS)
def test_a_duration_is_a_text_with_its_unit(text: str) -> None:
    wanted = DURATIONS[text]

    assert read(f'rate_limits.ckpt = "{text}"').rate_limits.ckpt == wanted
    assert read(HUBQUEUE_RATE_LIMITS__CKPT=text).rate_limits.ckpt == wanted


@pytest.mark.parametrize("text", SIZES)
def test_a_size_is_a_text_with_its_unit(text: str) -> None:
    wanted = SIZES[text]

    assert read(f'spool.max_bytes = "{text}"').spool.max_bytes == wanted
    assert read(HUBQUEUE_SPOOL__MAX_BYTES=text).spool.max_bytes == wanted


def test_bare_numbers_are_seconds_and_bytes() -> None:
    config = read(
        "spool.max_bytes = 5", HUBQUEUE_RATE_LIMITS__CKPT="1.5", HUBQUEUE_WORKER__BATCH_BYTES="1_000"
    )

    assert (config.spool.max_bytes, config.worker.batch_bytes) == (5, 1000)
    assert config.rate_limits.ckpt == timedelta(seconds=1.5)


@pytest.mark.parametrize(
    "text", ["", "5", "min", "15 m", "15 fortnights", "-5 min", "5 min ago", "1e3 s", "5 MB", "1, 5 s"]
)
def test_an_invalid_duration_is_refused_with_an_example(text: str) -> None:
    assert problems_of(f'rate_limits.ckpt = "{text}"') == (
        'rate_limits.ckpt must be a number of seconds or a text such as "15 min"',
    )


@pytest.mark.parametrize("text", ["", "5", "GB", "20 G", "20 GBit", "-1 GB", "1e3 B", "5 min", "1 GB 5 MB"])
def test_an_invalid_size_is_refused_with_an_example(text: str) -> None:
    assert problems_of(f'spool.max_bytes = "{text}"') == (
        'spool.max_bytes must be a whole number of bytes or a text such as "20 GB"',
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("worker.lease = '0 s'", "worker.lease must be more than 0 seconds"),
        ("worker.lease = '4000 days'", "worker.lease must be at most 315360000 seconds (ten years)"),
        ("spool.max_bytes = '0 B'", "spool.max_bytes must be 1 or more bytes"),
        ("spool.max_bytes = '99999999 TB'", "spool.max_bytes must be at most 9223372036854775807 bytes"),
        (
            "destinations.hub.stall_rate = '0 B'",
            "destinations.hub.stall_rate must be 1 or more bytes per second",
        ),
    ],
)
def test_the_bounds_hold_for_texts_too(text: str, problem: str) -> None:
    assert problems_of(text) == (problem,)


@given(st.integers(0, MAX_SECONDS * 1_000_000))
def test_a_written_duration_is_read_as_what_it_was(microseconds: int) -> None:
    duration = timedelta(microseconds=microseconds)

    read_back = read_span(written_span(duration.total_seconds()))

    assert read_back is not None and timedelta(seconds=read_back) == duration


@given(
    st.integers(0, 10**15 - 1)
    | st.integers(1, 999).flatmap(lambda n: st.sampled_from([n * 1000**4, n * 1024**4]))
)
def test_a_written_size_is_read_as_what_it_was(count: int) -> None:
    assert read_size(written_size(count)) == count


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "3 s"),
        (60, "1 min"),
        (90, "90 s"),
        (900, "15 min"),
        (3600, "1 h"),
        (86_400, "1 day"),
        (604_800, "7 days"),
    ],
)
def test_a_duration_is_written_in_the_unit_that_fits(seconds: int, text: str) -> None:
    assert written_span(seconds) == text
