"""Fuzzed rate-limit headers: no exception, no negative or absurd wait, and valid headers are obeyed."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from torture.frame import Report

from hubqueue.destinations.wire.waits import asked_wait

_DAY = timedelta(days=1)
_NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
_NAMES = (
    *("Retry-After", "RateLimit", "RateLimit-Reset", "RateLimit-Remaining", "X-RateLimit-Reset", "Date"),
    *("X-RateLimit-Remaining", "RateLimit-Policy", "retry-after", "X-Retry-After", "RATELIMIT"),
)
_WORDS = (
    *("0", "1", "7", "-1", "-0", "+5", "1e9", "1e400", "inf", "nan", "NaN", "0x10", "1_000", "٣", "½", "1.5", ".5", "5."),
    *("99999999999", "9" * 20, "9" * 21, "9" * 400, "9" * 5000, "1.7976931348623157e308", "253402300800", "1764000000"),
    *("1764000000000", "-9999999999", "Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT"),
    *("Sun Nov  6 08:49:37 1994", "Mon, 23 Nov 2026 12:00:30 GMT", "Mon, 23 Nov 2026 12:00:30 +2400", "Mon, 23 Nov 2026"),
    *("Fri, 31 Dec 9999 23:59:59 GMT", "Sat, 01 Jan 0001 00:00:00 -2359", "2026-11-23T12:00:30Z", "2026-11-23t12:00:30z"),
    *("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-W48-1", "2026-11-23", "12:00", "-2026-11-23"),
    *('"default";r=0;t=30', '"a";r=0;t=5, "b";r=0;t=9', "limit=10, remaining=0, reset=30", '"x;t=1";r=0;t=2', '"', '"\\'),
    *('"a\\"b";t=1', ";" * 500, "," * 500, "=" * 500, "t=" * 300, "r=;t=", "reset=reset=reset", "", " ", "\t", "\x00", "\ud800"),
    *("soon", "null", "undefined", "[object Object]", "0;url=http://x", "120, 120", "120; 240", "１２０", "−1", "\u202e7"),
)  # fmt: skip
_SIGNS = '0123456789.,;=:-+ \t"\\()TtZzeE_/GMTrRtTlLWinfa\x00\xff\u0660\u2212'


def run(report: Report, count: int) -> None:
    """Fuzz `count` sets of headers, and report the results."""
    dice, began = random.Random(report.seed), time.monotonic()
    asked = plain = 0
    wrong: list[tuple[Mapping[str, str], object]] = []
    for index in range(count):
        if index % 10 == 0:
            headers, expected = _plain(dice)
            plain += 1
        else:
            headers, expected = _fuzzed(dice), None
        try:
            wait = asked_wait(headers, now=_NOW)
        except Exception as error:  # any exception is a failure
            wrong.append((headers, error))
            continue
        asked += wait is not None
        sane = wait is None or timedelta(0) <= wait <= _DAY
        if not sane or (
            expected is not None and (wait is None or abs(wait - expected) > timedelta(seconds=1))
        ):
            wrong.append((headers, wait))
    report.write(
        f"rate-limit headers: {count} sets, {plain} of them valid and obeyed, {asked} requested a wait; "
        f"wrong {len(wrong)}; {(time.monotonic() - began) / count * 1e6:.0f} µs each"
    )
    for headers, found in wrong[:5]:
        report.write(f"  {headers!r} -> {found!r}")
    report.require(not wrong, f"{len(wrong)} sets of rate-limit headers were misread")


def _plain(dice: random.Random) -> tuple[dict[str, str], timedelta]:
    """Valid headers, and their wait."""
    seconds = dice.choice((0, 1, dice.randrange(3600), dice.randrange(86_400), dice.randrange(10**7)))
    then, wait = _NOW + timedelta(seconds=seconds), min(timedelta(seconds=seconds), _DAY)
    match dice.randrange(7):
        case 0:
            return {"Retry-After": str(seconds)}, wait
        case 1:
            return {"retry-after": format_datetime(then, usegmt=True)}, wait
        case 2:
            return {"X-RateLimit-Reset": str(int(then.timestamp())), "X-RateLimit-Remaining": "0"}, wait
        case 3:
            return {"X-RateLimit-Reset": f"{then:%Y-%m-%dT%H:%M:%SZ}"}, wait
        case 4:
            return {"RateLimit": f'"default";r=0;t={seconds}'}, wait
        case 5:
            return {"RateLimit": f"limit=9, remaining=0, reset={seconds}"}, wait
        case _:
            # The local clock is wrong: the response's own date counts.
            there = _NOW + timedelta(days=dice.randrange(-4000, 4000))
            moment = there + timedelta(seconds=seconds)
            fields = {
                "Date": format_datetime(there, usegmt=True),
                "Retry-After": format_datetime(moment, usegmt=True),
            }
            return fields, wait


def _fuzzed(dice: random.Random) -> dict[str, str]:
    headers = {}
    for _ in range(dice.randint(1, 4)):
        text = dice.choice(_WORDS)
        for _ in range(dice.choice((0, 0, 1, 3))):
            at = dice.randrange(len(text) + 1)
            match dice.randrange(4):
                case 0:
                    text = text[:at] + dice.choice(_SIGNS) + text[at:]
                case 1:
                    text = text[:at] + text[at + 1 :]
                case 2:
                    text = text[:at] + dice.choice(_WORDS) + text[at:]
                case _:
                    text = text[:at] + str(dice.randrange(10 ** dice.randint(1, 25))) + text[at:]
        headers[dice.choice(_NAMES)] = text
    return headers
