"""The wait that a response asks for, in every header format that servers use."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hubqueue.destinations.wire.waits import MAX_WAIT, asked_wait

NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC)
IN_30_S = "Sun, 06 Nov 1994 08:49:37 GMT"
UNIX_NOW = int(NOW.timestamp())


def seconds_asked(headers: dict[str, str], now: datetime = NOW) -> float | None:
    wait = asked_wait(headers, now=now)
    return None if wait is None else wait.total_seconds()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30", 30),
        (" 30 ", 30),
        ("0", 0),
        ("1.5", 1.5),
        (IN_30_S, 30),
        ("Sun, 06 Nov 1994 08:49:07 GMT", 0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 30),
        ("Sun Nov  6 08:49:37 1994", 30),
        ("Sun, 06 Nov 1994 09:49:37 +0100", 30),
        ("86401", 86400),
        ("99999999999", 86400),
    ],
)
def test_retry_after_is_read_in_seconds_and_in_every_form_of_date(value: str, seconds: float) -> None:
    assert seconds_asked({"Retry-After": value}) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-5",
        "nan",
        "inf",
        "1e3",
        "soon",
        "5 s",
        "1,5",
        "9" * 400,
        "Sun, 06 Nov 1994 08:49:06 GMT",
        "٣",
        "0x1e",
    ],
)
def test_an_invalid_retry_after_is_ignored(value: str) -> None:
    assert seconds_asked({"Retry-After": value}) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ('"default";r=0;t=30', 30),
        ('"default"; r=0; t=30', 30),
        ("default;r=0;t=30", 30),
        ('"default";t=30', 30),
        ('"burst";r=0;t=5, "daily";r=0;t=600', 600),
        ('"burst";r=0;t=5, "daily";r=900;t=600', 5),
        ('"a,b;r=7;\\"t=9";r=0;t=30', 30),
        ('"a;r=0;t=99, b";r=5;t=30', None),
        ("limit=100, remaining=0, reset=30", 30),
        ("limit=100, reset=30", 30),
        ("limit=100, remaining=1, reset=30", None),
        ("limit=100;w=60, remaining=0, reset=30", 30),
        ("limit=100;w=60, remaining=1, reset=30", None),
        ("remaining=0; reset=30", 30),
        ("limit=100, remaining=0, reset=30, scope=user", 30),
        ("Limit=100, Remaining=0, Reset=30", 30),
        ('"default";r=1;t=30', None),
        ('"default";r=0', None),
        ('"default";r=0;t=soon', None),
        ('"default";r=1 ; t=30', None),
        ('"default";r=0;t=30 ', 30),
        ('"default";r=0 ;t=30 , "other";r=9;t=99', 30),
        ("", None),
        (";;,,==", None),
    ],
)
def test_ratelimit_is_read_in_the_structured_and_in_the_early_form(value: str, seconds: float | None) -> None:
    assert seconds_asked({"RateLimit": value}) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (str(UNIX_NOW + 30), 30),
        (str((UNIX_NOW + 30) * 1000), 30),
        (f"{UNIX_NOW + 30}.5", 30.5),
        ("1994-11-06T08:49:37Z", 30),
        ("1994-11-06t08:49:37z", 30),
        ("1994-11-06T08:49:37.250Z", 30.25),
        ("1994-11-06T08:49:37", 30),
        ("1994-11-06T09:49:37+01:00", 30),
        (IN_30_S, 30),
        ("30", 30),
        (str(UNIX_NOW - 1), None),
        ("1994-11-06T08:49:06Z", None),
        ("tomorrow", None),
        ("99999999999999999999", None),
    ],
)
def test_x_ratelimit_reset_is_read_as_unix_time_iso_time_and_seconds(
    value: str, seconds: float | None
) -> None:
    assert seconds_asked({"X-RateLimit-Reset": value}) == seconds


@pytest.mark.parametrize("prefix", ["RateLimit", "X-RateLimit"])
@pytest.mark.parametrize(
    ("remaining", "seconds"), [("0", 30), ("?", 30), (None, 30), ("1", None), ("399", None)]
)
def test_a_reset_counts_only_when_nothing_remains(
    prefix: str, remaining: str | None, seconds: float | None
) -> None:
    headers = {f"{prefix}-Reset": "30"} | ({} if remaining is None else {f"{prefix}-Remaining": remaining})

    assert seconds_asked(headers) == seconds


def test_the_longest_requested_wait_holds() -> None:
    headers = {"Retry-After": "10", "RateLimit": '"d";r=0;t=20', "X-RateLimit-Reset": str(UNIX_NOW + 40)}

    assert seconds_asked(headers) == 40


def test_names_are_matched_whatever_their_case() -> None:
    assert seconds_asked({"rEtRy-aFtEr": "7"}) == 7


@pytest.mark.parametrize("wrong_by", [timedelta(days=-9000), timedelta(days=9000)])
@pytest.mark.parametrize(
    "asking",
    [{"Retry-After": IN_30_S}, {"X-RateLimit-Reset": str(UNIX_NOW + 30)}, {"X-RateLimit-Reset": IN_30_S}],
)
def test_a_wrong_local_clock_does_not_matter_when_the_response_has_a_date(
    asking: dict[str, str], wrong_by: timedelta
) -> None:
    dated = {"Date": "Sun, 06 Nov 1994 08:49:07 GMT", **asking}

    assert seconds_asked(dated, now=NOW + wrong_by) == 30


def test_with_an_invalid_date_the_local_clock_is_used() -> None:
    assert seconds_asked({"Date": "yesterday", "Retry-After": IN_30_S}) == 30


def test_a_response_without_any_of_the_headers_asks_for_no_wait() -> None:
    assert asked_wait({"Content-Type": "text/html", "Date": IN_30_S}, now=NOW) is None


NAMES = ["Date", "Retry-After", "RateLimit", "RateLimit-Reset", "RateLimit-Remaining"]
NAMES += ["X-RateLimit-Reset", "X-RateLimit-Remaining"]
VALUES = (
    st.lists(st.integers(0, 0x10FFFF).map(chr), max_size=60).map("".join)
    | st.text(alphabet='0123456789-+:.,;=TZ "rteaminglSunNovGMT', max_size=60)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.datetimes().map(datetime.isoformat)
    | st.datetimes().map(lambda moment: moment.strftime("Sun, %d Nov %Y %H:%M:%S GMT"))
)


@given(headers=st.dictionaries(st.sampled_from(NAMES), VALUES))
@example(headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 -2359"})
@example(headers={"Date": "Sat, 01 Jan 0001 00:00:00 +2359", "X-RateLimit-Reset": "99999999999999"})
@example(headers={"X-RateLimit-Reset": "0001-01-01T00:00:00+23:59"})
@example(headers={"Retry-After": "1" * 100_000})
def test_no_header_can_raise_or_ask_for_more_than_a_day(headers: dict[str, str]) -> None:
    wait = asked_wait(headers, now=NOW)

    assert wait is None or timedelta(0) <= wait <= MAX_WAIT
