"""The wait that a response asks for: Retry-After and the rate-limit fields.

Promises a wait between zero and a day, or None; never an exception, whatever the headers contain. Moments are compared
with the `Date` of the response if it has one, so that a wrong clock on this machine does not change the wait. Refuses to
guess: a field that cannot be read counts as absent.

Sources: RFC 9110, sections 5.6.7 (dates) and 10.2.3 (Retry-After); the IETF drafts "RateLimit header fields
for HTTP", the structured form of the recent ones and the key-value and three-field forms of the early ones;
`X-RateLimit-Reset` as used in practice (Unix seconds, Unix milliseconds, ISO 8601, seconds from now).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

MAX_WAIT = timedelta(days=1)
"""The longest wait that is accepted. After it the server can ask for another one."""

_NUMBER = re.compile(r"[0-9]{1,20}(\.[0-9]{0,20})?")
_EARLY = re.compile(r"\s*(limit|remaining|reset)\s*=", re.IGNORECASE)
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
# A longer field is no valid moment or wait, and is not parsed.
_MAX_FIELD = 1024
# A number below the first is seconds from now (three years), below the second Unix seconds, else Unix
# milliseconds.
_UNIX_SECONDS_FROM, _UNIX_MILLISECONDS_FROM = 1e8, 1e11


def asked_wait(headers: Mapping[str, str], *, now: datetime) -> timedelta | None:
    """The longest wait that the headers of a response ask for, at most `MAX_WAIT`; None when they ask for none.

    `now` is the local time (aware), used if the response has no `Date`. A reset moment counts only when its
    remaining quota is 0 or not given.
    """
    fields = {name.lower(): value.strip() for name, value in headers.items() if len(value) <= _MAX_FIELD}
    reference = http_date(fields.get("date", "")) or now
    waits = [
        _retry_after(fields.get("retry-after", ""), reference),
        *_rate_limit(fields.get("ratelimit", "")),
    ]
    if _is_used_up(fields, "ratelimit-remaining"):
        waits.append(_seconds(fields.get("ratelimit-reset", "")))
    if _is_used_up(fields, "x-ratelimit-remaining"):
        waits.append(_x_reset(fields.get("x-ratelimit-reset", ""), reference))
    requested = [wait for wait in waits if wait is not None]
    return min(max(requested), MAX_WAIT) if requested else None


def _retry_after(text: str, reference: datetime) -> timedelta | None:
    moment = http_date(text)
    return _seconds(text) if moment is None else _until(moment, reference)


def _rate_limit(text: str) -> Iterator[timedelta | None]:
    """`"default";r=0;t=30`, several of them separated by commas, or `limit=10, remaining=0, reset=30`."""
    policies = _QUOTED.sub("quoted", text).split(",")
    if any(_EARLY.match(policy) for policy in policies):
        # The early form is one policy whose parts are separated by commas.
        policies = [";" + ";".join(policies)]
    for policy in policies:
        parameters = dict(_parameters(policy))
        remaining = parameters.get("r", parameters.get("remaining"))
        if remaining is None or _number(remaining) in (0, None):
            yield _seconds(parameters.get("t", parameters.get("reset", "")))


def _parameters(policy: str) -> Iterator[tuple[str, str]]:
    for part in policy.split(";")[1:]:
        name, _, value = part.partition("=")
        yield name.strip().lower(), value.strip()


def _is_used_up(fields: Mapping[str, str], field: str) -> bool:
    return _number(fields.get(field, "")) in (0, None)


def _x_reset(text: str, reference: datetime) -> timedelta | None:
    number = _number(text)
    if number is None:
        moment = iso_moment(text) or http_date(text)
        return None if moment is None else _until(moment, reference)
    if number < _UNIX_SECONDS_FROM:
        return _seconds(text)
    unix = number if number < _UNIX_MILLISECONDS_FROM else number / 1000
    try:
        return _until(datetime.fromtimestamp(unix, UTC), reference)
    except (OverflowError, ValueError, OSError):
        return None


def _until(moment: datetime, reference: datetime) -> timedelta | None:
    """The time until a moment; None if it has passed."""
    return moment - reference if moment >= reference else None


def _seconds(text: str) -> timedelta | None:
    number = _number(text)
    return None if number is None else timedelta(seconds=min(number, MAX_WAIT.total_seconds()))


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def http_date(text: str) -> datetime | None:
    """An HTTP date in one of the three forms of RFC 9110; None for anything else: `Sun, 06 Nov 1994 …`, `Sunday, 06-Nov-94 …` and `Sun Nov  6 …`."""
    try:
        return _as_utc(parsedate_to_datetime(text)) if text.isascii() else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def iso_moment(text: str) -> datetime | None:
    """A moment in ISO 8601, UTC if it has no zone; None for anything else."""
    try:
        return _as_utc(datetime.fromisoformat(text.upper()))
    except (ValueError, OverflowError):
        return None


def clock_difference(theirs: datetime | None, now: datetime) -> str:
    """How the clock of this machine, `now`, differs from that of a server, in words; `theirs` is None if unknown."""
    if theirs is None:
        return "differs too much from that of the server"
    difference = now - theirs
    which = "ahead of" if difference > timedelta(0) else "behind"
    amount = timedelta(seconds=round(abs(difference).total_seconds()))
    return f"is {amount} {which} that of the server"


def _as_utc(moment: datetime) -> datetime:
    # A moment without a zone: an HTTP date is always GMT, and servers mean UTC by an ISO one.
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
